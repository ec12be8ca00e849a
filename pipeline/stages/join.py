"""Join stages: the nearest neighbours of representatives in the copy space (candidates) and in the semantic space."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.components import Forest
from pipeline.kernels.hits import Hits, JoinParams, saturated_queries
from pipeline.kernels.saturated import saturated_forest
from pipeline.kernels.space import CopySpace, pair_similarities
from pipeline.layout.exact import Representatives
from pipeline.layout.groups import read_forest
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import CANDIDATE_SCHEMA, CANDIDATES, NEIGHBOURS, SATURATED
from pipeline.layout.parts import part_name
from pipeline.layout.searching import Index, Partition, copy_partition, neighbour_table, search_ids, semantic_partition
from pipeline.layout.spaces import read_space
from pipeline.layout.tables import write_table
from pipeline.runner import Counters

VERSION = 1
ROUNDING = 1e-4
"""How far the searched (float32) similarity may lie from the canonical one; seen: 3e-7."""
PAIRS_AT_ONCE = 4096
"""Pairs whose float64 vectors are held at once, 20 KB each: 46,000 candidates of 8,400 images took 0.7 GB."""


@dataclass(frozen=True)
class CopyJoinSpec:
    """Queries of offsets [lo, hi) against one partition of the copy space."""

    inputs: Inputs
    space: str
    index: Index
    threshold: float
    params: JoinParams
    folder: str
    lo: int
    hi: int


@dataclass(frozen=True)
class SemanticJoinSpec:
    """Queries of offsets [lo, hi) against one representative per group, in the semantic space."""

    inputs: Inputs
    groups: str
    index: Index
    k: int
    folder: str
    lo: int
    hi: int


def join_copy(spec: CopyJoinSpec) -> Counters:
    """Commits the candidates of a range (pairs at or over the threshold) and the forest of its saturated queries."""
    store = spec.inputs.root.open()
    partition = copy_partition(spec.inputs, spec.space, spec.index)
    asked = _ids_between(partition, spec.lo, spec.hi)
    params = replace(spec.params, threshold=spec.threshold)
    hits = search_ids(partition, asked, params)
    saturated = saturated_queries(hits, params)
    forest = _saturated(partition, np.flatnonzero(np.isin(partition.rows.ids, saturated)), spec)
    write_table(store, f"{spec.folder}/{part_name(SATURATED, spec.lo, spec.hi)}", _forest_table(forest))
    table = _candidates(read_space(store, spec.space), partition, hits, spec.threshold)
    write_table(store, f"{spec.folder}/{part_name(CANDIDATES, spec.lo, spec.hi)}", table)
    return {"images": len(asked), "candidates": table.num_rows, "saturated": len(saturated)}


def join_semantic(spec: SemanticJoinSpec) -> Counters:
    """Commits the k nearest neighbours of a range outside each image's own group, one member per group."""
    store = spec.inputs.root.open()
    partition = semantic_partition(spec.inputs, spec.groups, spec.index)
    forest = read_forest(store, spec.groups)
    asked = _ids_between(partition, spec.lo, spec.hi)
    hits = search_ids(partition, asked, JoinParams(k=spec.k + 1, k_cross=0))
    table = neighbour_table(hits, forest, spec.k)
    write_table(store, f"{spec.folder}/{part_name(NEIGHBOURS, spec.lo, spec.hi)}", table)
    return {"images": len(asked), "neighbours": table.num_rows}


def _ids_between(partition: Partition, lo: int, hi: int) -> NDArray[np.int64]:
    ids = partition.rows.ids
    return ids[(ids >= lo) & (ids < hi)]


def _saturated(partition: Partition, rows: NDArray[np.int64], spec: CopyJoinSpec) -> Forest:
    return saturated_forest(
        partition.database, partition.rows.ids[rows], partition.vectors[rows], partition.probes[rows], spec.threshold
    )


def _candidates(space: CopySpace, partition: Partition, hits: Hits, threshold: float) -> pa.Table:
    near = hits.take(hits.similarity >= threshold - ROUNDING)
    pairs = np.unique(np.stack([near.query_id, near.match_id], axis=1), axis=0)
    blocks = [pairs[at : at + PAIRS_AT_ONCE] for at in range(0, len(pairs), PAIRS_AT_ONCE)]
    tables = [_compared(space, partition.rows, block, threshold) for block in blocks]
    return pa.concat_tables(tables) if tables else CANDIDATE_SCHEMA.empty_table()


def _compared(space: CopySpace, rows: Representatives, pairs: NDArray[np.int64], threshold: float) -> pa.Table:
    """The pairs (n, 2) at or over the threshold, with their canonical similarities."""
    i, j = np.searchsorted(rows.ids, pairs[:, 0]), np.searchsorted(rows.ids, pairs[:, 1])
    found = pair_similarities(space, rows.embeddings[i], rows.signatures[i], rows.embeddings[j], rows.signatures[j])
    keep = found.copy >= threshold
    columns = [pairs[keep, 0], pairs[keep, 1], found.copy[keep], found.semantic[keep], found.signature[keep]]
    return pa.table(columns, schema=CANDIDATE_SCHEMA)


def _forest_table(forest: Forest) -> pa.Table:
    return pa.table({"image_id": forest.child, "group_id": forest.root})
