"""Histograms against numpy's order statistics, and their merge in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels.histogram import (
    SIMILARITY_BINS,
    Bins,
    bin_of,
    histogram,
    merge_histograms,
    percentile_of,
    quantile,
)

VALUES = st.lists(st.floats(-1, 1), min_size=1, max_size=200)
BINS = [SIMILARITY_BINS, Bins(-3.0, 5.0, 1000)]


@settings(max_examples=50, deadline=None)
@given(VALUES, st.floats(0, 1), st.sampled_from(BINS))
def test_a_quantile_is_within_half_a_bin_of_the_order_statistic(values, share, bins):
    counts = histogram(values, bins)
    rank = max(1, math.ceil(share * len(values)))
    assert quantile(counts, share, bins) == pytest.approx(sorted(values)[rank - 1], abs=bins.width / 2 + 1e-12)


@settings(max_examples=30, deadline=None)
@given(VALUES, st.integers(1, 5), st.randoms(use_true_random=False))
def test_shards_add_up_in_any_order(values, shards, random):
    shuffled = random.sample(values, len(values))
    parts = [histogram(shuffled[s::shards]) for s in range(shards)]
    random.shuffle(parts)
    assert (merge_histograms(parts) == histogram(values)).all()
    assert (merge_histograms([merge_histograms(parts[1:]), parts[0]]) == histogram(values)).all()


@settings(max_examples=30, deadline=None)
@given(VALUES)
def test_a_percentile_is_the_share_below_and_half_of_the_equals(values):
    position = bin_of(values)
    share = percentile_of(values, histogram(values))
    for p, value in zip(position.tolist(), share.tolist(), strict=True):
        assert value == pytest.approx(((position < p).sum() + (position == p).sum() / 2) / len(values))


def test_both_ends_and_what_lies_beyond_are_counted():
    counts = histogram([-1, 1, 1.0000001, -1.5, np.inf])
    assert (counts[0], counts[-1], counts.sum(), counts.dtype) == (2, 3, 5, np.int64)
    assert bin_of([-1, -1 + SIMILARITY_BINS.width, 0]).tolist() == [0, 1, 32768]


def test_no_values():
    empty = histogram([])
    assert empty.sum() == 0
    assert (merge_histograms([]) == empty).all()
    assert math.isnan(quantile(empty, 0.5))
    assert np.isnan(percentile_of([0.1], empty)).all()


def test_wrong_input_is_refused():
    with pytest.raises(UsageError, match="1 of 2 values are NaN"):
        histogram([0.0, np.nan])
    with pytest.raises(UsageError, match="quantile"):
        quantile(histogram([0]), 1.5)
    with pytest.raises(UsageError, match="a part has"):
        merge_histograms([np.zeros(5, dtype=np.int64)])
    for wrong in ((1, 1, 5), (0, np.inf, 5), (0, 1, 0)):
        with pytest.raises(UsageError, match="want low < high"):
            Bins(*wrong)
