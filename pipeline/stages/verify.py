"""Verify stage: decides on the pixels of both images what each candidate pair is."""

from __future__ import annotations

import logging
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import AccessDenied, CorruptObject, NotFound, ObjectChanged
from pipeline.kernels.decode import luminance_thumbnail
from pipeline.kernels.header import ImageError
from pipeline.kernels.verify import (
    Evidence,
    PreparedImage,
    compare,
    kind_without_pixels,
    may_skip,
    prepare,
)
from pipeline.kernels.verify_params import VerifyParams
from pipeline.layout.exact import read_pinned_features
from pipeline.layout.features import read_feature_rows
from pipeline.layout.images import BYTES_AHEAD, ImageObject, image_objects_of
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import EDGES, PAIRS
from pipeline.layout.parts import part_name
from pipeline.layout.tables import read_rows, write_table
from pipeline.runner import Counters
from pipeline.schemas import EDGES as EDGES_TABLE
from pipeline.schemas import Kind, Status
from pipeline.sources.folder import encode_key
from pipeline.storage import StorageConfig, Store, is_remote

log = logging.getLogger(__name__)

VERSION = 3
KEPT_IMAGES = 512  # 256 x 256 bytes and their features: about 0.2 MB each
READS_IN_FLIGHT = 16
UNREADABLE = (NotFound, ObjectChanged, CorruptObject, AccessDenied, ImageError)
"""Why a pair is judged without pixels. A store that is away is none of them: the part fails and is done later."""


@dataclass(frozen=True)
class VerifySpec:
    """Rows [lo, hi) of the collected pairs. known: key of what earlier audits found of all of them, "" = nothing."""

    inputs: Inputs
    pairs: str
    folder: str
    params: VerifyParams
    max_pixels: int
    known: str
    lo: int
    hi: int


def verify(spec: VerifySpec) -> Counters:
    """Commits the kind and the evidence of a range of pairs."""
    store = spec.inputs.root.open()
    pairs = read_rows(store, f"{spec.pairs}/{PAIRS}", spec.lo, spec.hi)
    rows = pairs.to_pylist()
    known = _known(store, spec, rows)
    looked_at = [row for row, found in zip(rows, known, strict=True) if not (found or _skips(row, spec.params))]
    prepared = _Prepared(spec, looked_at)
    evidence = [found or _evidence(row, prepared, spec.params) for row, found in zip(rows, known, strict=True)]
    write_table(store, f"{spec.folder}/{part_name(EDGES, spec.lo, spec.hi)}", _edge_table(pairs, evidence))
    kinds = [item["kind"] for item in evidence]
    seen = {"pairs": len(rows), "looked_at": len(looked_at), "reused": sum(map(bool, known))}
    return seen | {kind: kinds.count(kind) for kind in set(kinds)}


def halves(spec: VerifySpec) -> list[VerifySpec]:
    """The spec cut in two; itself where it holds one pair."""
    middle = (spec.lo + spec.hi) // 2
    return [replace(spec, lo=lo, hi=hi) for lo, hi in ((spec.lo, middle), (middle, spec.hi)) if lo < hi]


def quarantine(spec: VerifySpec, cause: str) -> Counters:
    """Commits one pair that killed or hung its process twice: its kind follows from similarity, the log names it.

    Raises StorageUnavailable where a pair hung whose images cannot be had now: it may have been the store that hung.
    """
    store = spec.inputs.root.open()
    pairs = read_rows(store, f"{spec.pairs}/{PAIRS}", spec.lo, spec.hi)
    (row,) = pairs.to_pylist()
    ids = (row["image_id"], row["match_id"])
    images = image_objects_of(store, spec.inputs.opened_snapshot(), np.array(ids, np.int64))
    if cause == Status.TIMEOUT.value:
        for image_id in ids:
            _read_bytes(images[image_id], spec.inputs.root.storage)
    names = " and ".join(f"{encode_key(images[image_id].info.key)[0]} ({image_id})" for image_id in ids)
    log.warning("%s: the process that compared their pixels died or hung twice; similarity alone decides", names)
    evidence = _unseen(kind_without_pixels(row["similarity"], row["signature_similarity"], spec.params))
    write_table(store, f"{spec.folder}/{part_name(EDGES, spec.lo, spec.hi)}", _edge_table(pairs, [evidence]))
    return {"pairs": 1, "looked_at": 0, "reused": 0, evidence["kind"]: 1, cause: 1}


def _known(store: Store, spec: VerifySpec, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What an earlier audit found on the pixels of each pair, empty where there is nothing or it is not asked for."""
    if not spec.known:
        return [{}] * len(rows)
    verdicts = read_rows(store, spec.known, spec.lo, spec.hi).to_pylist()
    return [
        {} if found["kind"] is None or _skips(row, spec.params) else {**found, "is_verified": True}
        for row, found in zip(rows, verdicts, strict=True)
    ]


def _skips(row: dict[str, Any], params: VerifyParams) -> bool:
    return may_skip(row["similarity"], row["signature_similarity"], params)


def _evidence(row: dict[str, Any], prepared: _Prepared, params: VerifyParams) -> dict[str, Any]:
    if _skips(row, params):
        return _unseen(Kind.NEAR_IDENTICAL)
    a, b = prepared.get(row["image_id"]), prepared.get(row["match_id"])
    if a is None or b is None:
        return _unseen(kind_without_pixels(row["similarity"], row["signature_similarity"], params))
    found: Evidence = compare(a, b, params)
    return {
        "kind": found.kind.value,
        "correlation": float(found.correlation),
        "overlap": float(found.overlap),
        "is_mirrored": bool(found.mirrored),
        "is_verified": True,
    }


def _unseen(kind: Kind) -> dict[str, Any]:
    return {"kind": kind.value, "correlation": None, "overlap": None, "is_mirrored": None, "is_verified": False}


def _edge_table(pairs: pa.Table, evidence: list[dict[str, Any]]) -> pa.Table:
    columns: dict[str, Any] = {name: pairs[name] for name in pairs.column_names}
    for name in ("kind", "correlation", "overlap", "is_mirrored", "is_verified"):
        columns[name] = [item[name] for item in evidence]
    return pa.table({name: columns[name] for name in EDGES_TABLE.schema.names}, schema=EDGES_TABLE.schema)


class _Prepared:
    """Images prepared for comparison, the latest few hundred kept; None for one that cannot be read any more."""

    def __init__(self, spec: VerifySpec, rows: list[dict[str, Any]]) -> None:
        snapshot = spec.inputs.opened_snapshot()
        ids = np.array(sorted({row[name] for row in rows for name in ("image_id", "match_id")}), np.int64)
        self._objects = image_objects_of(spec.inputs.root.open(), snapshot, ids)
        self._spec = spec
        self._kept: OrderedDict[int, PreparedImage | None] = OrderedDict()
        self._is_remote = any(is_remote(source.uri) for source in snapshot.sources)
        self._rows = rows
        self._bytes: dict[int, bytes | None] = {}

    def get(self, image_id: int) -> PreparedImage | None:
        """The prepared image."""
        if image_id in self._kept:
            self._kept.move_to_end(image_id)
            return self._kept[image_id]
        made = self._prepare(image_id)
        self._kept[image_id] = made
        if len(self._kept) > KEPT_IMAGES:
            self._kept.popitem(last=False)
        return made

    def _prepare(self, image_id: int) -> PreparedImage | None:
        data = self._read(image_id)
        if data is None:
            return None
        try:
            luminance = luminance_thumbnail(data, self._spec.params.side, self._spec.max_pixels)
        except UNREADABLE:
            return None
        return prepare(luminance, self._spec.params)

    def _read(self, image_id: int) -> bytes | None:
        if not self._is_remote:
            return self._read_now(image_id)
        if image_id not in self._bytes:
            self._fetch_ahead(image_id)
        return self._bytes.pop(image_id)

    def _fetch_ahead(self, image_id: int) -> None:
        """Reads this image and the next ones of the pairs at once: a store answers in tens of milliseconds."""
        order = list(dict.fromkeys(row[name] for row in self._rows for name in ("image_id", "match_id")))
        at = order.index(image_id)
        wanted = [i for i in order[at : at + 4 * READS_IN_FLIGHT] if i not in self._kept and i not in self._bytes]
        sizes = np.cumsum([self._objects[i].info.size for i in wanted])
        del wanted[max(1, int(np.searchsorted(sizes, BYTES_AHEAD, "right"))) :]
        with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
            self._bytes.update(zip(wanted, pool.map(self._read_now, wanted), strict=True))

    def _read_now(self, image_id: int) -> bytes | None:
        try:
            image = self._objects[image_id]
            return image.read_as_extracted(self._spec.inputs.root.storage, lambda: self._extracted(image_id))
        except UNREADABLE:
            return None

    def _extracted(self, image_id: int) -> bytes | None:
        store = self._spec.inputs.root.open()
        features = read_pinned_features(store, self._spec.inputs.exact)
        rows = read_feature_rows(store, features, image_id, image_id + 1, ["content_hash"])
        found: bytes | None = rows["content_hash"][0].as_py()
        return found


def _read_bytes(image: ImageObject, storage: StorageConfig) -> bytes | None:
    try:
        return image.read(storage)
    except UNREADABLE:
        return None
