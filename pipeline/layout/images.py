"""Reading images by id: from the catalog row to the bytes in its source, or in a file of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import ObjectChanged
from pipeline.kernels.hashing import content_hash
from pipeline.kernels.header import ImageError
from pipeline.layout.fragments import Parent
from pipeline.layout.inputs import Inputs
from pipeline.layout.members import member_content, read_span
from pipeline.layout.root import Root, opened
from pipeline.layout.snapshots import Snapshot
from pipeline.schemas import Status
from pipeline.sources.folder import decode_key, escape_key
from pipeline.sources.fragments import Fragment, fragment_uri
from pipeline.storage import ObjectInfo


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
    def expected(self) -> ObjectInfo:
        """What its file must still be: the time of one on disk may be another, where it was only touched."""
        return replace(self.info, mtime_ns=0)

    @property
    def parent(self) -> Parent:
        """The file that it is, or lies in."""
        return Parent(self.source, self.info, self.kind)

    def read(self, root: Root) -> bytes:
        """The bytes, whatever the time of a file. Raises a StorageError: missing, changed, denied, unreachable; and
        ImageError for a fragment that is not what its file says.
        """
        return self._read(root, self.expected)

    def read_as_extracted(self, root: Root, extracted: Callable[[], bytes | None]) -> bytes:
        """The bytes, if they are those whose content hash `extracted` tells; it is asked only where a file's time
        differs from the listed one: a touched file, or another one of the same size. Raises as `read` does.
        """
        try:
            return self._read(root, self.info)
        except ObjectChanged:
            if self.info.etag:
                raise
        data = self.read(root)
        if content_hash(data) != extracted():
            raise ObjectChanged(f"read {self.name}: it was replaced after it was extracted; run again")
        return data

    def _read(self, root: Root, expect: ObjectInfo) -> bytes:
        if self.fragment is None:
            return opened(self.source, root.storage).read(self.info.key, expect=expect)
        if self.fragment.problem:
            raise problem_error(self.fragment)
        span = read_span(root, self.parent, self.fragment.position, self.fragment.length, expect)
        return member_content(self.kind, span, self.fragment)


def problem_error(fragment: Fragment) -> ImageError:
    """The error of a file that could not be looked into."""
    status, _, message = fragment.problem.partition(": ")
    return ImageError(Status(status), message)


def image_object(row: dict[str, Any], snapshot: Snapshot) -> ImageObject:
    """The object of a catalog row."""
    source = snapshot.sources[row["source"]].place
    uri, name, etag, time = row["uri"], row["fragment"], row["etag"] or "", row["mtime_ns"] or 0
    if row["position"] is None:
        return ImageObject(source, ObjectInfo(decode_key(uri, row["raw_key"]), row["size_bytes"], etag, time))
    key = decode_key(uri[: -len(name) - 1] if name else uri, row["raw_key"])
    fragment = Fragment(name or "", row["position"], row["length"], row["size_bytes"], row["problem"] or "")
    return ImageObject(source, ObjectInfo(key, row["parent_size"], etag, time), fragment, row["parent_kind"])


def image_objects_of(inputs: Inputs, ids: NDArray[np.int64]) -> dict[int, ImageObject]:
    """The objects of some ids; costs by how many they are."""
    snapshot = inputs.opened_snapshot()
    rows = inputs.catalog_rows_of(ids).to_pylist()
    return {image_id: image_object(row, snapshot) for image_id, row in zip(ids.tolist(), rows, strict=True)}


def paths_of(rows: pa.Table, snapshot: Snapshot) -> pa.Array:
    """Where the file or object of each catalog row is: source, `/`, key; null where the key is not UTF-8.

    Of a fragment it is that of its file, `#` and its name.
    """
    prefixes = pa.array([f"{source.place.rstrip('/')}/" for source in snapshot.sources], pa.string())
    keys, raw_keys, names = (rows[column].combine_chunks() for column in ("uri", "raw_key", "fragment"))
    if raw_keys.null_count < len(raw_keys):
        keys = pa.array([*map(_text_key, keys.to_pylist(), raw_keys.to_pylist(), names.to_pylist())], pa.string())
    return pc.binary_join_element_wise(prefixes.take(rows["source"].combine_chunks()), keys, "")


def _text_key(uri: str, raw_key: bytes | None, name: str | None) -> str | None:
    try:
        return uri if raw_key is None else fragment_uri(raw_key.decode(), name or "")
    except UnicodeDecodeError:
        return None
