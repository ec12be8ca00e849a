"""What a line of a list names: the store and key of a path or URL, relative to the folder of the list."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.sources.listed import LISTED, Origin, addresses_of, batch_of, escape_bytes_anyway
from pipeline.storage import is_remote, redact
from pipeline.storage.uri import parse_path

MAX_PATH, MAX_NAME, MAX_KEY = 4096, 255, 1024
"""Bytes of a path and of one name in it on Linux, and of a key on S3: a longer one cannot be there."""
SHOWN = 80

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]+")
_SPECIAL_ON_DISK = r"^[A-Za-z][A-Za-z0-9+.-]*:|^\\\\|(^|/)\.{0,2}(/|$)|\x00"
_SPECIAL_ON_S3 = r"^[A-Za-z][A-Za-z0-9+.-]*:|^\\\\|^/|^\./|^$|\x00"
_TO_RESOLVE = r"/\.{0,2}(/|$)|\x00"
_WHOLE_URL = r"^(s3://|minio://[^/@]+/)[A-Za-z0-9][A-Za-z0-9._-]+/[^\x00]+$"
_WEB = ("http", "https", "ftp")


class Resolved(NamedTuple):
    """`open_store(place)` has `key`. uri: the key where `place` is the base, else the whole address; it resolves to
    this again.
    """

    place: str
    key: str
    uri: str


def resolve(address: str, base: str) -> Resolved:
    """The object that a line of a list names.

    base: canonical uri of the folder of the list (absolute path, s3://bucket/prefix or minio://server/bucket/prefix).
    A relative address lies below it. Absolute paths and the URLs of stores stay. On disk `.`, `..` and repeated slashes
    are resolved as text; the keys of an object store stay as written, but for a leading `./`. A backslash is a
    character of the name. Raises UsageError for an empty address, one that is too long or has a NUL, a Windows path
    and a URL of anything else.
    """
    if not address or "\0" in address:
        raise UsageError(f"{_shown(address)} is no path; wanted a path or URL without NUL")
    match = _SCHEME.match(address)
    if match is not None:
        return _of_url(address, match[1].lower(), match[2], base)
    if _WINDOWS.match(address):
        raise UsageError(
            f"{_shown(address)} is a path of Windows, which this machine cannot open: write it with forward slashes, "
            "relative to the folder of the list"
        )
    if address.startswith("/"):
        return _on_disk(address, base)
    if not is_remote(base):
        return _on_disk(f"{base}/{address}", base)
    while address.startswith("./"):
        address = address[2:]
    return _in_bucket(f"{base}/{address}", base)


def is_absolute(key: str) -> bool:
    """Whether the key of an image of a list stands for itself: a path from the root of the disk, or a store's URL."""
    return key.startswith(("/", "s3://", "minio://"))


def located(key: str, base: str) -> tuple[str, str]:
    """The uri of the store, and the key in it, of what `resolve` gave as `uri`; 0.3 us."""
    if not is_absolute(key):
        return base, key
    if key.startswith("/"):
        return "/", key[1:]
    folders = key.split("/", 5 if key.startswith("minio://") else 4)
    count = 4 if key.startswith("minio://") else 3
    return "/".join(folders[:count]), "/".join(folders[count:])


def resolved(batches: Iterable[pa.RecordBatch], origin: Origin) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED with the `uri` of each address in its place. Raises UsageError that names the row."""
    for batch in batches:
        yield _resolved_batch(batch, origin)


def joined(base: str, address: str) -> str:
    """The folder or file that an address in a folder names, as a canonical uri: `..` is resolved on every store.

    For files that speak of folders, such as a YAML of YOLO. Raises UsageError for an address that is no path, and for
    `..` that leads out of a bucket.
    """
    if "\0" in address or _WINDOWS.match(address):
        raise UsageError(f"{_shown(address)} is no path of this machine; wanted one with forward slashes")
    match = _SCHEME.match(address)
    if match is not None and match[1].lower() not in ("s3", "minio"):
        return str(parse_path(address))
    if match is None and (address.startswith("/") or not is_remote(base)):
        return _normal(posixpath.join(base, address))
    scheme, _, rest = (base if match is None else address).partition("://")
    root = "/".join(rest.split("/")[: 2 if scheme.lower() == "minio" else 1])
    path = posixpath.normpath(f"{rest}/{address}" if match is None else rest)
    if path != root and not path.startswith(root + "/"):
        raise UsageError(f"{_shown(address)} leads out of the bucket {scheme}://{root}: correct it")
    return f"{scheme.lower()}://{path}"


def _of_url(address: str, scheme: str, rest: str, base: str) -> Resolved:
    if "@" in rest.partition("/")[0]:
        raise UsageError(
            f"{redact(_shown(address))}: a URL must hold no credentials; use the AWS environment variables or a profile"
        )
    if scheme in ("s3", "minio"):
        return _in_bucket(f"{scheme}://{rest}", base)
    if scheme == "file":
        return _on_disk(str(parse_path(address)), base)
    advice = "download the images first" if scheme in _WEB else "copy or mount them"
    raise UsageError(
        f"{_shown(address)}: {scheme}:// is no storage that images are read from; wanted a path, s3://bucket/key or "
        f"minio://server/bucket/key: {advice}, and list the copies"
    )


def _on_disk(path: str, base: str) -> Resolved:
    path = _normal(path)
    if path in ("/", base):
        raise UsageError(f"{_shown(path)} is a folder; wanted an image")
    raw = path.encode("utf-8", "surrogateescape")
    if len(raw) > MAX_PATH or (len(raw) > MAX_NAME and max(map(len, raw.split(b"/"))) > MAX_NAME):
        raise UsageError(
            f"{_shown(path)} has {len(raw):,} bytes; wanted at most {MAX_PATH:,}, and {MAX_NAME} in each name"
        )
    inside = base if base.endswith("/") else base + "/"
    if path.startswith(inside) and not re.search(_SPECIAL_ON_DISK, path[len(inside) :]):
        key = path[len(inside) :]
        return Resolved(base, key, key)
    return Resolved("/", path[1:], path)


def _normal(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")


def _in_bucket(url: str, base: str) -> Resolved:
    scheme, _, rest = url.partition("://")
    server, rest = rest.split("/", 1) if scheme == "minio" and "/" in rest else ("", rest)
    bucket, _, key = rest.partition("/")
    if not _BUCKET.fullmatch(bucket) or not key or (scheme == "minio" and not server):
        wanted = "s3://bucket/key" if scheme == "s3" else "minio://server/bucket/key"
        raise UsageError(f"{_shown(url)} names no object; wanted {wanted}")
    if len(raw := key.encode("utf-8", "surrogateescape")) > MAX_KEY:
        raise UsageError(f"{_shown(url)}: a key of {len(raw):,} bytes; wanted at most {MAX_KEY:,}")
    below = url.removeprefix(base + "/")
    if below != url and not re.search(_SPECIAL_ON_S3, below):
        return Resolved(base, below, below)
    return Resolved(url[: -len(key) - 1], key, url)


def _resolved_batch(batch: pa.RecordBatch, origin: Origin) -> pa.RecordBatch:
    """Most lines are plain names, which Arrow tells from the others at once: 0.3 us each, where `resolve` takes 7."""
    column, is_plain = _plain_uris(batch["address"], origin)
    is_plain = pc.and_(is_plain, pc.is_null(batch["raw_address"]))
    left = np.flatnonzero(~is_plain.to_numpy(zero_copy_only=False))
    if not len(left):
        return batch if column is batch["address"] else batch.set_column(0, LISTED.field("address"), column)
    written, texts, rows = addresses_of(batch), column.to_pylist(), batch["row"]
    for at in left.tolist():
        texts[at] = _uri(written[at], rows[at], origin)
    others = {name: batch[name] for name in batch.schema.names if name not in ("address", "raw_address", "row")}
    return batch_of(texts, rows.to_numpy(), others)


def _plain_uris(column: pa.Array, origin: Origin) -> tuple[pa.Array, pa.Array]:
    """The uris of addresses, string (n,), and which of them are right, bool (n,): what is relative, below the base or
    whole, and has nothing to resolve.
    """
    base = origin.base
    inside, uris, used = base.rstrip("/") + "/", column, len(base.encode("utf-8", "surrogateescape")) + 1
    is_inside = pc.and_not(pc.starts_with(column, inside), pa.scalar(origin.keeps_whole))
    if pc.any(is_inside).as_py():
        uris = pc.if_else(is_inside, pc.utf8_slice_codeunits(column, len(inside)), column)
    special = _SPECIAL_ON_S3 if is_remote(base) else _SPECIAL_ON_DISK
    is_whole = pc.and_not(pc.match_substring_regex(column, "^/"), pc.match_substring_regex(column, _TO_RESOLVE))
    is_whole = pc.and_not(pc.or_(is_whole, pc.match_substring_regex(column, _WHOLE_URL)), pc.equal(column, base))
    is_right = pc.or_(pc.invert(pc.match_substring_regex(uris, special)), pc.and_not(is_whole, is_inside))
    room = MAX_KEY - used if is_remote(base) else min(MAX_NAME, MAX_PATH - used)
    return uris, pc.and_(is_right, pc.less_equal(pc.binary_length(column), min(room, MAX_NAME)))


def _uri(address: str, row: pa.Scalar, origin: Origin) -> str:
    try:
        found = resolve(address, origin.base)
    except UsageError as error:
        raise UsageError(f"{origin.at(row.as_py())}: {error}") from error
    is_whole = origin.keeps_whole and (address.startswith("/") or _SCHEME.match(address))
    return f"{found.place.rstrip('/')}/{found.key}" if is_whole else found.uri


def _shown(address: str) -> str:
    whole = escape_bytes_anyway(address)
    return repr(whole if len(whole) <= SHOWN else whole[:SHOWN] + "...")
