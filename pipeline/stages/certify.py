"""Certify stage: how much of the truth an approximate search found, and the least certain outliers searched again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.hits import JoinParams, wilson
from pipeline.kernels.sampling import stable_sample_limit
from pipeline.layout.groups import read_forest
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import CANDIDATES, NEIGHBOUR_SCHEMA, NEIGHBOURS, RECALL, TAIL
from pipeline.layout.parts import list_parts
from pipeline.layout.searching import Index, copy_partition, neighbour_table, search_ids, semantic_partition
from pipeline.layout.tables import json_bytes, read_table, write_table
from pipeline.runner import Counters
from pipeline.storage import Store

VERSION = 1
TAIL_SHARE = 0.001
TAIL_LEAST, TAIL_MOST = 1000, 10_000


@dataclass(frozen=True)
class RecallSpec:
    """A sample of queries, searched exactly in both spaces and compared with what the joins found."""

    inputs: Inputs
    space: str
    groups: str
    candidates: str
    neighbours: str
    params: JoinParams
    threshold: float
    semantic_k: int
    sample: int
    folder: str


@dataclass(frozen=True)
class TailSpec:
    """The images whose neighbours were found to be furthest, searched exactly."""

    inputs: Inputs
    groups: str
    neighbours: str
    semantic_k: int
    outlier_neighbours: int
    folder: str


def measure_recall(spec: RecallSpec) -> Counters:
    """Commits found and true neighbours of a stable sample of queries with 95% intervals."""
    store = spec.inputs.root.open()
    value = {"copy": _copy_recall(store, spec), "semantic": _semantic_recall(store, spec)}
    store.put(f"{spec.folder}/{RECALL}", json_bytes(value))
    return {"queries": spec.sample}


def search_tail(spec: TailSpec) -> Counters:
    """Commits exact neighbours of the 0.1% (1,000 to 10,000 images) with the lowest mean similarity.

    An approximate search can only lower a similarity, so the images that are truly furthest are among those that
    look furthest, up to the margin that the share leaves.
    """
    store = spec.inputs.root.open()
    ids = _furthest(store, spec)
    partition = semantic_partition(spec.inputs, spec.groups, Index("", 1))
    hits = search_ids(partition, ids, JoinParams(k=spec.semantic_k + 1, k_cross=0))
    table = neighbour_table(hits, read_forest(store, spec.groups), spec.semantic_k)
    write_table(store, f"{spec.folder}/{TAIL}", table)
    return {"images": len(ids)}


def _copy_recall(store: Store, spec: RecallSpec) -> dict[str, float]:
    """Of the true pairs over the threshold of sampled queries, those that the join found from either side."""
    partition = copy_partition(spec.inputs, spec.space, Index("", 1))
    ids = _sampled(partition.rows.ids, spec.sample)
    hits = search_ids(partition, ids, spec.params)
    near = hits.take(hits.similarity >= spec.threshold)
    true = _unordered(near.query_id, near.match_id)
    parts = [
        read_table(store, part.key, ["image_id", "match_id"]) for part in list_parts(store, spec.candidates, CANDIDATES)
    ]
    found = pa.concat_tables(parts)
    return _share(true, _unordered(found["image_id"].to_numpy(), found["match_id"].to_numpy()))


def _semantic_recall(store: Store, spec: RecallSpec) -> dict[str, float]:
    partition = semantic_partition(spec.inputs, spec.groups, Index("", 1))
    ids = _sampled(partition.rows.ids, spec.sample)
    hits = search_ids(partition, ids, JoinParams(k=spec.semantic_k + 1, k_cross=0))
    true = neighbour_table(hits, read_forest(store, spec.groups), spec.semantic_k)
    found = _neighbours(store, spec.neighbours)
    kept = found.filter(pa.array(np.isin(found["image_id"].to_numpy(), ids)))
    return _share(_ordered(true), _ordered(kept))


def _share(true: NDArray[np.int64], found: NDArray[np.int64]) -> dict[str, float]:
    known = {tuple(pair) for pair in found.tolist()}
    hit = np.array([tuple(pair) in known for pair in true.tolist()], bool)
    low, high = wilson(int(hit.sum()), len(true))
    return {"found": int(hit.sum()), "total": len(true), "low95": low, "high95": high}


def _furthest(store: Store, spec: TailSpec) -> NDArray[np.int64]:
    rows = _neighbours(store, spec.neighbours)
    ids, similarity = rows["image_id"].to_numpy(), rows["similarity"].to_numpy()
    unique, start, count = np.unique(ids, return_index=True, return_counts=True)
    rank = np.arange(len(ids)) - np.repeat(start, count)
    near = np.where(rank < spec.outlier_neighbours, similarity, 0.0)
    mean = np.add.reduceat(near, start) / np.minimum(count, spec.outlier_neighbours)
    wanted = int(np.clip(TAIL_SHARE * len(unique), TAIL_LEAST, TAIL_MOST))
    order = np.lexsort((unique, mean))
    return np.sort(unique[order[:wanted]])


def _neighbours(store: Store, folder: str) -> pa.Table:
    parts = [read_table(store, part.key) for part in list_parts(store, folder, NEIGHBOURS)]
    return pa.concat_tables(parts) if parts else NEIGHBOUR_SCHEMA.empty_table()


def _sampled(ids: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    return ids[stable_sample_limit(ids, limit, 3)]


def _unordered(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    pairs = np.stack([np.minimum(a, b), np.maximum(a, b)], axis=1)
    return np.asarray(np.unique(pairs, axis=0), dtype=np.int64)


def _ordered(table: pa.Table) -> NDArray[np.int64]:
    return np.stack([table["image_id"].to_numpy(), table["match_id"].to_numpy()], axis=1)
