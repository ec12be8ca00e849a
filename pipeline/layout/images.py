"""Reading images by id: from the catalog row to the bytes in its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import ObjectChanged
from pipeline.kernels.hashing import content_hash
from pipeline.layout.inputs import Inputs
from pipeline.layout.root import opened
from pipeline.layout.snapshots import Snapshot
from pipeline.sources.folder import decode_key
from pipeline.storage import ObjectInfo, StorageConfig


@dataclass(frozen=True)
class ImageObject:
    """Where the bytes of one image are, and what was listed of them."""

    source: str
    info: ObjectInfo

    def read(self, storage: StorageConfig) -> bytes:
        """The bytes, whatever the time of a file. Raises a StorageError: missing, changed, denied, unreachable."""
        info = self.info
        return opened(self.source, storage).read(info.key, expect=ObjectInfo(info.key, info.size, info.etag, 0))

    def read_as_extracted(self, storage: StorageConfig, extracted: Callable[[], bytes | None]) -> bytes:
        """The bytes, if they are those whose content hash `extracted` tells; it is asked only where a file's time
        differs from the listed one: a touched file, or another one of the same size. Raises as `read` does.
        """
        try:
            return opened(self.source, storage).read(self.info.key, expect=self.info)
        except ObjectChanged:
            if self.info.etag:
                raise
        data = self.read(storage)
        if content_hash(data) != extracted():
            raise ObjectChanged(
                f"read {self.source}/{self.info.key}: it was replaced after it was extracted; run again"
            )
        return data


def image_object(row: dict[str, Any], snapshot: Snapshot) -> ImageObject:
    """The object of a catalog row."""
    key = decode_key(row["uri"], row["raw_key"])
    info = ObjectInfo(key, row["size_bytes"], row["etag"] or "", row["mtime_ns"] or 0)
    return ImageObject(snapshot.sources[row["source"]].uri, info)


def image_objects_of(inputs: Inputs, ids: NDArray[np.int64]) -> dict[int, ImageObject]:
    """The objects of some ids; costs by how many they are."""
    snapshot = inputs.opened_snapshot()
    rows = inputs.catalog_rows_of(ids).to_pylist()
    return {image_id: image_object(row, snapshot) for image_id, row in zip(ids.tolist(), rows, strict=True)}


def paths_of(rows: pa.Table, snapshot: Snapshot) -> pa.Array:
    """Where the file or object of each catalog row is: source, `/`, key; null where the key is not UTF-8."""
    prefixes = pa.array([f"{source.uri.rstrip('/')}/" for source in snapshot.sources], pa.string())
    keys, raw_keys = rows["uri"].combine_chunks(), rows["raw_key"].combine_chunks()
    if raw_keys.null_count < len(raw_keys):
        keys = pa.array([*map(_text_key, keys.to_pylist(), raw_keys.to_pylist())], pa.string())
    return pc.binary_join_element_wise(prefixes.take(rows["source"].combine_chunks()), keys, "")


def _text_key(uri: str, raw_key: bytes | None) -> str | None:
    try:
        return uri if raw_key is None else raw_key.decode()
    except UnicodeDecodeError:
        return None
