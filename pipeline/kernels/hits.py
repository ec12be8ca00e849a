"""Neighbour lists after the search: merged, matched with known pairs, and the interval of their measured recall."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.database import DECIMALS, MAX_SPLITS
from pipeline.kernels.sampling import mix

Float32 = NDArray[np.float32]
Int8 = NDArray[np.int8]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
Mask = NDArray[np.bool_]

MOST_NEIGHBOURS = 1000
_SIMILARITY_BITS = 21  # 2,000,001 rounded similarities


@dataclass(frozen=True)
class JoinParams:
    """How many neighbours are kept and when a list of them is saturated.

    k in every split that the query is itself in, k_cross in every other (0: those are not searched); threshold is the
    similarity of a candidate; no match under `least` is returned (None: all are). The float32 search hands at most
    overfetch times more rows than are wanted to the float64 ranking; closer crowds are searched in float64. Siblings of
    a query are not among these; with a threshold as many of them are found beside them, without one none.
    """

    k: int = 10
    k_cross: int = 3
    threshold: float | None = None
    overfetch: int = 4
    least: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.k <= MOST_NEIGHBOURS:
            problems.append(f"k {self.k}, want 1 to {MOST_NEIGHBOURS}")
        if not 0 <= self.k_cross <= self.k:
            problems.append(f"k_cross {self.k_cross}, want 0 to k ({self.k})")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            problems.append(f"threshold {self.threshold}, want a cosine (-1 to 1)")
        if not 1 <= self.overfetch <= MOST_NEIGHBOURS:
            problems.append(f"overfetch {self.overfetch}, want 1 to {MOST_NEIGHBOURS}")
        if self.least is not None and not -1 <= self.least <= 1:
            problems.append(f"least {self.least}, want a cosine (-1 to 1)")
        if problems:
            raise UsageError("join: " + "; ".join(problems))


@dataclass(frozen=True)
class Hits:
    """Neighbours, by (query_id, split, -similarity, match_id): the n-th row of a query and split is its n-th nearest.

    query_id, match_id int64; similarity float32, the cosine rounded to 1e-6; split int8, the split that the match was
    found in (a match of several splits has a row in each), 64 more for a sibling of the query (`kernels.siblings`);
    is_own bool, whether the query is in that split too.
    """

    query_id: Int64
    match_id: Int64
    similarity: Float32
    split: Int8
    is_own: Mask

    def __len__(self) -> int:
        return len(self.query_id)

    def take(self, rows: Int64 | Mask | slice) -> Hits:
        """Return some rows."""
        return Hits(
            self.query_id[rows], self.match_id[rows], self.similarity[rows], self.split[rows], self.is_own[rows]
        )


def empty_hits() -> Hits:
    """Return no hits."""
    ids = np.empty(0, dtype=np.int64)
    return Hits(ids, ids, np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int8), np.empty(0, dtype=bool))


def stored_threshold(threshold: float) -> float:
    """Return a threshold as similarities are stored, so that `similarity >= it` is meant as it reads."""
    return float(np.float32(round(threshold, DECIMALS)))


def concatenate_hits(parts: Sequence[Hits]) -> Hits:
    """Return the rows of all parts, one part after the other."""
    if not parts:
        return empty_hits()
    return Hits(
        np.concatenate([p.query_id for p in parts]),
        np.concatenate([p.match_id for p in parts]),
        np.concatenate([p.similarity for p in parts]),
        np.concatenate([p.split for p in parts]),
        np.concatenate([p.is_own for p in parts]),
    )


def merge_hits(parts: Sequence[Hits], params: JoinParams) -> Hits:
    """Return the nearest of several searches: each match once, k (or k_cross) per query and split, in total order.

    The parts may come from any partitions of the database, overlap, and be merged before in any tree.
    """
    hits = concatenate_hits(parts)
    if len(hits) == 0:
        return hits
    mixed = np.sort(_mixed_matches(hits))
    if _equals_previous(mixed).any():
        hits = _without_repeats(hits)
    query = hits.query_id - hits.query_id.min()
    if int(query.max()) >= 1 << 35:
        query = np.searchsorted(np.unique(query), query)
    slot = query * (2 * MAX_SPLITS) + hits.split
    scale = 10**DECIMALS
    below = scale - np.rint(hits.similarity.astype(np.float64) * scale).astype(np.int64)
    order = total_order(slot, below, hits.match_id)
    return hits.take(order[rank_in_run(slot[order]) < np.where(hits.is_own[order], params.k, params.k_cross)])


def total_order(slot: Int64, below: Int64, match: Int64) -> Int64:
    """Return the order by (slot, below, match): slot under 2**42, below under 2**21, the millionths short of 1.

    All but the match fits 64 bits, whose sort takes a tenth of one by several columns; only ties need the match.
    """
    key = (slot << _SIMILARITY_BITS) | below
    order = np.argsort(key)
    key = key[order]
    is_tie = _equals_previous(key)
    is_tie[:-1] |= is_tie[1:]
    ties = np.flatnonzero(is_tie)
    order[ties] = order[ties[np.lexsort((match[order[ties]], key[ties]))]]
    return order


def rank_in_run(values: Int64) -> Int64:
    """Return the position of each row in its run of equal values, int64 (n,)."""
    start = np.flatnonzero(~_equals_previous(values))
    return np.arange(len(values)) - np.repeat(start, np.diff(np.append(start, len(values))))


def by_query(hits: Hits) -> Hits:
    """Return hits by query and split; the rows of one stand together and keep their order."""
    start = np.flatnonzero(~_equals_previous(hits.query_id, hits.split))
    count = np.diff(np.append(start, len(hits)))
    order = np.lexsort((hits.split[start], hits.query_id[start]))
    count = count[order]
    return hits.take(np.repeat(start[order] - (np.cumsum(count) - count), count) + np.arange(len(hits)))


def _mixed_matches(hits: Hits) -> UInt64:
    """Return 64 mixed bits of each query, split and match."""
    match = hits.match_id.astype(np.uint64) * np.uint64(2 * MAX_SPLITS)
    mixed = mix(hits.query_id) + match + hits.split.astype(np.uint64)
    return mix(mixed.view(np.int64))


def _without_repeats(hits: Hits) -> Hits:
    """Return one row per query, split and match, the one of largest similarity; in no order."""
    mixed = _mixed_matches(hits)
    order = np.argsort(mixed)  # one sort of 64 bits takes a fraction of one by three columns
    ordered = hits.take(order)
    repeats = _equals_previous(ordered.query_id, ordered.split) & _equals_previous(ordered.match_id)
    if (_equals_previous(mixed[order]) & ~repeats).any():  # two keys share their 64 bits: sort by the columns
        ordered = hits.take(np.lexsort((hits.match_id, hits.split, hits.query_id)))
        repeats = _equals_previous(ordered.query_id, ordered.split) & _equals_previous(ordered.match_id)
    if not repeats.any():
        return hits
    first = np.flatnonzero(~repeats)
    return replace(ordered.take(first), similarity=np.maximum.reduceat(ordered.similarity, first))


def rows_of_pairs(image_id: Int64, match_id: Int64, of_image: Int64, of_match: Int64) -> Int64:
    """Return for each pair (image_id, match_id) its row in (of_image, of_match), -1 where it has none.

    int64 (n,) and (m,) in any order, each pair once on either side; returns int64 (n,).
    """
    image, match = np.concatenate([of_image, image_id]), np.concatenate([of_match, match_id])
    order = np.lexsort((match, image))  # stable: of two equal pairs the known one stands first
    at = np.flatnonzero(_equals_previous(image[order], match[order]))
    found = np.full(len(image_id), -1, dtype=np.int64)
    found[order[at] - len(of_image)] = order[at - 1]
    return found


def saturated_queries(hits: Hits, params: JoinParams) -> Int64:
    """Return the ascending ids of queries with a full list at or over the threshold: more matches may lie beyond it.

    hits as `merge_hits` returns them. A full list is k long in an own split and k_cross in another.
    Raises UsageError without a threshold.
    """
    if params.threshold is None:
        raise UsageError("join: saturation needs a threshold; set JoinParams.threshold")
    limit = np.where(hits.is_own, params.k, params.k_cross)
    is_last = _rank_in_list(hits) == limit - 1
    is_saturated = is_last & (hits.similarity >= stored_threshold(params.threshold))
    return np.asarray(np.unique(hits.query_id[is_saturated]), dtype=np.int64)


def floors_of(hits: Hits, k: int) -> tuple[Int64, NDArray[np.float32]]:
    """Return the queries with k hits, ascending int64 (m,), and the similarity of their last, float32 (m,).

    hits of one split, as `merge_hits` returns them: no further one can be among the k nearest that is under that.
    """
    is_last = _rank_in_list(hits) == k - 1
    return np.asarray(hits.query_id[is_last]), np.asarray(hits.similarity[is_last])


def wilson(found: int, total: int) -> tuple[float, float]:
    """Return the Wilson 95% interval of a share, found of total; 0 to 1 where total is 0.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212.
    """
    if total == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    share, weight = found / total, z * z / total
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def _rank_in_list(hits: Hits) -> Int64:
    """Return the position of every row among those of its query and split; hits sorted."""
    return rank_in_run(np.cumsum(~_equals_previous(hits.query_id, hits.split)))


def _equals_previous(*columns: NDArray[np.integer]) -> Mask:
    equals = np.zeros(len(columns[0]), dtype=bool)
    if len(equals) > 1:
        equals[1:] = np.logical_and.reduce([c[1:] == c[:-1] for c in columns])
    return equals
