"""Certify stages: how much of the truth an approximate search found, and the furthest images searched again exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.hit_batches import hits_by_range, hits_of
from pipeline.kernels.hits import JoinParams, merge_hits, rows_of_pairs, wilson
from pipeline.kernels.join import search_everything
from pipeline.kernels.outliers import nearest_means
from pipeline.kernels.visits import NOT_OWNED, Routed, asking_batch, visits_of
from pipeline.layout.edges import each_in_order
from pipeline.layout.groups import read_forest
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import CANDIDATES, FURTHEST, FURTHEST_SCHEMA, RECALL, TAIL, TRUTH, TRUTH_SCHEMA
from pipeline.layout.parts import list_parts
from pipeline.layout.root import Root
from pipeline.layout.shuffle import read_batch, read_column, write_batches
from pipeline.layout.tables import json_bytes, parquet_bytes, read_table
from pipeline.layout.visits import Visits, partition_database
from pipeline.runner import Counters
from pipeline.stages.assign import ALL_SPLITS
from pipeline.stages.merge import TAIL_MOST, neighbour_table, outside_group
from pipeline.storage import Store

VERSION = 2
TAIL_SHARE = 0.001
TAIL_LEAST = 1000
QUERIES = "queries.shuffle"
CERTAIN = b"certain"


@dataclass(frozen=True)
class RecallSpec:
    """Folders of merged candidates and neighbours, whose truth is counted."""

    root: Root
    candidates: str
    neighbours: str
    folder: str


@dataclass(frozen=True)
class TailSpec:
    """The images that look furthest among merged neighbours, searched exactly at one partition of the visits."""

    inputs: Inputs
    visits: Visits
    groups: str
    neighbours: str
    semantic_k: int
    neighbours_meant: int
    folder: str
    partition: int = 0


def measure_recall(spec: RecallSpec) -> Counters:
    """Commits found and true neighbours of the sampled queries with 95% intervals."""
    store = spec.root.open()
    copy, semantic = (_truth(store, folder) for folder in (spec.candidates, spec.neighbours))
    pairs, found = _either_side(copy)
    found |= _among_candidates(store, spec.candidates, pairs)
    measured = {
        "copy": _interval(int(found.sum()), len(pairs)),
        "semantic": _interval(int(semantic["is_found"].to_numpy().sum()), semantic.num_rows),
    }
    store.put(f"{spec.folder}/{RECALL}", json_bytes(measured))
    return {"true_pairs": len(pairs)}


def choose_tail(spec: TailSpec) -> Counters:
    """Commits the queries of the 0.1% (1,000 to 10,000 images) with the lowest mean similarity as it was found."""
    store = spec.inputs.root.open()
    ids, _ = _furthest(store, spec)
    rows = spec.inputs.population().take(ids)
    nowhere = np.full((len(ids), 1), NOT_OWNED, np.int32)
    parents = spec.inputs.parents_for(ids) if spec.visits.has_siblings else None
    queries = Routed(ids, np.full(len(ids), ALL_SPLITS), rows.embeddings, nowhere[:, 0], nowhere, parents)
    write_batches(store, f"{spec.folder}/{QUERIES}", [asking_batch(queries)])
    return {"images": len(ids)}


def search_tail(spec: TailSpec) -> Counters:
    """Commits what one partition has for the queries of the tail."""
    store = spec.inputs.root.open()
    queries = visits_of([read_batch(store, f"{spec.folder}/{QUERIES}", 0)], spec.visits.dimension)
    database = partition_database(spec.visits, spec.partition)
    columns = (queries.ids, queries.vectors, queries.split_mask)
    hits = search_everything(database, *columns, _params(spec), queries.parent)
    every = [(0, int(queries.ids.max(initial=0)) + 1)]
    write_batches(store, tail_key(spec.folder, spec.partition), hits_by_range(hits, every), "zstd")
    return {"hits": len(hits)}


def merge_tail(spec: TailSpec) -> Counters:
    """Commits the exact neighbours of the tail, and how many of its images are certainly the furthest of all.

    An approximate search can only lower a similarity: an image outside of the tail was found to be nearer than each of
    the tail was, so those whose true mean is not over the largest of these are the furthest.
    """
    store = spec.inputs.root.open()
    keys = [tail_key(spec.folder, partition) for partition in range(spec.visits.partitions)]
    merged = merge_hits([hits_of(read_column(store, keys, 0))], _params(spec))
    hits = outside_group(merged, read_forest(store, spec.groups), spec.semantic_k)
    _, found_means = _furthest(store, spec)
    _, true_means = nearest_means(hits.query_id, hits.similarity, spec.neighbours_meant)
    certain = int((true_means <= found_means.max(initial=-1)).sum())
    table = neighbour_table(hits).replace_schema_metadata({CERTAIN: str(certain)})
    store.put(f"{spec.folder}/{TAIL}", parquet_bytes(table))
    return {"certain": certain}


def tail_key(folder: str, partition: int) -> str:
    """Key of what a partition has for the tail."""
    return f"{folder}/tail-{partition:06d}.shuffle"


def _params(spec: TailSpec) -> JoinParams:
    return JoinParams(k=spec.semantic_k + 1, k_cross=0)


def _truth(store: Store, folder: str) -> pa.Table:
    parts = list_parts(store, folder, TRUTH)
    return pa.concat_tables([TRUTH_SCHEMA.empty_table(), *(read_table(store, part.key) for part in parts)])


def _either_side(truth: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """True pairs, smaller id first, int64 (n, 2), and whether a sampled query found each."""
    directed = np.stack([truth["image_id"].to_numpy(), truth["match_id"].to_numpy()], axis=1)
    pairs, place = np.unique(np.sort(directed, axis=1), axis=0, return_inverse=True)
    found = np.zeros(len(pairs), bool)
    found[place.ravel()[np.asarray(truth["is_found"].to_numpy(), bool)]] = True
    return pairs, found


def _among_candidates(store: Store, folder: str, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which pairs (n, 2) were found from either side; one part of the candidates is held at once."""
    found = np.zeros(len(pairs), bool)
    names = ["image_id", "match_id"]
    parts = list_parts(store, folder, CANDIDATES) if len(pairs) else []
    for rows in each_in_order(store, parts, lambda part: read_table(store, part.key, names)):
        directed = np.stack([rows[name].to_numpy() for name in names], axis=1)
        have = np.unique(np.sort(directed, axis=1), axis=0)
        found |= rows_of_pairs(pairs[:, 0], pairs[:, 1], have[:, 0], have[:, 1]) >= 0
    return found


def _interval(found: int, total: int) -> dict[str, float]:
    low, high = wilson(found, total)
    return {"found": found, "total": total, "low95": low, "high95": high}


def _furthest(store: Store, spec: TailSpec) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids of the tail, sorted, and their mean similarities as they were found."""
    parts = list_parts(store, spec.neighbours, FURTHEST)
    rows = pa.concat_tables([FURTHEST_SCHEMA.empty_table(), *(read_table(store, part.key) for part in parts)])
    ids, mean = rows["image_id"].to_numpy(), rows["similarity"].to_numpy()
    wanted = int(np.clip(TAIL_SHARE * spec.inputs.opened_snapshot().live, TAIL_LEAST, TAIL_MOST))
    chosen = np.sort(np.lexsort((ids, mean))[:wanted])
    return ids[chosen], mean[chosen]
