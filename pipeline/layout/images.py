"""Reading images by id: from the catalog row to the bytes in its source, or in a file of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.kernels.header import ImageError
from pipeline.layout.fragments import Parent
from pipeline.layout.inputs import Inputs
from pipeline.layout.members import member_content, read_span
from pipeline.layout.root import Root, opened_source
from pipeline.layout.snapshots import LIST, Snapshot, SourceRecord
from pipeline.schemas import Status
from pipeline.sources.folder import decode_key, escape_key
from pipeline.sources.fragments import VIDEO, Fragment, fragment_uri
from pipeline.storage import Begun, ObjectInfo


@dataclass(frozen=True)
class ImageObject:
    """Where the bytes of one image are: a file and what was listed of it, or a fragment of a file of a `kind`."""

    source: str
    info: ObjectInfo
    fragment: Fragment | None = None
    kind: str = ""

    @property
    def name(self) -> str:
        """Where it is, for messages."""
        uri = escape_key(self.info.key)
        return f"{self.source.rstrip('/')}/{uri if self.fragment is None else fragment_uri(uri, self.fragment.name)}"

    @property
    def size(self) -> int:
        """Bytes that it has, as listed."""
        return self.info.size if self.fragment is None else self.fragment.size

    @property
    def box(self) -> str:
        """The box that it is of an image, a member or a frame; "" where it is none."""
        return self.fragment.box if self.fragment else ""

    @property
    def is_frame(self) -> bool:
        """Whether it is a frame of a video, or a box of one."""
        return self.kind == VIDEO and self.fragment is not None and not self.fragment.problem

    @property
    def has_bytes(self) -> bool:
        """Whether it is a file or a member of an archive, not a box or a frame."""
        return not (self.box or self.is_frame)

    @property
    def whole(self) -> ImageObject:
        """The image that it is a box of; itself where it is none."""
        if not self.box or self.fragment is None:
            return self
        whole = self.fragment.whole
        return ImageObject(self.source, self.info) if whole is None else replace(self, fragment=whole)

    @property
    def expected(self) -> ObjectInfo:
        """What its file must still be: the time of one on disk may be another, where it was only touched."""
        return replace(self.info, mtime_ns=0)

    @property
    def parent(self) -> Parent:
        """The file that it is, or lies in."""
        return Parent(self.source, self.info, self.kind)

    def read(self, root: Root, expect: ObjectInfo | None = None) -> bytes:
        """The bytes, of a file that is still `expect` (None: whatever its time is). Raises a StorageError: missing,
        changed, denied, unreachable; and ImageError for a member that is not what its archive says.
        """
        expect = expect or self.expected
        if self.fragment is None:
            return opened_source(self.source, root.storage).read(self.info.key, expect=expect)
        if self.fragment.problem:
            raise problem_error(self.fragment)
        span = read_span(root, self.parent, self.fragment.position, self.fragment.length, expect)
        return member_content(self.kind, span, self.fragment)

    def begin(self, root: Root) -> Begun | None:
        """Ask for the bytes that `read` is going to return, of one that is a file of its own."""
        return opened_source(self.source, root.storage).begin(self.info.key, expect=self.expected)


def problem_error(fragment: Fragment) -> ImageError:
    """The error of a file that could not be looked into."""
    status, _, message = fragment.problem.partition(": ")
    return ImageError(Status(status), message)


def image_object(row: dict[str, Any], snapshot: Snapshot) -> ImageObject:
    """The object of a catalog row."""
    source = snapshot.sources[row["source"]]
    uri, name, etag, time = row["uri"], row["fragment"], row["etag"] or "", row["mtime_ns"] or 0
    if row["position"] is None:
        return listed_object(source, ObjectInfo(decode_key(uri, row["raw_key"]), row["size_bytes"], etag, time))
    key = decode_key(uri[: -len(name) - 1] if name else uri, row["raw_key"])
    fragment = Fragment(name or "", row["position"], row["length"], row["size_bytes"], row["problem"] or "")
    return listed_object(source, ObjectInfo(key, row["parent_size"], etag, time), fragment, row["parent_kind"])


def listed_object(
    source: SourceRecord, info: ObjectInfo, fragment: Fragment | None = None, kind: str = ""
) -> ImageObject:
    """The object of what was listed of a source; `info.key` as the catalog has it."""
    place, key = source.located(info.key)
    return ImageObject(place, info if key == info.key else replace(info, key=key), fragment, kind)


def image_objects_of(inputs: Inputs, ids: NDArray[np.int64]) -> dict[int, ImageObject]:
    """The objects of some ids; costs by how many they are."""
    snapshot = inputs.opened_snapshot()
    rows = inputs.catalog_rows_of(ids).to_pylist()
    return {image_id: image_object(row, snapshot) for image_id, row in zip(ids.tolist(), rows, strict=True)}


_ABSOLUTE = "^(/|s3://|minio://)"
PARENT_COLUMNS = ("source", "uri", "parent_kind")
NO_PARENT = -1


def parents_of(rows: pa.Table) -> NDArray[np.int64]:
    """What each catalog row (PARENT_COLUMNS of it) is a frame or box of, int64 (n,): a hash of the uri of the file or
    archive member, equal for the children of one; NO_PARENT for a file or member.
    """
    found = np.full(rows.num_rows, NO_PARENT, np.int64)
    kinds, uris = rows["parent_kind"].combine_chunks(), rows["uri"].combine_chunks()
    if kinds.null_count == len(kinds):
        return found
    parents = pc.replace_substring_regex(uris, "#(xywh|corners)=[^#]*$", "")
    is_frame = pc.fill_null(pc.equal(kinds, VIDEO), fill_value=False)
    parents = pc.if_else(is_frame, pc.replace_substring_regex(parents, "#t=[^#]*$", ""), parents)
    at = np.flatnonzero(pc.not_equal(parents, uris).to_numpy(zero_copy_only=False))
    sources = pc.cast(rows["source"].combine_chunks(), pa.string())
    named = pc.binary_join_element_wise(sources, parents, " ").take(pa.array(at)).dictionary_encode()
    hashes = np.array([*map(_hashed, named.dictionary.to_pylist())], np.int64)
    found[at] = hashes[named.indices.to_numpy()]
    return found


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def paths_of(rows: pa.Table, snapshot: Snapshot) -> pa.Array:
    """Where the file or object of each catalog row is: source, `/`, key; null where the key is not UTF-8. The key of a
    list may be the whole path or URL.

    Of a fragment it is that of its file, `#` and its name.
    """
    prefixes = pa.array([f"{source.place.rstrip('/')}/" for source in snapshot.sources], pa.string())
    are_lists = pa.array([source.kind == LIST for source in snapshot.sources], pa.bool_())
    keys, raw_keys, names = (rows[column].combine_chunks() for column in ("uri", "raw_key", "fragment"))
    if raw_keys.null_count < len(raw_keys):
        keys = pa.array([*map(_text_key, keys.to_pylist(), raw_keys.to_pylist(), names.to_pylist())], pa.string())
    sources = rows["source"].combine_chunks()
    is_whole = pc.and_(are_lists.take(sources), pc.fill_null(pc.match_substring_regex(keys, _ABSOLUTE), False))
    return pc.binary_join_element_wise(pc.if_else(is_whole, "", prefixes.take(sources)), keys, "")


def _text_key(uri: str, raw_key: bytes | None, name: str | None) -> str | None:
    try:
        return uri if raw_key is None else fragment_uri(raw_key.decode(), name or "")
    except UnicodeDecodeError:
        return None
