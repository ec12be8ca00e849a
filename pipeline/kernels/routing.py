"""Which list a vector is in, which lists a query looks into, and which partition a list is in."""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.database import DECIMALS, FLOAT32_ERROR, unit_scale, unit_vectors

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

ROWS_PER_LIST = 800
_ITERATIONS = 10
_BLOCK_ROWS = 1024
_LONG_LIST = 4
_MIN_ROWS_TO_SPLIT = 64


def choose_nlist(representatives: int, exact_limit: int = 100_000) -> int:
    """Return the number of lists: 1 (exact search) up to exact_limit, by count alone, then one per 800 rows."""
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
    """Return each row's own list int32 (n,) and its nprobe nearest lists int32 (n, nprobe), the own one first.

    x float (n, d), finite, not zero; centroids unit float32 (nlist, d); the other probes ascend by list, for only
    membership matters. nprobe over nlist is nlist. Where float32 cannot tell two lists apart, float64 rounded to 1e-6
    does, ties going to the smaller list: a row's lists do not depend on the rows that came with it.
    Raises UsageError for nprobe < 1, unequal dimensions, zero or NaN rows.
    """
    if nprobe < 1 or x.ndim != 2 or x.shape[1] != centroids.shape[1]:
        raise UsageError(
            f"routing: x {x.shape}, centroids {centroids.shape}, nprobe {nprobe}: want equal d, nprobe >= 1"
        )
    width = min(nprobe, len(centroids))
    scale = unit_scale(x, "routing")
    probes = np.zeros((len(x), width), dtype=np.int32)
    if len(centroids) == 1:
        return probes[:, 0], probes
    for start in range(0, len(x), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        probes[block] = _route_block(x[block], scale[block], centroids, width)
    probes[:, 1:].sort(axis=1)
    return probes[:, 0].copy(), probes


def _route_block(x: NDArray[np.floating], scale: Float64, centroids: Float32, width: int) -> Int32:
    unit = np.zeros((_BLOCK_ROWS, x.shape[1]), dtype=np.float32)  # full blocks: faiss is slow on short ones
    unit[: len(x)] = unit_vectors(x, scale)
    fetched = min(width + 1, len(centroids))
    similarity, found = faiss.knn(unit, centroids, fetched, faiss.METRIC_INNER_PRODUCT)
    probes: Int32 = found[: len(x), :width].astype(np.int32)
    gap = similarity[: len(x), :-1] - similarity[: len(x), 1:]
    is_close = gap[:, 0] < 2 * FLOAT32_ERROR
    if fetched > width:
        is_close |= gap[:, width - 1] < 2 * FLOAT32_ERROR
    rows = np.flatnonzero(is_close)
    if len(rows):
        exact = (x[rows].astype(np.float64) * scale[rows, None]) @ centroids.T.astype(np.float64)
        order = np.argsort(-np.round(exact, DECIMALS), axis=1, kind="stable")
        probes[rows] = order[:, :width]
    return probes


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
