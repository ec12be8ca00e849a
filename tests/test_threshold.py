"""The threshold rule on similarities whose tail is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ArtifactError, UsageError
from pipeline.kernels.threshold import (
    HISTOGRAM_BINS,
    CopyPrior,
    NullTail,
    ThresholdParams,
    blend_null,
    describe,
    distinct_rows,
    fit_null,
    null_histogram,
    prior_from_bytes,
    prior_to_bytes,
    recall_curve,
    threshold_for,
    unverified_params,
)
from pipeline.kernels.verify_params import VerifyParams

SHIPPED = NullTail(0.23, 0.04, 10**7, "shipped")


def unit_vectors(seed: int, n: int, d: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def exponential_histogram(anchor: float, scale: float, pairs: float, start: float = 0.0) -> np.ndarray:
    """Counts of `pairs` similarities whose exceedance above `start` is exactly the tail (anchor, scale)."""
    edges = np.arange(HISTOGRAM_BINS + 1) / (HISTOGRAM_BINS / 2) - 1
    above = np.where(edges < start, 1.0, np.minimum(1e-3 * np.exp(-(edges - anchor) / scale), 1.0))
    return np.round(-np.diff(above) * pairs).astype(np.uint64)


def test_the_histogram_counts_every_pair_once_like_brute_force():
    x = unit_vectors(1, 1500, 16)
    counts = null_histogram(x, None)
    assert counts.dtype == np.uint64
    assert counts.sum() == 1500 * 1499 // 2
    similarities = (x.astype(np.float64) @ x.T.astype(np.float64))[np.triu_indices(1500, 1)]
    for threshold in (-0.5, 0.0, 0.25, 0.5):
        first = int((threshold + 1) * HISTOGRAM_BINS / 2)
        assert abs(int(counts[first:].sum()) - int((similarities >= threshold).sum())) <= 5  # float32 at the edge


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_labels_leave_only_pairs_of_two_different_known_classes(seed):
    labels = np.random.default_rng(seed).integers(-1, 4, 80).astype(np.int32)
    x = unit_vectors(seed, 80, 8)
    left, right = np.triu_indices(80, 1)
    wanted = (labels[left] != labels[right]) & (labels[left] >= 0) & (labels[right] >= 0)
    assert null_histogram(x, labels).sum() == wanted.sum()
    same = np.zeros(80, dtype=np.int32)
    assert null_histogram(x, same).sum() == 0
    assert fit_null(null_histogram(x, same), 80, "other class") is None


def test_identical_images_fall_into_the_last_bin_and_not_outside():
    counts = null_histogram(np.repeat(unit_vectors(1, 1, 5), 300, axis=0), None)
    assert counts[-1] + counts[-2] == counts.sum() == 300 * 299 // 2
    tail = fit_null(counts, 300, "random pairs")
    assert tail is not None
    assert threshold_for(tail, 300, ThresholdParams()).ceiling_hit


@pytest.mark.parametrize(("anchor", "scale"), [(0.21, 0.031), (0.27, 0.044), (0.1, 0.02)])
@pytest.mark.parametrize("representatives", [1000, 14_034, 10**7])
def test_an_exponential_tail_is_found_again(anchor, scale, representatives):
    tail = fit_null(exponential_histogram(anchor, scale, 3e7), representatives, "random pairs")
    assert tail is not None
    assert tail.anchor == pytest.approx(anchor, abs=2e-3)
    assert tail.scale == pytest.approx(scale, rel=0.02)
    assert tail.pairs == pytest.approx(3e7, rel=0.01)


def test_true_duplicates_hardly_move_the_threshold():
    histogram = exponential_histogram(0.27, 0.044, 3.5e7)
    clean = fit_null(histogram, 8400, "random pairs")
    copies = histogram.copy()
    copies[60_000] += np.uint64(8400 * 6.4 / 2)  # 600 photos and 9 edits of each among 8,400 images
    dirty = fit_null(copies, 8400, "random pairs")
    params = ThresholdParams()
    moved = threshold_for(dirty, 8400, params).value - threshold_for(clean, 8400, params).value
    assert 0 <= moved < 0.04


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_a_cluster_of_near_copies_does_not_move_the_threshold(share):
    x = unit_vectors(3, 3000, 24)
    frames = unit_vectors(4, 1, 24) + 0.03 * unit_vectors(5, int(3000 * share), 24)
    frames /= np.linalg.norm(frames, axis=1, keepdims=True)
    mixed = np.random.default_rng(6).permutation(np.concatenate([x, frames]))
    kept = distinct_rows(mixed)
    clean, own = (fit_null(null_histogram(rows, None), 200_000, "random pairs") for rows in (x, mixed[kept]))
    assert kept.sum() == distinct_rows(x).sum() + 1
    assert own.similarity(1e-6) == pytest.approx(clean.similarity(1e-6), abs=0.01)
    if share > 0.05:
        assert fit_null(null_histogram(mixed, None), 200_000, "random pairs").similarity(1e-6) > 0.95


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_the_first_of_near_copies_is_kept_like_brute_force(seed, copies):
    x = unit_vectors(seed, 1100, 6)
    x[np.random.default_rng(seed).integers(0, 1100, copies)] = x[0]
    near = np.triu(x @ x.T >= 0.9, 1).any(axis=0)
    assert distinct_rows(x).tolist() == ((~near) if near.mean() <= 0.5 else np.ones(1100, bool)).tolist()
    assert distinct_rows(np.repeat(x[:1], 9, axis=0)).all()
    assert distinct_rows(x[:0]).shape == (0,)


def test_extrapolation_from_a_sample_predicts_what_all_pairs_show():
    """Similarities of a heavy-tailed mixture: 2,000 vectors predict the counts among 12,000 to a factor of two."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(60, 24)) * 0.45
    x = centres[rng.integers(0, 60, 12_000)] + rng.normal(size=(12_000, 24))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    everything = null_histogram(x, None)
    tail = fit_null(null_histogram(x[:2000], None), 12_000, "random pairs")
    assert tail is not None
    above = np.cumsum(everything[::-1].astype(np.int64))[::-1]
    threshold = tail.similarity(1e-5)
    seen = above[int((threshold + 1) * HISTOGRAM_BINS / 2)]
    assert seen <= 2 * 1e-5 * above[0]  # light tails end earlier: the rule may only be too careful


@settings(max_examples=50, deadline=None)
@given(st.floats(0.0, 0.5), st.floats(0.005, 0.1), st.integers(2, 10**9), st.floats(1e-4, 1.0))
def test_the_value_solves_the_rule_or_stands_at_a_limit(anchor, scale, n, budget):
    tail = NullTail(anchor, scale, 10**6, "random pairs")
    params = ThresholdParams(false_per_image=budget, false_in_all=0.0)
    threshold = threshold_for(tail, n, params)
    assert params.floor <= threshold.value <= params.ceiling
    if threshold.floor_hit:
        assert threshold.expected_false <= budget * 1.001
    elif threshold.ceiling_hit:
        assert threshold.expected_false > budget * 0.999
    else:
        assert threshold.expected_false == pytest.approx(budget, rel=1e-3)
    assert threshold_for(tail, 10 * n, params).value >= threshold.value


def test_small_sets_may_compare_more():
    tail = NullTail(0.5, 0.06, 10**6, "random pairs")
    strict = ThresholdParams(false_in_all=0.0)
    allowed = {n: threshold_for(tail, n, ThresholdParams()).expected_false * (n - 1) for n in (300, 1000, 2000)}
    assert allowed == pytest.approx(dict.fromkeys(allowed, 300), rel=1e-3)
    assert threshold_for(tail, 168, ThresholdParams()).value < threshold_for(tail, 168, strict).value - 0.1
    for n in (3002, 14_034, 10**6):
        assert threshold_for(tail, n, ThresholdParams()) == threshold_for(tail, n, strict)


def test_small_folders_lean_on_the_shipped_tail():
    own = NullTail(0.8, 0.09, 4950, "random pairs")
    half = blend_null(own, SHIPPED, 100)
    assert half is not None
    assert half.anchor == pytest.approx((0.8 + 0.23) / 2)
    assert half.scale == pytest.approx((0.09 + 0.04) / 2)
    assert half.source == "random pairs and shipped"
    assert blend_null(None, SHIPPED, 10) is SHIPPED
    assert blend_null(own, None, 10) is own
    assert blend_null(None, None, 10) is None


def test_too_few_pairs_have_no_tail_of_their_own():
    for n in (0, 1, 2, 10, 80):
        assert fit_null(null_histogram(unit_vectors(1, n, 12), None), n, "random pairs") is None
    assert fit_null(null_histogram(unit_vectors(1, 100, 12), None), 100, "random pairs") is not None


def test_without_any_tail_the_threshold_is_the_floor():
    threshold = threshold_for(None, 2, unverified_params())
    assert threshold.value == unverified_params().floor
    assert threshold.floor_hit
    assert math.isnan(threshold.expected_false)
    text = describe(threshold, None, 2)
    assert "unknown (too few images)" in text
    assert "nan" not in text


def test_misses_come_from_the_recall_curve():
    rng = np.random.default_rng(1)
    positives = {"crop": rng.uniform(0.2, 1, 5000), "blur": rng.uniform(0.6, 1, 5000)}
    curve = recall_curve(positives)
    tail = NullTail(0.23, 0.04, 10**6, "random pairs")
    threshold = threshold_for(tail, 100_000, ThresholdParams(), curve)
    for edit, similarities in positives.items():
        assert threshold.expected_misses[edit] == pytest.approx((similarities < threshold.value).mean(), abs=0.02)
    mean = (threshold.expected_misses["crop"] + threshold.expected_misses["blur"]) / 2
    assert threshold.expected_misses["all"] == pytest.approx(mean)
    line = describe(threshold, tail, 100_000)
    assert line.startswith("pairs are compared pixel by pixel from copy similarity")
    unseen = describe(threshold, tail, 100_000, VerifyParams(pixels=False).how)
    assert unseen == line.replace("compared pixel by pixel", "judged by similarity alone")
    assert f"{threshold.value:.3f}" in line
    assert "100,000 images" in line


def test_misses_at_a_threshold_of_the_users_own():
    """The share of known edits below that value, whatever the rule would have taken."""
    similarities = {"crop": np.linspace(0.3, 0.9, 601), "blur": np.linspace(0.5, 1.0, 501)}
    curve = recall_curve(similarities)

    for value in (0.4, 0.6, 0.95):
        below = {edit: (found < value).mean() for edit, found in similarities.items()}
        assert curve.misses_at(value) == pytest.approx({**below, "all": np.mean([*below.values()])}, abs=0.01)


def test_the_prior_reads_back_and_equal_priors_have_equal_bytes():
    prior = CopyPrior(SHIPPED, recall_curve({"crop": np.array([0.5, 0.7]), "blur": np.array([0.9])}))
    data = prior_to_bytes(prior)
    assert data == prior_to_bytes(prior)
    back = prior_from_bytes(data)
    assert back.tail == SHIPPED
    assert back.curve.edits == ("blur", "crop")
    np.testing.assert_array_equal(back.curve.recall, prior.curve.recall)
    with pytest.raises(ArtifactError, match="copy prior"):
        prior_from_bytes(data[:300])


@pytest.mark.parametrize(
    "wrong", [{"false_per_image": 0}, {"false_in_all": -1}, {"floor": 0.9, "ceiling": 0.5}, {"ceiling": 1.5}]
)
def test_params_are_checked(wrong):
    with pytest.raises(UsageError, match="threshold: "):
        ThresholdParams(**wrong)


def test_a_histogram_of_another_size_is_refused():
    with pytest.raises(UsageError, match="65536 bins"):
        fit_null(np.zeros(100, dtype=np.uint64), 10, "random pairs")
