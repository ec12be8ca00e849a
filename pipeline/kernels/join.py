"""The nearest neighbours of queries in one partition, per split: float32 search list by list, float64 ranking.

The result is a function of the vectors alone. The last bits of a float32 product vary with the block that a row is in;
so every row that may be among the nearest whatever those bits are is kept (`contenders`), its cosine is computed in
float64 and rounded to 1e-6, and ties go to the smaller id. Where float32 leaves too many rows in question, that list is
searched again in float64.

Measured on one core beside a matrix product at 70 GF/s, 320-d float16 in 262,144 rows of 3 splits, queries of 5
lists: 51 us each with `least` (the products alone 40), 109 without (k 10, 3 across); k 33 in one split, 10 lists: 160
(76).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.contenders import Contenders, collect, compact, no_contenders
from pipeline.kernels.database import (
    DECIMALS,
    FLOAT32_ERROR,
    Cells,
    Database,
    Float32,
    Float64,
    Int32,
    Int64,
    UInt64,
    build_database,
    database_cells,
    searchable_rows,
    split_masks,
    unit_scale,
    unit_vectors,
    visits,
)
from pipeline.kernels.hits import (
    Hits,
    JoinParams,
    by_query,
    concatenate_hits,
    empty_hits,
    merge_hits,
    rank_in_run,
    saturated_queries,
    total_order,
)
from pipeline.kernels.siblings import MASKED, NO_PARENT, SIBLING_SPLIT, Parents, are_siblings, sibling_places

__all__ = [
    "Database",
    "Hits",
    "JoinParams",
    "build_database",
    "checked_queries",
    "join_lists",
    "join_queries",
    "merge_hits",
    "saturated_queries",
    "search_everything",
    "searchable_rows",
    "split_masks",
]

_QUERY_ROWS = 65_536
_FLOORED_ROWS = 262_144  # of which little is kept: their vectors are 0.5 GB
_OPEN_SHARE = 1 / 16  # of queries without a floor among those that count as floored
_BLOCK_QUERIES = 1024
_BLOCK_ROWS = 4096
_PAIRS = 256
_EXACT_QUERIES = 1024
_EXACT_ROWS = 4096
_SCALE = 10**DECIMALS
_NOTHING = np.iinfo(np.int64).max


class Queries(NamedTuple):
    """Checked queries: vectors as the database stores them, scale = 1 / norm.

    floor float32 (n,): a rounded similarity under which nothing is wanted, of a search elsewhere; -inf where all is.
    parent int64 (n,): what each is a frame or box of; None where the database has no siblings to tell apart.
    """

    ids: Int64
    vectors: NDArray[np.floating]
    scale: Float64
    mask: UInt64
    probes: Int32
    floor: Float32
    parent: Parents = None

    def take(self, rows: Int64) -> Queries:
        picked = (self.ids[rows], self.vectors[rows], self.scale[rows], self.mask[rows], self.probes[rows])
        return Queries(*picked, self.floor[rows], None if self.parent is None else self.parent[rows])

    @property
    def is_floored(self) -> bool:
        """Whether little is kept of nearly all of them."""
        return bool(np.isneginf(self.floor).mean() < _OPEN_SHARE)


class Search(NamedTuple):
    """What queries are searched in: row and split int64 (e,) of the entries, which `lists` orders by list and split.

    id_rank int64 (n,) is the order of the database rows by id, by_id its inverse. splits: one more than the largest;
    the lists of siblings are numbered from there on.
    """

    db: Database
    row: Int64
    split: Int64
    lists: Cells
    id_rank: Int64
    by_id: Int64
    params: JoinParams
    splits: int

    @property
    def finds_siblings(self) -> bool:
        """Whether siblings have lists of their own."""
        return self.db.parent is not None and self.params.threshold is not None


def join_lists(
    db: Database,
    query_ids: Int64,
    xq: NDArray[np.floating],
    query_mask: UInt64,
    probes: Int32,
    params: JoinParams,
) -> Hits:
    """Return, of the rows in the probed lists, the k nearest in each split of the query and k_cross in every other.

    query_ids int64 (n,); xq float (n, d), taken at the database's precision; query_mask uint64 (n,); probes int32
    (n, nprobe), lists of other partitions (and -1) are passed over. A query never finds its own id. Exact search is one
    list and nprobe 1. One list over all splits is a mask of 1 everywhere and k_cross 0. Order, blocks and partitions of
    either side do not change the result. Raises UsageError for unequal shapes, zero or NaN queries.
    """
    return join_queries(db, checked_queries(db, query_ids, xq, query_mask, probes), params)


def join_queries(db: Database, queries: Queries, params: JoinParams) -> Hits:
    """Return `join_lists` of checked queries: at least those hits that are not under the floor of their query."""
    if len(queries.ids) == 0 or len(db) == 0:
        return empty_hits()
    return _join(_search_by_list(db, params), queries)


def search_everything(
    db: Database,
    query_ids: Int64,
    xq: NDArray[np.floating],
    query_mask: UInt64,
    params: JoinParams,
    parent: Parents = None,
) -> Hits:
    """Return `join_queries` of queries that probe every list: the exact answer, at the speed of one matrix product."""
    nowhere = np.zeros((len(query_ids), 1), dtype=np.int32)
    queries = checked_queries(db, query_ids, xq, query_mask, nowhere, parent)
    if len(query_ids) == 0 or len(db) == 0:
        return empty_hits()
    return _join(search_of_everything(db, params), queries)


def search_of_everything(db: Database, params: JoinParams) -> Search:
    """Return a search in one list of all rows, split by split and by id."""
    search = _search_by_list(db, params)
    order = np.lexsort((search.id_rank[search.row], search.split))
    one = np.zeros(1, dtype=np.int32)
    lists = Cells(one, one.astype(np.int64), np.array([0, len(order)]), np.arange(len(order)))
    return search._replace(row=search.row[order], split=search.split[order], lists=lists)


def _search_by_list(db: Database, params: JoinParams) -> Search:
    cells = database_cells(db, params.k + 1)
    by_id = np.argsort(db.ids)
    id_rank = np.empty(len(db), dtype=np.int64)
    id_rank[by_id] = np.arange(len(db))
    list_id, first = np.unique(cells.list_id, return_index=True)  # the cells of a list follow each other
    start = np.append(cells.start[first], len(cells.rows))
    lists = Cells(list_id, np.zeros(len(list_id), dtype=np.int64), start, np.arange(len(cells.rows)))
    split = np.repeat(cells.split, np.diff(cells.start))
    return Search(db, cells.rows, split, lists, id_rank, by_id, params, int(split.max(initial=0)) + 1)


def _join(search: Search, queries: Queries) -> Hits:
    nearby = np.argsort(queries.probes[:, 0], kind="stable")  # neighbours in one chunk share lists: longer products
    rows = _FLOORED_ROWS if queries.is_floored else _QUERY_ROWS
    parts = [_join_chunk(search, queries.take(nearby[start : start + rows])) for start in range(0, len(nearby), rows)]
    return by_query(concatenate_hits(parts))


def checked_queries(
    db: Database, ids: Int64, xq: NDArray[np.floating], mask: UInt64, probes: Int32, parent: Parents = None
) -> Queries:
    """Return the queries of a search. Raises UsageError for unequal shapes, zero or NaN rows.

    parent int64 (n,): siblings in the database are found as `kernels.siblings` says; None: they are rows like others.
    """
    shapes = (len(ids), len(xq), len(mask), len(probes))
    if len(set(shapes)) > 1 or xq.ndim != 2 or probes.ndim != 2 or (len(probes) and probes.shape[1] == 0):
        raise UsageError(f"join: ids, vectors, masks, probes have {shapes} rows, want equal, and two of them 2-d")
    if len(ids) and len(db) and xq.shape[1] != db.vectors.shape[1]:
        raise UsageError(f"join: queries have {xq.shape[1]} dimensions and the database {db.vectors.shape[1]}")
    stored = xq.astype(db.vectors.dtype)
    floor = np.full(len(ids), -np.inf, np.float32)
    if db.parent is None:
        parent = None
    elif parent is None:
        parent = np.full(len(ids), NO_PARENT, np.int64)
    scale = unit_scale(stored, "join queries")
    return Queries(np.asarray(ids, dtype=np.int64), stored, scale, mask, probes, floor, parent)


def _join_chunk(search: Search, queries: Queries) -> Hits:
    """Return the hits of up to _QUERY_ROWS queries, by query and split."""
    params = search.params
    found = nothing_found(search, queries)
    unit = unit_vectors(queries.vectors, queries.scale)
    is_floored = params.least is not None or queries.is_floored
    for probes in [queries.probes] if is_floored else _own_first(queries.probes):
        for entries, _, visitors in visits(search.lists, probes):
            for start in range(0, len(entries), _BLOCK_ROWS):
                _compare(search, found, entries[start : start + _BLOCK_ROWS], (unit, queries.parent), visitors)
    return ranked(search, queries, found)


def nothing_found(search: Search, queries: Queries) -> Contenders:
    """Return the start of a search: what is wanted of each query in each split, and behind these of its siblings."""
    splits = np.arange(search.splits, dtype=np.uint64)
    is_own = (queries.mask[:, None] >> splits) & np.uint64(1) == 1
    limit = np.where(is_own, search.params.k, search.params.k_cross)
    if search.finds_siblings and queries.parent is not None:
        limit = np.hstack([limit, np.where(queries.parent[:, None] >= 0, limit, 0)])
    found = no_contenders(limit, search.params)
    # both sides of the comparison are rounded, or off by what float32 errs
    np.maximum(found.floor, queries.floor[:, None] - np.float32(2 * FLOAT32_ERROR), out=found.floor)
    return found


def _own_first(probes: Int32) -> list[Int32]:
    """Return the own lists, which raise the floors most, and then the others: a list named twice is searched once."""
    own, others = probes[:, :1], probes[:, 1:]
    return [own, np.where(others == own, np.int32(-1), others)]


def _compare(
    search: Search, found: Contenders, entries: Int64, asked: tuple[Float32, Parents], visitors: Int64
) -> None:
    """Collect what queries may find among the entries of one list.

    asked: unit float32 (n, d) and parents of all queries; visitors: rows of these.
    """
    (unit, parent), rows, split = asked, search.row[entries], search.split[entries]
    vectors = search.db.unit(rows)
    bounds = np.flatnonzero(np.r_[True, split[1:] != split[:-1], True]).tolist()
    for start in range(0, len(visitors), _BLOCK_QUERIES):
        asking = visitors[start : start + _BLOCK_QUERIES]
        similarity = unit[asking] @ vectors.T
        if parent is not None and search.db.parent is not None:
            places = sibling_places(parent[asking], search.db.parent[rows])
            if search.finds_siblings and len(places):
                _collect_siblings(search, found, asking, entries, (similarity, places))
            similarity.reshape(-1)[places] = MASKED
        for first, last in itertools.pairwise(bounds):
            collect(found, asking, int(split[first]), rows[first:last], similarity[:, first:last])


def _collect_siblings(
    search: Search, found: Contenders, asking: Int64, entries: Int64, seen: tuple[Float32, Int64]
) -> None:
    """Collect the siblings of queries among the entries of one list; seen: similarities, and where siblings are."""
    similarity, places = seen
    rows, split = search.row[entries], search.split[entries]
    query, column = np.divmod(places, len(rows))
    is_first = np.r_[True, query[1:] != query[:-1]]
    apart = np.full((int(is_first.sum()), len(rows)), np.float32(MASKED))
    apart[np.cumsum(is_first) - 1, column] = similarity.reshape(-1)[places]
    having = asking[query[is_first]]
    bounds = np.flatnonzero(np.r_[True, split[1:] != split[:-1], True]).tolist()
    for first, last in itertools.pairwise(bounds):
        collect(found, having, search.splits + int(split[first]), rows[first:last], apart[:, first:last])


def ranked(search: Search, queries: Queries, found: Contenders) -> Hits:
    """Return the nearest of what was found, in total order: by query, split (siblings last), similarity and id."""
    slot, row = compact(found)
    places = found.limit.shape[1]
    is_other = search.db.ids[row] != queries.ids[slot // places]
    slot, row = slot[is_other], row[is_other]
    keys = _key(_cosines(search.db, queries, slot // places, row), search.id_rank[row])
    for place in np.flatnonzero(found.crowded.any(axis=0)).tolist():
        crowd = np.flatnonzero(found.crowded[:, place])
        exact = _exact_keys(search, queries.take(crowd), place, search.params.k)
        slot = np.append(slot, np.repeat(crowd * places + place, exact.shape[1])[exact.ravel() != _NOTHING])
        keys = np.append(keys, exact[exact != _NOTHING])
    order = total_order(slot, keys >> 32, keys & 0xFFFFFFFF)
    slot, keys = slot[order], keys[order]
    keep = rank_in_run(slot) < found.limit.reshape(-1)[slot]
    if search.params.least is not None:
        keep &= _similarity_of(keys) >= round(search.params.least, DECIMALS)
    query, where = np.divmod(slot[keep], places)
    is_sibling, at = np.divmod(where, search.splits)
    return Hits(
        query_id=queries.ids[query],
        match_id=search.db.ids[search.by_id[keys[keep] & 0xFFFFFFFF]],
        similarity=_similarity_of(keys[keep]).astype(np.float32),
        split=(at + is_sibling * SIBLING_SPLIT).astype(np.int8),
        is_own=(queries.mask[query] >> at.astype(np.uint64)) & np.uint64(1) == 1,
    )


def _key(similarity: Float64, id_rank: Int64) -> Int64:
    """Return integers in the total order: larger rounded similarity first, then smaller id."""
    rounded = np.clip(np.rint(similarity * _SCALE), -_SCALE, _SCALE).astype(np.int64)
    return np.asarray(((_SCALE - rounded) << 32) | id_rank, dtype=np.int64)


def _similarity_of(keys: Int64) -> Float64:
    return np.asarray((_SCALE - (keys >> 32)) / _SCALE, dtype=np.float64)


def _cosines(db: Database, queries: Queries, query: Int64, row: Int32) -> Float64:
    """Return the cosines of the pairs (query[i], row[i]), query ascending, in float64: (n,)."""
    similarity = np.empty(len(query))
    for start in range(0, len(query), _PAIRS):
        block = slice(start, start + _PAIRS)
        low, high = (int(query[block][0]), int(query[block][-1]) + 1)
        q = queries.vectors[low:high].astype(np.float64) * queries.scale[low:high, None]
        match = db.vectors[row[block]].astype(np.float64)
        similarity[block] = np.einsum("nd,nd->n", q[query[block] - low], match) * db.scale[row[block]]
    return similarity


def _exact_keys(search: Search, queries: Queries, place: int, k: int) -> Int64:
    """Return the k smallest keys over all rows of a split in the probed lists, float64 throughout: (n, k).

    place: the split, or behind all of them that of siblings.
    """
    best = np.full((len(queries.ids), k), _NOTHING, dtype=np.int64)
    are_wanted, split = divmod(place, search.splits)
    for entries, _, visitors in visits(search.lists, queries.probes):
        rows = search.row[entries[search.split[entries] == split]]
        for start in range(0, len(rows), _EXACT_ROWS):
            block = rows[start : start + _EXACT_ROWS]
            # A row beats the list's last only with a smaller key, and its similarity is at most 1.
            open_lists = visitors[best[visitors, -1] > search.id_rank[block].min()]
            for at in range(0, len(open_lists), _EXACT_QUERIES):
                chosen = open_lists[at : at + _EXACT_QUERIES]
                keys = _wide_keys(search, queries.take(chosen), block, bool(are_wanted))
                candidates = np.concatenate([best[chosen], keys], axis=1)
                candidates.partition(k - 1, axis=1)
                best[chosen] = np.sort(candidates[:, :k], axis=1)
    return np.sort(best, axis=1)


def _wide_keys(search: Search, queries: Queries, rows: Int64, are_siblings_wanted: bool) -> Int64:
    """Return the keys of rows (m,), ascending, in float64: (n, m); _NOTHING for the query itself and what is not
    wanted, either its siblings or all others.
    """
    q = queries.vectors.astype(np.float64) * queries.scale[:, None]
    b = search.db.vectors[rows].astype(np.float64) * search.db.scale[rows, None]
    keys = _key(q @ b.T, search.id_rank[rows])
    keys[search.db.ids[rows] == queries.ids[:, None]] = _NOTHING
    if queries.parent is not None and search.db.parent is not None:
        keys[are_siblings(queries.parent[:, None], search.db.parent[rows]) != are_siblings_wanted] = _NOTHING
    return keys
