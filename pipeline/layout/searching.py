"""Searchable partitions: representatives of one audit, their vectors, and the database over them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.components import Forest, labels_for
from pipeline.kernels.database import Database, build_database, searchable_rows
from pipeline.kernels.hits import Hits, JoinParams
from pipeline.kernels.join import join_lists
from pipeline.kernels.routing import route
from pipeline.kernels.space import project_copy, project_semantic
from pipeline.layout.exact import FIELDS, Representatives
from pipeline.layout.groups import read_forest
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import NEIGHBOUR_SCHEMA
from pipeline.layout.spaces import read_centroids, read_space

ALL_SPLITS = np.uint64(1)


@dataclass(frozen=True)
class Index:
    """How vectors are routed: centroids ("" = one list, exact search) and the lists that a query visits."""

    centroids: str
    probes: int


@dataclass(frozen=True)
class Partition:
    """A searchable partition: its rows as stored, their vectors, and the database over them."""

    rows: Representatives
    vectors: NDArray[Any]
    database: Database
    probes: NDArray[np.int32]


def search_ids(partition: Partition, ids: NDArray[np.int64], params: JoinParams) -> Hits:
    """Hits of some representatives (sorted ids); one without a direction has none."""
    rows = np.flatnonzero(np.isin(partition.rows.ids, ids))
    return join_lists(
        partition.database,
        partition.rows.ids[rows],
        partition.vectors[rows],
        partition.rows.split_mask[rows],
        partition.probes[rows],
        params,
    )


def neighbour_table(hits: Hits, forest: Forest, k: int) -> pa.Table:
    """The k nearest hits of each query outside its own group, nearest first."""
    outside = labels_for(hits.query_id, forest) != labels_for(hits.match_id, forest)
    kept = hits.take(outside)
    starts = (
        np.flatnonzero(np.r_[True, kept.query_id[1:] != kept.query_id[:-1]]) if len(kept) else np.empty(0, np.int64)
    )
    rank = np.arange(len(kept)) - np.repeat(starts, np.diff(np.r_[starts, len(kept)]))
    kept = kept.take(rank < k)
    similarity = np.round(kept.similarity.astype(np.float64), 6)
    return pa.table([kept.query_id, kept.match_id, similarity], schema=NEIGHBOUR_SCHEMA)


@lru_cache(maxsize=1)
def copy_partition(inputs: Inputs, space: str, index: Index) -> Partition:
    """All representatives in the copy space."""
    semantic_partition.cache_clear()  # one partition at a time fits a worker
    rows = inputs.representatives()
    vectors = project_copy(read_space(inputs.root.open(), space), rows.embeddings, rows.signatures)
    return _partition(inputs, index, rows, vectors, np.ones(len(rows.ids), bool))


@lru_cache(maxsize=1)
def semantic_partition(inputs: Inputs, groups: str, index: Index) -> Partition:
    """All representatives as queries, one per group in the database, in the semantic space."""
    copy_partition.cache_clear()
    found = inputs.representatives()
    heads = labels_for(found.ids, read_forest(inputs.root.open(), groups)) == found.ids
    masks = np.full(len(found.ids), ALL_SPLITS)
    rows = Representatives(found.ids, found.embeddings, found.signatures, masks, found.label)
    return _partition(inputs, index, rows, rows.embeddings, heads)


def _partition(
    inputs: Inputs, index: Index, rows: Representatives, vectors: NDArray[Any], in_database: NDArray[np.bool_]
) -> Partition:
    """Routes the rows and builds the database; rows without a direction (flat and zero) are left out of both."""
    keep = searchable_rows(vectors)
    rows = Representatives(*(getattr(rows, name)[keep] for name in FIELDS))
    vectors, in_database = vectors[keep], in_database[keep]
    own, probes = _routes(inputs, index, vectors)
    database = build_database(
        rows.ids[in_database], vectors[in_database], rows.split_mask[in_database], own[in_database]
    )
    return Partition(rows, vectors, database, probes)


def _routes(inputs: Inputs, index: Index, vectors: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    if not index.centroids:
        return np.zeros(len(vectors), np.int32), np.zeros((len(vectors), 1), np.int32)
    centroids = read_centroids(inputs.root.open(), index.centroids)
    unit = vectors if vectors.dtype == np.float32 else project_semantic(vectors)
    return route(unit, centroids, min(index.probes, len(centroids)))
