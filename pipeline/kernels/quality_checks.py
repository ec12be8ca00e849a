"""Quality checks: a score from 0 to 1, 1 worst, and an issue from 0.5 on."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.histogram import Bins, histogram, quantile

Array = NDArray[Any]

AREA_BINS = Bins(0.0, 64.0)
"""Bins of log2(width * height)."""


@dataclass(frozen=True)
class QualityLimits:
    """The value of each check's measure at which its score is 0.5. Chosen by looking at the pictures on both sides.

    blurry: blur / variance * sqrt(width * height). Dividing by the variance takes out contrast and brightness, the
    factor takes out the resolution: medians of 268, 246 and 231 over photos of 150, 500 and 4,600 px, 1% quantiles of
    14 and 13.5 at the first two. dark: mean + 2 stdv. bright: 255 - mean + 2 stdv. low_contrast: stdv. odd_size:
    interquartile ranges of log2 pixels, none taken as smaller than 2/3 of a doubling. odd_aspect: long side / short
    side. grey: channel_difference. low_information: entropy in bits.
    """

    blurry: float = 8.0
    dark: float = 80.0
    bright: float = 100.0
    low_contrast: float = 16.0
    odd_size: float = 3.0
    odd_aspect: float = 3.0
    grey: float = 2.0
    low_information: float = 3.0

    def __post_init__(self) -> None:
        wrong = [field.name for field in fields(self) if not 1e-6 <= getattr(self, field.name) <= 1e6]
        if wrong or self.odd_aspect <= 1:
            raise UsageError(f"quality limits {', '.join(wrong) or 'odd_aspect'}: want 1e-6 to 1e6, odd_aspect above 1")


@dataclass(frozen=True)
class QualityMeasures:
    """What extraction measured of n `ok` images, each (n,): pixels, grey levels, bits; see the feature_rows table."""

    width: Array
    height: Array
    mean: Array
    stdv: Array
    blur: Array
    channel_difference: Array
    entropy: Array


def area_histogram(width: Array, height: Array) -> Array:
    """Counts of log2(width * height) per bin of AREA_BINS; those of all shards add up to the data set's."""
    return histogram(np.log2(width.astype(np.float64) * height), AREA_BINS)


def quality_scores(measured: QualityMeasures, areas: Array, limits: QualityLimits) -> dict[str, Array]:
    """Scores of every check by name, float64 (n,), rounded to 1e-6.

    `areas` is the data set's area_histogram. A measure x with the limit t scores 1 / (1 + (x / t)^2) where little is
    bad, (x / t)^2 / (1 + (x / t)^2) where much is. A picture of one colour scores low on blurry: it shows nothing that
    could be sharp.
    """
    m = measured
    side = np.sqrt(m.width.astype(np.float64) * m.height)
    ratio = np.maximum(m.width, m.height) / np.minimum(m.width, m.height)
    return {
        "blurry": _little((m.blur + 1.0) / (m.stdv**2 + 1.0) * side, limits.blurry),
        "dark": _little(m.mean + 2.0 * m.stdv, limits.dark),
        "bright": _little(255.0 - m.mean + 2.0 * m.stdv, limits.bright),
        "low_contrast": _little(m.stdv, limits.low_contrast),
        "odd_size": _much(_beyond_quartiles(side, areas), limits.odd_size),
        "odd_aspect": _much(np.log2(ratio), math.log2(limits.odd_aspect)),
        "grey": _little(m.channel_difference, limits.grey),
        "low_information": _little(m.entropy, limits.low_information),
    }


def quality_issues(scores: dict[str, Array]) -> dict[str, Array]:
    """Whether each score is an issue, bool (n,), by the same names."""
    return {check: score >= 0.5 for check, score in scores.items()}


def _beyond_quartiles(side: Array, areas: Array) -> Array:
    """How far log2 pixels lie outside the data set's quartiles, in interquartile ranges; 0 between them."""
    first, third = quantile(areas, 0.25, AREA_BINS), quantile(areas, 0.75, AREA_BINS)
    if math.isnan(first):
        return np.zeros(len(side))
    area = 2.0 * np.log2(side)
    outside = np.maximum(np.maximum(first - area, area - third) - AREA_BINS.width, 0.0)
    return np.asarray(outside / max(third - first, 2.0 / 3.0))


def _little(value: Array, limit: float) -> Array:
    return np.asarray(np.round(1.0 / (1.0 + (value / limit) ** 2), 6))


def _much(value: Array, limit: float) -> Array:
    squared = (value / limit) ** 2
    return np.asarray(np.round(squared / (1.0 + squared), 6))
