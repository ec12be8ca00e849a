"""The nearest neighbours by a graph in place of lists (HNSW): approximate, and exempt from equality over partitions.

A graph per split is built by one thread in the order of ids, so the same rows give the same graph; other rows, or
another partition, another one. What it finds is ranked as the join ranks it. Measured on
one core, 32,768 rows of 320-d, 32 links, k 10: 198 us a row to build, 321 a query, .993 of the neighbours; exact search
took 308 a query, and takes twice that of twice the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.contenders import Contenders, add
from pipeline.kernels.database import Database, Int64, Mask, UInt64, unit_vectors
from pipeline.kernels.hits import Hits, JoinParams, by_query, empty_hits
from pipeline.kernels.join import (
    Queries,
    Search,
    checked_queries,
    nothing_found,
    ranked,
    search_of_everything,
)
from pipeline.kernels.siblings import Parents, are_siblings

MOST_LINKS = 256
_BUILD_BREADTH = 40
_LEAST_BREADTH = 64
_BREADTH = 2  # times the rows fetched
_FETCH = 2  # times the rows wanted
_BLOCK_ROWS = 65_536


class Graphs(NamedTuple):
    """The graphs of a partition, one for each split present, and what they were built for."""

    search: Search
    by_split: Mapping[int, faiss.IndexHNSWFlat]


def join_hnsw(
    db: Database, query_ids: Int64, xq: NDArray[np.floating], query_mask: UInt64, params: JoinParams, m: int
) -> Hits:
    """Return about what `search_everything` returns, found in graphs of m links a row, one for each split present.

    query_ids int64 (n,); xq float (n, d), taken at the database's precision; query_mask uint64 (n,); m 2 to 256.
    Raises UsageError for unequal shapes, zero or NaN queries, m out of range.
    """
    return join_graphs(build_graphs(db, params, m), query_ids, xq, query_mask)


def build_graphs(db: Database, params: JoinParams, m: int) -> Graphs:
    """Return the graphs of all rows, for any number of `join_graphs`: each holds its rows as float32.

    Raises UsageError for m out of range.
    """
    if not 2 <= m <= MOST_LINKS:
        raise UsageError(f"hnsw: {m} links a row, want 2 to {MOST_LINKS}")
    search = search_of_everything(db, params)
    with _one_thread():
        return Graphs(search, {split: _graph(search, split, m) for split in np.unique(search.split).tolist()})


def join_graphs(
    graphs: Graphs, query_ids: Int64, xq: NDArray[np.floating], query_mask: UInt64, parent: Parents = None
) -> Hits:
    """Return the hits of queries, as `join_hnsw` does. Raises UsageError for unequal shapes, zero or NaN queries.

    parent int64 (n,): a graph knows none, so a query for which siblings left too few others is compared with all rows.
    """
    search = graphs.search
    nowhere = np.zeros((len(query_ids), 1), dtype=np.int32)
    queries = checked_queries(search.db, query_ids, xq, query_mask, nowhere, parent)
    if len(query_ids) == 0 or len(search.db) == 0:
        return empty_hits()
    found = nothing_found(search, queries)
    found.crowd = len(search.db)  # what the graph gives is ranked, however close it is
    with _one_thread():
        for split, graph in graphs.by_split.items():
            _search_graph(graph, search, queries, found, split)
    return by_query(ranked(search, queries, found))


@contextmanager
def _one_thread() -> Iterator[None]:
    """With more, a graph depends on which of them comes first."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _graph(search: Search, split: int, m: int) -> faiss.IndexHNSWFlat:
    rows = search.row[search.split == split]
    graph = faiss.IndexHNSWFlat(search.db.vectors.shape[1], m, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = _BUILD_BREADTH
    for start in range(0, len(rows), _BLOCK_ROWS):
        graph.add(search.db.unit(rows[start : start + _BLOCK_ROWS]))
    return graph


def _search_graph(graph: faiss.IndexHNSWFlat, search: Search, queries: Queries, found: Contenders, split: int) -> None:
    """Add what the graph of one split gives to the queries that want something of it; changes found."""
    rows = search.row[search.split == split]
    limit = found.limit[:, split]
    for wanted in np.unique(limit[limit > 0]).tolist():
        asking = np.flatnonzero(limit == wanted)
        fetched = min(len(rows), _FETCH * (wanted + 1))
        graph.hnsw.efSearch = max(_LEAST_BREADTH, _BREADTH * fetched)
        for start in range(0, len(asking), _BLOCK_ROWS):
            block = asking[start : start + _BLOCK_ROWS]
            unit = unit_vectors(queries.vectors[block], queries.scale[block])
            similarity, position = graph.search(unit, fetched)
            query, rank = np.nonzero(position >= 0)
            slot = block[query] * found.limit.shape[1] + split
            row, near = rows[position[query, rank]], similarity[query, rank]
            if queries.parent is not None and search.db.parent is not None:
                is_sibling = are_siblings(queries.parent[block[query]], search.db.parent[row])
                kept = _apart(search, found, slot, is_sibling, wanted)
                slot, row, near = slot[kept] + search.splits * is_sibling[kept], row[kept], near[kept]
            add(found, slot, row.astype(np.int32), near)


def _apart(search: Search, found: Contenders, slot: Int64, is_sibling: Mask, wanted: int) -> Mask:
    """Return which rows of a graph stay: siblings where they have lists of their own, and all others but for slots that
    get too few of these, which are marked for an exact search; slots ascend.
    """
    slots, which = np.unique(slot, return_inverse=True)
    others = np.bincount(which, ~is_sibling, len(slots))
    is_short = (others < wanted) & (others < np.bincount(which, minlength=len(slots)))
    found.crowded.reshape(-1)[slots[is_short]] = True
    return np.where(is_sibling, search.finds_siblings, ~is_short[which])
