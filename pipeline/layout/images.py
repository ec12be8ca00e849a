"""Reading images by id: from the catalog row to the bytes in its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.layout.root import opened
from pipeline.layout.snapshots import Snapshot, catalog_rows_of
from pipeline.sources.folder import decode_key
from pipeline.storage import ObjectInfo, StorageConfig, Store


@dataclass(frozen=True)
class ImageObject:
    """Where the bytes of one image are, and what was listed of them."""

    source: str
    info: ObjectInfo

    def read(self, storage: StorageConfig) -> bytes:
        """The bytes. Raises a StorageError: missing, changed, denied, unreachable."""
        return opened(self.source, storage).read(self.info.key, expect=self.info)


def image_object(row: dict[str, Any], snapshot: Snapshot) -> ImageObject:
    """The object of a catalog row."""
    key = decode_key(row["uri"], row["raw_key"])
    info = ObjectInfo(key, row["size_bytes"], row["etag"] or "", row["mtime_ns"] or 0)
    return ImageObject(snapshot.sources[row["source"]].uri, info)


def image_objects_of(store: Store, snapshot: Snapshot, ids: NDArray[np.int64]) -> dict[int, ImageObject]:
    """The objects of some ids."""
    rows = catalog_rows_of(store, snapshot, ids).to_pylist()
    return {row["image_id"]: image_object(row, snapshot) for row in rows}


def shown_uris(rows: pa.Table, snapshot: Snapshot) -> pa.Array:
    """The uri of each catalog row as tables show it: relative to its source, in full where there are several."""
    if len(snapshot.sources) == 1:
        return rows["uri"].combine_chunks()
    prefixes = [source.uri for source in snapshot.sources]
    joined = [
        f"{prefixes[source]}/{uri}"
        for source, uri in zip(rows["source"].to_pylist(), rows["uri"].to_pylist(), strict=True)
    ]
    return pa.array(joined, pa.string())
