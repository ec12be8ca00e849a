"""Which list a vector is in, which lists a query looks into, and which partition a list is in.

Lists have one level, or from 4,096 on two: super lists, and the lists of each (`two_level` trains them). A row is then
compared with the lists of its nearest super lists alone: 28,649 lists of 320-d take one core 44 us a row where all of
14,527 take 141, and 1,250 lists of one level 14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.database import DECIMALS, FLOAT32_ERROR, unit_scale, unit_vectors

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

# 600,000 rows of mixed photo embeddings: 32 lists hold .995 of the 32 nearest (of 800 rows each .996), 16 lists of the
# copy space .988 of the ten nearest (.990) and .999 of the pairs at .7 or more (.999), for half of the products.
ROWS_PER_LIST = 400
TWO_LEVELS_FROM = 4096
_ITERATIONS = 10
_BLOCK_ROWS = 2048
_LONG_LIST = 4
_MIN_ROWS_TO_SPLIT = 64
# A row is compared with the lists of 12 super lists and one for every two probes. Of 14,527 lists of varied photos in
# the copy space, 20 of 240 hold .996 of the 16 nearest lists and 28 .996 of 32; pairs at .7 or more meet as often. Of
# 14,693 lists of a tree of classes as large as ImageNet-21K, 16 hold .9997.
_SUPERS = 12
_NEAR_SUPERS = 4
_IN_DOUBT = 2 * FLOAT32_ERROR
_EXACT_PAIRS = 4096


@dataclass(frozen=True)
class Lists:
    """The lists of an index: unit centroids float32 (nlist, d), in the order of their super lists.

    Super list i, of unit centroid supers[i], has lists start[i] to start[i + 1]; supers float32 (s, d), start int64
    (s + 1,). One level is no super list: supers (0, d), start [0]. A super list may be empty. Raises UsageError for
    anything else.
    """

    centroids: Float32
    supers: Float32
    start: Int64

    def __post_init__(self) -> None:
        problems = []
        if self.centroids.ndim != 2 or len(self.centroids) == 0 or self.centroids.shape[1:] != self.supers.shape[1:]:
            problems.append(f"centroids {self.centroids.shape} and supers {self.supers.shape}, want (>= 1, d), (s, d)")
        if len(self.start) != len(self.supers) + 1 or self.start[0] != 0 or (np.diff(self.start) < 0).any():
            problems.append(f"start has {len(self.start)} numbers, want {len(self.supers) + 1} ascending from 0")
        elif len(self.supers) and self.start[-1] != len(self.centroids):
            problems.append(f"start ends at {int(self.start[-1])}, want the {len(self.centroids)} lists")
        if problems:
            raise UsageError("routing: " + "; ".join(problems))

    def __len__(self) -> int:
        return len(self.centroids)


def one_level(centroids: Float32) -> Lists:
    """Return lists without super lists; centroids unit float32 (nlist, d)."""
    return Lists(centroids, centroids[:0], np.zeros(1, dtype=np.int64))


def choose_nlist(representatives: int, exact_limit: int = 100_000) -> int:
    """Return the number of lists: 1 (exact search) up to exact_limit, by count alone, then one per 400 rows."""
    if representatives < 0:
        raise UsageError(f"routing: {representatives} representatives, want at least 0")
    return 1 if representatives <= exact_limit else max(1, round(representatives / ROWS_PER_LIST))


def train_centroids(xt: NDArray[np.floating], nlist: int, seed: int) -> Float32:
    """Return unit centroids float32 (nlist, d) of spherical k-means; the same bits for the same rows in the same order.

    xt float (n, d), finite, not zero; for nlist 1 the mean direction. A list that came out empty takes half of a full
    one (faiss). Raises UsageError for fewer rows than lists, zero or NaN rows.
    """
    if not 1 <= nlist <= max(1, len(xt)):
        raise UsageError(f"routing: {nlist} lists from {len(xt)} training vectors, want 1 to as many as vectors")
    if len(xt) == 0:
        raise UsageError("routing: no training vectors; a database without rows needs no lists")
    unit = unit_vectors(xt, unit_scale(xt, "routing"))
    if nlist == 1:
        return _unit_or_first(unit.mean(axis=0, dtype=np.float64)[None, :], unit[:1])
    kmeans = faiss.Kmeans(
        unit.shape[1],
        nlist,
        niter=_ITERATIONS,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=max(1, -(-len(unit) // nlist)),
    )
    kmeans.train(unit)
    return _unit_or_first(np.asarray(kmeans.centroids, dtype=np.float64), unit[:1])


def _unit_or_first(centroids: Float64, first: Float32) -> Float32:
    """Return centroids at length 1; one without a direction (opposite rows cancelled out) becomes the first row."""
    norm = np.linalg.norm(centroids, axis=1, keepdims=True)
    has_direction = np.isfinite(norm) & (norm > 1e-6)
    return np.where(has_direction, centroids / np.where(has_direction, norm, 1), first).astype(np.float32)


def split_long_lists(xt: NDArray[np.floating], centroids: Float32, seed: int) -> Float32:
    """Return the centroids with every list of over four times the mean replaced by k-means of its own rows.

    xt float (n, d), the training sample; returns float32 (nlist', d), nlist' >= nlist. One pass: a cluster of
    near-identical vectors may stay long, as no centroids tell its rows apart.
    """
    own, _ = route(xt, centroids, 1)
    counts = np.bincount(own, minlength=len(centroids))
    mean = max(counts.mean(), _MIN_ROWS_TO_SPLIT / _LONG_LIST)
    parts = []
    for position, count in enumerate(counts.tolist()):
        if count > _LONG_LIST * mean:
            parts.append(train_centroids(xt[own == position], round(count / mean), seed))
        else:
            parts.append(centroids[position : position + 1])
    return np.concatenate(parts)


def route(x: NDArray[np.floating], centroids: Float32, nprobe: int) -> tuple[Int32, Int32]:
    """Return `route_lists` over lists of one level; centroids unit float32 (nlist, d)."""
    return route_lists(x, one_level(centroids), nprobe)


def route_lists(x: NDArray[np.floating], lists: Lists, nprobe: int) -> tuple[Int32, Int32]:
    """Return each row's own list int32 (n,) and its nprobe nearest lists int32 (n, nprobe), the own one first.

    x float (n, d), finite, not zero; the other probes ascend by list, for only membership matters. nprobe over nlist is
    nlist. Of two levels, only the lists of a row's nearest super lists are compared. Where float32 cannot tell two
    lists apart, float64 rounded to 1e-6 does, ties going to the smaller list: a row's lists do not depend on the rows
    that came with it. Raises UsageError for nprobe < 1, unequal dimensions, zero or NaN rows.
    """
    if nprobe < 1 or x.ndim != 2 or x.shape[1] != lists.centroids.shape[1]:
        raise UsageError(
            f"routing: x {x.shape}, centroids {lists.centroids.shape}, nprobe {nprobe}: want equal d, nprobe >= 1"
        )
    width = min(nprobe, len(lists))
    scale = unit_scale(x, "routing")
    probes = np.zeros((len(x), width), dtype=np.int32)
    rows = _BLOCK_ROWS if len(lists.supers) == 0 else 2 * _BLOCK_ROWS  # products with a super list's lists are short
    for start in range(0, len(x) if len(lists) > 1 else 0, rows):
        block = slice(start, start + rows)
        queries = _Rows(x[block], scale[block], unit_vectors(x[block], scale[block]))
        probes[block] = _route_block(queries, lists, width)
    probes[:, 1:].sort(axis=1)
    return probes[:, 0].copy(), probes


class _Rows(NamedTuple):
    """Rows to route: stored (n, d), scale float64 (n,) = 1 / norm, unit float32 (n, d)."""

    stored: NDArray[np.floating]
    scale: Float64
    unit: Float32

    def cosines(self, rows: Int64, centroids: Float32, lists: Int64) -> Float64:
        """Return the cosines of the pairs (rows[i], lists[i]), float64 (n,)."""
        found = np.empty(len(rows))
        for start in range(0, len(rows), _EXACT_PAIRS):
            block = slice(start, start + _EXACT_PAIRS)
            q = self.stored[rows[block]].astype(np.float64) * self.scale[rows[block], None]
            found[block] = np.einsum("nd,nd->n", q, centroids[lists[block]].astype(np.float64))
        return found


class _Compared(NamedTuple):
    """Similarities of rows to lists, float32 (n, c); name(row, column) is the list of each, None where the column is.

    A row that was compared with fewer than c lists has -inf in its last columns.
    """

    similarity: Float32
    name: Callable[[Int64, Int64], Int64] | None = None

    def names(self, row: Int64, column: Int64) -> Int64:
        """Return the lists of some places."""
        return column if self.name is None else self.name(row, column)


def _route_block(queries: _Rows, lists: Lists, width: int) -> Int64:
    """Return the `width` nearest lists of each row, the nearest first, the others in no order: (n, width)."""
    if len(lists.supers) == 0:
        return _nearest(queries, _Compared(queries.unit @ lists.centroids.T), lists.centroids, width)
    enough = int(np.searchsorted(np.cumsum(np.sort(np.diff(lists.start))), width)) + 1
    count = min(len(lists.supers), max(enough, _SUPERS + width // 2))
    similarity = queries.unit @ lists.supers.T
    supers = _nearest(queries, _Compared(similarity), lists.supers, count)
    order = np.argsort(-np.take_along_axis(similarity, supers, axis=1), axis=1)
    compared = _compare_below(queries.unit, lists, np.take_along_axis(supers, order, axis=1), width)
    return _nearest(queries, compared, lists.centroids, width)


def _compare_below(unit: Float32, lists: Lists, supers: Int64, width: int) -> _Compared:
    """Return what may be among the `width` nearest lists of each row; supers int64 (n, p), the nearest first.

    The lists of the nearest super lists give a floor, under which nothing of the others is kept: all 1,700 similarities
    of a row beside each other took 57 us a row, of which the products are 17.
    """
    near = _all_below(unit, lists, supers[:, :_NEAR_SUPERS])
    columns = near.similarity.shape[1]
    floor = np.full(len(unit), -np.inf, dtype=np.float32)
    if columns > width:
        floor = np.partition(near.similarity, columns - width, axis=1)[:, columns - width] - np.float32(_IN_DOUBT)
    row, column = np.divmod(np.flatnonzero((near.similarity >= floor[:, None]) & np.isfinite(near.similarity)), columns)
    found = [(row, near.names(row, column), near.similarity[row, column])]
    for number, rows in _visits(supers[:, _NEAR_SUPERS:]):
        similarity = unit[rows] @ lists.centroids[lists.start[number] : lists.start[number + 1]].T
        at, column = np.divmod(np.flatnonzero(similarity >= floor[rows, None]), max(1, similarity.shape[1]))
        found.append((rows[at], lists.start[number] + column, similarity[at, column]))
    return _side_by_side(len(unit), *(np.concatenate(values) for values in zip(*found, strict=True)))


def _side_by_side(count: int, row: Int64, name: Int64, similarity: Float32) -> _Compared:
    """Return similarities (m,) of so many rows to lists, as a matrix that is as wide as the longest row."""
    order = np.argsort(row, kind="stable")
    row, length = row[order], np.bincount(row, minlength=count)
    at = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
    values = np.full((count, int(length.max(initial=1))), -np.inf, dtype=np.float32)
    names = np.zeros(values.shape, dtype=np.int64)
    values[row, at], names[row, at] = similarity[order], name[order]
    return _Compared(values, lambda row, column: np.asarray(names[row, column]))


def _all_below(unit: Float32, lists: Lists, supers: Int64) -> _Compared:
    """Return the similarities of each row to all lists of its super lists, int64 (n, p)."""
    length = np.diff(lists.start)[supers]
    offset = np.cumsum(length, axis=1)
    width = int(offset[:, -1].max())
    offset -= length
    similarity = np.full((len(unit), width), -np.inf, dtype=np.float32)
    for number, rows in _visits(supers):
        below = lists.centroids[lists.start[number] : lists.start[number + 1]]
        at = offset[rows, (supers[rows] == number).argmax(axis=1)]
        similarity.reshape(-1)[(rows * width + at)[:, None] + np.arange(len(below))] = unit[rows] @ below.T

    def name(row: Int64, column: Int64) -> Int64:
        at = (column[:, None] >= offset[row]).sum(axis=1) - 1
        return np.asarray(lists.start[supers[row, at]] + column - offset[row, at], dtype=np.int64)

    return _Compared(similarity, name)


def _visits(supers: Int64) -> Iterator[tuple[int, Int64]]:
    """Yield each super list that some rows name, and these rows, ascending."""
    order = np.argsort(supers, axis=None, kind="stable")
    visited, first = np.unique(supers.ravel()[order], return_index=True)
    for number, at in zip(visited.tolist(), np.split(order, first[1:]), strict=False):  # nothing is one empty piece
        yield number, at // supers.shape[1]


def _nearest(queries: _Rows, compared: _Compared, centroids: Float32, width: int) -> Int64:
    """Return the `width` nearest lists of each row, the nearest first, the others in no order: (n, width)."""
    similarity = compared.similarity
    count, columns = similarity.shape
    last = np.partition(similarity, columns - width, axis=1)[:, columns - width]
    # numpy finds flat positions 4 times as fast as rows and columns; a value partition takes half of an argpartition.
    at = np.flatnonzero(similarity >= (last - np.float32(_IN_DOUBT))[:, None])
    row, column = np.divmod(at, columns)
    name = compared.names(row, column)
    found = similarity.reshape(-1)[at].astype(np.float64)
    first = np.searchsorted(row, np.arange(count))
    is_best = found >= np.maximum.reduceat(found, first)[row] - 2 * FLOAT32_ERROR
    is_close = (np.bincount(row, minlength=count) > width) | (np.bincount(row[is_best], minlength=count) > 1)
    nearest = np.empty((count, width), dtype=np.int64)
    is_clear = ~is_close[row]
    nearest[~is_close] = _best_first(name[is_clear].reshape(-1, width), is_best[is_clear].reshape(-1, width))
    row, name = row[~is_clear], name[~is_clear]
    exact = np.round(queries.cosines(row, centroids, name), DECIMALS)
    order = np.lexsort((name, -exact, row))
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    nearest[is_close] = name[order][rank < width].reshape(-1, width)
    return nearest


def _best_first(lists: Int64, is_best: Mask) -> Int64:
    """Return lists (n, width) with the one that is_best marks exchanged with the first of its row."""
    rows, best = np.arange(len(lists)), is_best.argmax(axis=1)
    own = lists[rows, best]
    lists[rows, best] = lists[:, 0]
    lists[:, 0] = own
    return lists


def partition_lists(centroids: Float32, counts: NDArray[np.integer], max_rows: int) -> Int32:
    """Return the partition of each list, int32 (nlist,): neighbours together, at most max_rows rows in each.

    centroids float32 (nlist, d); counts int (nlist,), the rows (or expected rows) of each list. The lists are cut in
    two across their direction of largest spread until each part fits; partitions are numbered in that order. A single
    list over max_rows has a partition of its own. Raises UsageError for max_rows < 1 or unequal lengths.
    """
    if max_rows < 1 or len(counts) != len(centroids):
        raise UsageError(
            f"routing: {len(counts)} counts, {len(centroids)} lists, max_rows {max_rows}: want equal, >= 1"
        )
    rows = np.asarray(counts, dtype=np.int64)
    partition = np.zeros(len(centroids), dtype=np.int32)
    waiting: list[Int64] = [np.arange(len(centroids))]
    number = 0
    while waiting:
        lists = waiting.pop()
        if len(lists) <= 1 or rows[lists].sum() <= max_rows:
            partition[lists] = number
            number += 1
            continue
        near, far = _cut_in_two(centroids[lists].astype(np.float64), rows[lists], max_rows)
        waiting += [lists[far], lists[near]]
    return partition


def _cut_in_two(points: Float64, rows: Int64, max_rows: int) -> tuple[Int64, Int64]:
    """Return the positions of two sides, the first with about half of the partitions needed; neither is empty."""
    parts = -(-int(rows.sum()) // max_rows)
    weight = np.maximum(rows, 1) / np.maximum(rows, 1).sum()
    centred = points - weight @ points
    axis = np.linalg.eigh((centred * weight[:, None]).T @ centred)[1][:, -1]
    for _ in range(_ITERATIONS):
        order = np.argsort(centred @ axis, kind="stable")
        filled = np.cumsum(rows[order])
        cut = int(np.clip(np.searchsorted(filled, filled[-1] * (parts // 2) / parts, side="right"), 1, len(order) - 1))
        near, far = order[:cut], order[cut:]
        shift = _mean(centred, weight, far) - _mean(centred, weight, near)
        if not np.linalg.norm(shift) > 1e-12:
            break
        axis = shift / np.linalg.norm(shift)
    return np.sort(near), np.sort(far)


def _mean(points: Float64, weight: Float64, chosen: Int64) -> Float64:
    return np.asarray(weight[chosen] @ points[chosen] / weight[chosen].sum(), dtype=np.float64)
