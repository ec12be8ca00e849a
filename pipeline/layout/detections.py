"""What a detector found in images: packs of some hundred images each, looked up by what tells an image from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.layout.images import ImageObject
from pipeline.layout.snapshots import FOLDER as CATALOG
from pipeline.layout.tables import parquet_bytes, read_table
from pipeline.storage import Store

FOLDER = f"{CATALOG}/detections"
KEY_BYTES = 16
SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES), False),
        pa.field("is_decoded", pa.bool_(), False),
        pa.field("boxes", pa.list_(pa.string()), False),
        pa.field("labels", pa.list_(pa.string()), False),
        pa.field("confidences", pa.list_(pa.float64()), False),
    ]
)


class Found(NamedTuple):
    """What was found in one image: names of boxes (`kernels.boxes.box_name`), their labels and confidences.

    `is_decoded`: whether the image could be looked at; one that could not has no boxes.
    """

    is_decoded: bool
    boxes: list[str]
    labels: list[str]
    confidences: list[float]


def image_key(image: ImageObject) -> bytes:
    """What tells an image, and a state of it, from any other."""
    info, inside = image.info, image.fragment
    time = 0 if info.etag else info.mtime_ns
    told = [image.source, info.key, info.size, info.etag, time, "" if inside is None else inside.name]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=KEY_BYTES).digest()


def pack_key(folder: str, keys: Sequence[bytes]) -> str:
    """Key of the pack of some images."""
    return f"{folder}/{hashlib.blake2b(b''.join(keys), digest_size=16).hexdigest()}.parquet"


def write_pack(store: Store, key: str, found: Sequence[tuple[bytes, Found]]) -> None:
    """Commits a pack of one image or more."""
    columns = zip(*((name, *item) for name, item in found), strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    store.put(key, parquet_bytes(pa.table(arrays, schema=SCHEMA)))


class KnownDetections:
    """The packs of a folder: 12 bytes are held for each image."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder
        self._packs: list[str] = []
        self._hashes: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._pack_of: NDArray[np.int32] = np.empty(0, np.int32)
        self.refresh()

    def refresh(self) -> None:
        """Takes up the packs that were committed since."""
        known = set(self._packs)
        new = [info.key for info in self._store.list(f"{self._folder}/") if info.key not in known]
        hashes, numbers = [self._hashes], [self._pack_of]
        for number, key in enumerate(new, len(self._packs)):
            found = _hashes(read_table(self._store, key, ["key"])["key"])
            hashes.append(found)
            numbers.append(np.full(len(found), number, np.int32))
        self._packs += new
        order = np.argsort(whole := np.concatenate(hashes), kind="stable")
        self._hashes, self._pack_of = whole[order], np.concatenate(numbers)[order]

    def of(self, keys: Sequence[bytes]) -> list[Found | None]:
        """What was found in some images; None for one that no pack has. Packs are read once for all of them."""
        wanted = _hashes(pa.array(keys, pa.binary(KEY_BYTES)))
        at = np.minimum(np.searchsorted(self._hashes, wanted), max(0, len(self._hashes) - 1))
        there = np.flatnonzero(self._hashes[at] == wanted) if len(self._hashes) else np.empty(0, np.int64)
        found: dict[bytes, Found] = {}
        for number in np.unique(self._pack_of[at[there]]).tolist():
            rows = read_table(self._store, self._packs[number]).to_pydict()
            items = map(Found, *(rows[name] for name in Found._fields))
            found.update(zip(rows["key"], items, strict=True))
        return [found.get(key) for key in keys]


def _hashes(keys: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    joined = b"".join(keys.to_pylist())
    return np.frombuffer(joined, np.uint64)[:: KEY_BYTES // 8].copy()
