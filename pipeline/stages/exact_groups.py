"""Exact groups stage: images with the same bytes, then the same pixels; one representative of each goes on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.components import Forest, labels_for, merge_forests
from pipeline.kernels.hash_groups import hash_bytes, hash_group_edges
from pipeline.kernels.sampling import mix
from pipeline.layout.annotations import read_codes
from pipeline.layout.exact import FEATURES, MEMBER_SCHEMA, MEMBERS, SUMMARY, usable
from pipeline.layout.features import FeatureSet, pinned_to_json, read_feature_rows
from pipeline.layout.root import Root
from pipeline.layout.snapshots import read_snapshot, removed_ids
from pipeline.layout.tables import json_bytes, parquet_bytes
from pipeline.runner import Counters
from pipeline.schemas import Status
from pipeline.storage import Store

VERSION = 1
BLOCK = 262_144


@dataclass(frozen=True)
class ExactSpec:
    """Features and annotations of a snapshot, grouped into a folder."""

    root: Root
    snapshot: int
    features: FeatureSet
    annotations: str
    folder: str


@dataclass(frozen=True)
class _Hashes:
    """Of every ok and live image: id, content hash and pixel hash (n, 16) with masks of what is there."""

    ids: NDArray[np.int64]
    content: NDArray[np.uint8]
    has_content: NDArray[np.bool_]
    pixels: NDArray[np.uint8]
    has_pixels: NDArray[np.bool_]


def group_exact(spec: ExactSpec) -> Counters:
    """Commits the members of exact groups and the summary (the done-marker). 48 bytes of memory per image."""
    store = spec.root.open()
    snapshot = read_snapshot(store, spec.snapshot)
    gone = removed_ids(store, snapshot)
    store.put(f"{spec.folder}/{FEATURES}", json_bytes(pinned_to_json(spec.features)))
    hashes, statuses, digest = _read_hashes(store, spec.features, snapshot.total, gone)
    same_bytes = hash_group_edges(hashes.ids, hashes.content, hashes.has_content)
    same_pixels = hash_group_edges(hashes.ids, hashes.pixels, hashes.has_pixels)
    forest = merge_forests([same_bytes, same_pixels])
    members = _members(store, spec, forest, same_bytes)
    store.put(f"{spec.folder}/{MEMBERS}", parquet_bytes(members))
    summary = {
        "digest": digest,
        "live": sum(statuses.values()),
        "ok": len(hashes.ids),
        "representatives": len(hashes.ids) - len(forest.child),
        "statuses": dict(sorted(statuses.items())),
    }
    store.put(f"{spec.folder}/{SUMMARY}", json_bytes(summary))
    return {"images": len(hashes.ids), "copies": len(forest.child)}


def _read_hashes(
    store: Store, features: FeatureSet, total: int, gone: NDArray[np.int64]
) -> tuple[_Hashes, Counter[str], str]:
    pieces: list[_Hashes] = []
    statuses: Counter[str] = Counter()
    digest = np.uint64(0)
    for lo in range(0, total, BLOCK):
        names = ["image_id", "status", "content_hash", "pixel_hash"]
        rows = read_feature_rows(store, features, lo, min(lo + BLOCK, total), names)
        live = ~np.isin(rows["image_id"].to_numpy(), gone)
        status = rows["status"].to_numpy()
        statuses.update(status[live].tolist())
        digest += _digest(rows, live)
        keep = usable(rows, gone)
        content, has_content = hash_bytes(rows["content_hash"])
        pixels, has_pixels = hash_bytes(rows["pixel_hash"])
        ids = rows["image_id"].to_numpy()
        pieces.append(_Hashes(ids[keep], content[keep], has_content[keep], pixels[keep], has_pixels[keep]))
    joined = (
        [np.concatenate([getattr(p, name) for p in pieces]) for name in _Hashes.__dataclass_fields__] if pieces else []
    )
    if not joined:
        empty = np.empty((0, 16), np.uint8)
        nothing = np.empty(0, bool)
        joined = [np.empty(0, np.int64), empty, nothing, empty, nothing]
    return _Hashes(*joined), statuses, f"{int(digest):016x}"


def _digest(rows: pa.Table, live: NDArray[np.bool_]) -> np.uint64:
    """A sum over rows, so that it does not depend on how the rows were cut into parts."""
    order = [status.value for status in Status]
    status = np.array([order.index(value) for value in rows["status"].to_pylist()], np.uint64)
    content, is_there = hash_bytes(rows["content_hash"])
    # what lies behind a null is not specified
    words = np.where(is_there[:, None], content, 0).astype(np.uint8).view(np.uint64)
    ids = mix(rows["image_id"].to_numpy())
    row = mix((ids ^ words[:, 0] ^ (status << np.uint64(56))).view(np.int64), 1)
    total: np.uint64 = row[live].sum(dtype=np.uint64)
    return total


def _members(store: Store, spec: ExactSpec, forest: Forest, same_bytes: Forest) -> pa.Table:
    ids = np.union1d(forest.child, forest.root)
    representative = labels_for(ids, forest)
    codes = read_codes(store, spec.annotations)
    columns = [ids, representative, labels_for(ids, same_bytes), codes.split[ids], codes.label[ids]]
    return pa.table(dict(zip(MEMBER_SCHEMA.names, columns, strict=True)), schema=MEMBER_SCHEMA)
