"""Outliers: how far an image is from its nearest images, against the whole data set and its label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.histogram import Bins, bin_of, quantile
from pipeline.kernels.neighbour_lists import Neighbours, nearest_first

Array = NDArray[Any]

SCORE_BINS = Bins(0.0, 1.0)
"""Bins of the score for the data set's histogram and for those of the labels."""


@dataclass(frozen=True)
class OutlierRule:
    """How a score is made and when it is an outlier's.

    neighbours: how many nearest images the mean is over; in sets under six times as many a sixth of the set, but three
    (among 30 scenes of six kinds ten neighbours are of two kinds: 68% of what was planted is found, not 53%).
    spread: how many interquartile ranges of -ln(mean similarity) an outlier lies beyond the third quartile.
    least_gap: and by how much its score exceeds that quartile's, for sets whose images hardly differ.
    least_images: smaller sets have quartiles of chance; nothing is flagged in them.
    """

    neighbours: int = 10
    spread: float = 2.5
    least_gap: float = 0.05
    least_images: int = 10

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.spread <= 0 or self.least_gap < 0 or self.least_images < 4:
            raise UsageError(f"{self}: want neighbours >= 1, spread > 0, least_gap >= 0, least_images >= 4")

    def neighbours_among(self, representatives: int) -> int:
        """How many nearest images the mean is over in a data set of so many."""
        return min(self.neighbours, max(3, representatives // 6))


@dataclass(frozen=True)
class Scores:
    """Per query: score float64 (n,), NaN without a neighbour; nearest_id int64 (n,), -1; nearest_similarity, NaN."""

    score: Array
    nearest_id: Array
    nearest_similarity: Array


def outlier_scores(found: Neighbours, neighbours: int) -> Scores:
    """Score every query: 1 minus the mean similarity to its nearest images outside its group, within 0 to 1.

    `neighbours` is OutlierRule.neighbours_among of the data set; with fewer the mean is over those there are. Rounded
    to 1e-6.
    """
    ids, similarities = (each[:, :neighbours] for each in nearest_first(found))
    count = (ids >= 0).sum(axis=1)
    alone = count == 0
    mean = similarities.sum(axis=1) / np.maximum(count, 1)
    if ids.shape[1] == 0:
        nothing = np.full(len(ids), np.nan)
        return Scores(nothing, np.full(len(ids), -1, np.int64), nothing)
    return Scores(
        np.where(alone, np.nan, np.round(np.clip(1.0 - mean, 0.0, 1.0), 6)),
        ids[:, 0],
        np.where(alone, np.nan, similarities[:, 0]),
    )


def nearest_means(query_id: Array, similarity: Array, neighbours: int) -> tuple[Array, Array]:
    """Ids that have neighbours, int64 (n,), and the mean similarity to the nearest so many of each, float64 (n,).

    query_id int64, similarity (m,), by ascending query, nearest first. Rounded to 1e-6.
    """
    ids, start, count = np.unique(query_id, return_index=True, return_counts=True)
    if len(ids) == 0:
        return ids, np.empty(0)
    rank = np.arange(len(query_id)) - np.repeat(start, count)
    near = np.where(rank < neighbours, np.asarray(similarity, np.float64), 0.0)
    return ids, np.round(np.add.reduceat(near, start) / np.minimum(count, neighbours), 6)


def outlier_fence(counts: Array, rule: OutlierRule) -> float:
    """The score above which an image is an outlier, from the histogram (SCORE_BINS) of all representatives' scores.

    Tukey's fence Q3 + spread * IQR on -ln(1 - score): on the score itself the fence of a small, varied set lies
    beyond every possible score. Of 45 pictures of other things, 1% put among n Intel scenes, 68% were found at n = 30,
    85-88% at 100 to 14,034, with 0.5-1.0% of the scenes flagged (on the score, Q3 + 2 IQR: 18% at 30, 32% at 100).
    Infinite where fewer than least_images were scored or the third quartile is 1.
    """
    if counts.sum() < rule.least_images:
        return float("inf")
    first, third = (1.0 - quantile(counts, share, SCORE_BINS) for share in (0.25, 0.75))
    if third <= SCORE_BINS.width:
        return float("inf")
    fence = third * (third / first) ** rule.spread
    return float(1.0 - min(fence, third - rule.least_gap))


@dataclass(frozen=True)
class LabelCounts:
    """Histograms of scores per label, only the bins in use: sorted by label, then bin; count int64, all (m,)."""

    label: Array
    bin: Array
    count: Array


def count_by_label(label: Array, score: Array) -> LabelCounts:
    """Histograms of the scores of each label. label int (n,), < 0 for none; score float64 (n,), NaN for none."""
    scored = (label >= 0) & ~np.isnan(score)
    return _sum(label[scored].astype(np.int64), bin_of(score[scored], SCORE_BINS), np.ones(scored.sum(), np.int64))


def merge_label_counts(parts: Iterable[LabelCounts]) -> LabelCounts:
    """The histograms of all parts together, whatever their order."""
    held = [*parts, count_by_label(np.empty(0, np.int64), np.empty(0))]
    return _sum(*(np.concatenate([getattr(part, name) for part in held]) for name in ("label", "bin", "count")))


def _sum(label: Array, at: Array, count: Array) -> LabelCounts:
    key, inverse = np.unique(label * SCORE_BINS.count + at, return_inverse=True)
    total = np.zeros(len(key), np.int64)
    np.add.at(total, inverse, count)
    return LabelCounts(key // SCORE_BINS.count, key % SCORE_BINS.count, total)


def label_percentiles(counts: LabelCounts, label: Array, score: Array) -> Array:
    """The share of its label's scores below each score, those of its own bin counting half, as percentile_of has it.

    float64 (n,), 0 to 1; NaN without label or score, and for a label that `counts` does not hold.
    """
    result = np.full(len(label), np.nan)
    asked = np.flatnonzero((label >= 0) & ~np.isnan(score))
    total = np.concatenate([[0], np.cumsum(counts.count)])
    key = counts.label * SCORE_BINS.count + counts.bin
    wanted = label[asked].astype(np.int64)
    at = wanted * SCORE_BINS.count + bin_of(score[asked], SCORE_BINS)
    start, stop = (total[np.searchsorted(counts.label, wanted, side)] for side in ("left", "right"))
    below, through = (total[np.searchsorted(key, at, side)] for side in ("left", "right"))
    known = stop > start
    middle = (below + through) / 2 - start
    result[asked[known]] = middle[known] / (stop - start)[known]
    return result
