"""Uris of stores: `s3://bucket/prefix`, `minio://server/bucket/prefix`, `file:///path` and plain paths."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from pipeline.errors import UsageError
from pipeline.storage.interface import StorageConfig
from pipeline.storage.redact import redact

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HOST_PORT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]):(\d{1,5})")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_REMOTE = ("s3", "minio")


@dataclass(frozen=True)
class Bucket:
    """A place on an object store. endpoint: None = what the AWS configuration says. prefix: "" or no slash at the
    end.
    """

    uri: str
    endpoint: str | None
    bucket: str
    prefix: str


def is_remote(uri: str | os.PathLike[str]) -> bool:
    """Tell whether the uri names an object store rather than a folder."""
    match = _SCHEME.match(os.fspath(uri))
    return match is not None and match[1].lower() in _REMOTE


def canonical_uri(uri: str | os.PathLike[str], config: StorageConfig) -> str:
    """Return the one spelling of a uri: absolute path, or scheme://bucket/prefix without trailing slash.

    Symbolic links stay as they are named. Raises UsageError for anything that is no store or holds a credential.
    """
    if not isinstance(uri, (str, os.PathLike)):
        raise UsageError(f"{uri!r} is no path; wanted a folder, s3://bucket/prefix or minio://server/bucket/prefix")
    return parse_bucket(uri, config).uri if is_remote(uri) else str(parse_path(uri))


def parse_path(uri: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a plain path or `file://` uri (percent-decoded, host empty or localhost)."""
    text = os.fspath(uri)
    match = _SCHEME.match(text)
    if match is not None:
        _refuse_credentials(text)
        if match[1].lower() != "file":
            raise UsageError(
                f"{text}: {match[1]}:// is no storage; wanted a path, file:///path, s3://bucket/prefix "
                "or minio://server/bucket/prefix"
            )
        host, slash, path = match[2].partition("/")
        if host not in ("", "localhost") or not slash:
            raise UsageError(f"{text}: a file uri names a path on this machine; wanted file:///path (three slashes)")
        text = os.fsdecode(unquote_to_bytes(os.fsencode("/" + path)))
    if not text or "\0" in text:
        raise UsageError(f"{text!r} is no path; wanted a folder, s3://bucket/prefix or minio://server/bucket/prefix")
    return Path(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111 - Path.absolute() keeps ".."


def parse_bucket(uri: str | os.PathLike[str], config: StorageConfig) -> Bucket:
    """Split an `s3://` or `minio://` uri; `?`, `#` and `%` are ordinary characters of a key there."""
    text = os.fspath(uri)
    _refuse_credentials(text)
    match = _SCHEME.match(text)
    if match is None:
        raise UsageError(f"{text!r} is no object store; wanted s3://bucket/prefix or minio://server/bucket/prefix")
    scheme, rest = match[1].lower(), match[2]
    server = ""
    endpoint = config.endpoint_url
    if scheme == "minio":
        server, _, rest = rest.partition("/")
        endpoint = _endpoint(text, server, config)
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        wanted = "s3://bucket/prefix" if scheme == "s3" else "minio://server/bucket/prefix"
        raise UsageError(f"{text}: {bucket!r} is no bucket name; wanted {wanted}")
    if bucket.endswith("--x-s3"):
        raise UsageError(f"{text}: directory buckets list in no order and are not supported; use a general purpose one")
    prefix = prefix.rstrip("/")
    canonical = "/".join(part for part in (f"{scheme}:/", server, bucket, prefix) if part)
    return Bucket(canonical, endpoint, bucket, prefix)


def _endpoint(uri: str, server: str, config: StorageConfig) -> str:
    if server in config.endpoints:
        return config.endpoints[server]
    match = _HOST_PORT.fullmatch(server)
    if match is None or not 0 < int(match[1]) < 65536:
        known = ", ".join(sorted(config.endpoints)) or "none"
        raise UsageError(
            f"{uri}: {server!r} is neither host:port nor a name in the config's endpoints (known: {known})"
        )
    return f"{'https' if match[1] == '443' else 'http'}://{server}"


def _refuse_credentials(uri: str) -> None:
    if redact(uri) != uri or re.match(r"[a-z0-9+.-]+://[^/]*@", uri, re.IGNORECASE):
        raise UsageError(
            f"{redact(uri)}: a uri must hold no credentials or signature; use the AWS environment variables, "
            "a profile or an instance role"
        )
