"""Outlier scores against brute force, the fence on planted and clean data, percentiles against sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import UsageError
from pipeline.kernels.histogram import histogram
from pipeline.kernels.neighbour_lists import Neighbours, nearest_first
from pipeline.kernels.outliers import (
    SCORE_BINS,
    OutlierRule,
    count_by_label,
    label_percentiles,
    merge_label_counts,
    outlier_fence,
    outlier_scores,
)
from pipeline.schemas import TABLES

RULE = OutlierRule()


def neighbours(own_group, ids, similarities, groups=None) -> Neighbours:
    ids = np.array(ids, np.int64)
    groups = ids if groups is None else np.array(groups, np.int64)
    return Neighbours(np.array(own_group, np.int64), ids, groups, np.array(similarities, np.float64))


@st.composite
def found_lists(draw):
    n, k = draw(st.integers(1, 6)), draw(st.integers(1, 14))
    rows = [draw(st.permutations(range(20)))[:k] for _ in range(n)]
    ids = np.array(rows, np.int64)
    ids[draw(hnp.arrays(bool, (n, k)))] = -1
    similarities = draw(hnp.arrays(np.float64, (n, k), elements=st.sampled_from([-0.25, 0.0, 0.5, 0.75, 1.0])))
    return neighbours(range(n), ids, similarities, np.where(ids < 0, -1, ids // 2))


@settings(max_examples=60, deadline=None)
@given(found_lists(), st.integers(1, 12))
def test_scores_are_those_of_a_loop(found, m) -> None:
    scored = outlier_scores(found, m)

    for q, own in enumerate(found.own_group):
        rows = zip(found.ids[q], found.groups[q], found.similarities[q], strict=True)
        kept = sorted((-s, i) for i, g, s in rows if i >= 0 and g != own)[:m]
        if not kept:
            assert np.isnan(scored.score[q])
            assert scored.nearest_id[q] == -1
            assert np.isnan(scored.nearest_similarity[q])
            continue
        assert scored.score[q] == pytest.approx(min(max(1 + np.mean([s for s, _ in kept]), 0), 1), abs=1e-6)
        assert (scored.nearest_id[q], scored.nearest_similarity[q]) == (kept[0][1], -kept[0][0])


@settings(max_examples=30, deadline=None)
@given(found_lists(), st.randoms(use_true_random=False))
def test_the_order_of_a_list_and_of_the_queries_does_not_matter(found, random) -> None:
    n, k = found.ids.shape
    columns, rows = random.sample(range(k), k), random.sample(range(n), n)
    shuffled = Neighbours(
        found.own_group[rows], *(a[rows][:, columns] for a in (found.ids, found.groups, found.similarities))
    )

    once, again = outlier_scores(found, 10), outlier_scores(shuffled, 10)

    np.testing.assert_array_equal(once.score[rows], again.score)
    np.testing.assert_array_equal(once.nearest_id[rows], again.nearest_id)


def test_the_own_group_and_empty_places_are_left_out() -> None:
    found = neighbours([5], [[7, 6, -1, 9]], [[0.5, 0.99, 1.0, 0.7]], [[7, 5, -1, 9]])

    scored = outlier_scores(found, 10)

    assert scored.score.tolist() == [0.4]
    assert scored.nearest_id.tolist() == [9]
    assert scored.nearest_similarity.tolist() == [0.7]


def test_no_lists_at_all_give_no_scores() -> None:
    scored = outlier_scores(neighbours([0], np.empty((1, 0)), np.empty((1, 0))), 10)

    assert np.isnan(scored.score).all()
    assert scored.nearest_id.tolist() == [-1]


def test_a_nan_similarity_of_a_real_neighbour_is_refused() -> None:
    with pytest.raises(UsageError, match="NaN"):
        nearest_first(neighbours([0], [[1, -1]], [[np.nan, np.nan]]))
    nearest_first(neighbours([0], [[1, -1]], [[0.5, np.nan]]))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="shapes"):
        neighbours([0, 1], [[1, 2]], [[0.5, 0.5]])


def scores_of(points: np.ndarray) -> np.ndarray:
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    similarity = unit @ unit.T
    n = len(unit)
    ids = np.tile(np.arange(n), (n, 1))
    return outlier_scores(Neighbours(np.arange(n), ids, ids, similarity), RULE.neighbours_among(n)).score


def images(seed: int, n: int, planted: int) -> np.ndarray:
    """Loose clusters as the classes of a data set, and planted points on their own."""
    random = np.random.default_rng(seed)
    kinds = min(6, n // 15)
    centres = random.normal(size=(kinds, 64))
    spread = random.uniform(0.3, 0.9, size=(n, 1))
    points = centres[random.integers(0, kinds, n)] + spread * random.normal(size=(n, 64))
    return np.concatenate([points, random.normal(size=(planted, 64))])


@pytest.mark.parametrize("n", [30, 100, 1000, 2000])
def test_planted_outliers_are_found_and_clean_data_is_left_alone(n: int) -> None:
    found = clean = 0.0
    seeds = range(5) if n < 1000 else range(1)
    planted = max(1, n // 100)
    for seed in seeds:
        score = scores_of(images(seed, n, planted))
        flagged = score > outlier_fence(histogram(score, SCORE_BINS), RULE)
        found += flagged[n:].mean() / len(seeds)
        clean += flagged[:n].mean() / len(seeds)

    assert found >= 0.8
    assert clean <= 0.01


def test_small_sets_take_fewer_neighbours() -> None:
    assert [RULE.neighbours_among(n) for n in (1, 30, 59, 60, 10**9)] == [3, 5, 9, 10, 10]


def test_the_fence_is_on_the_logarithm_of_the_mean_similarity() -> None:
    score = np.repeat([0.2, 0.3, 0.4, 0.5], 25)

    fence = outlier_fence(histogram(score, SCORE_BINS), RULE)

    logs = -np.log(1 - np.array([0.2, 0.4]))
    assert fence == pytest.approx(1 - np.exp(-(logs[1] + 2.5 * (logs[1] - logs[0]))), abs=1e-3)


@pytest.mark.parametrize(
    ("score", "fence"),
    [
        pytest.param(np.full(9, 0.1), np.inf, id="nine images"),
        pytest.param(np.empty(0), np.inf, id="no images"),
        pytest.param(np.full(100, 0.1), 0.15, id="all alike: the least gap"),
        pytest.param(np.full(100, 1.0), np.inf, id="nothing resembles anything"),
    ],
)
def test_the_fence_of_degenerate_sets(score, fence) -> None:
    assert outlier_fence(histogram(score, SCORE_BINS), RULE) == pytest.approx(fence, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 3), st.sampled_from([0.0, 0.1, 0.1000001, 0.5, 1.0, np.nan])), max_size=30),
    st.integers(1, 4),
)
def test_label_percentiles_are_mid_ranks_whatever_the_parts(rows, parts) -> None:
    label = np.array([row[0] for row in rows], np.int64)
    score = np.array([row[1] for row in rows], np.float64)

    counts = merge_label_counts(count_by_label(label[p::parts], score[p::parts]) for p in reversed(range(parts)))
    result = label_percentiles(counts, label, score)

    binned = np.round(score, 3)
    for i in range(len(rows)):
        if label[i] < 0 or np.isnan(score[i]):
            assert np.isnan(result[i])
            continue
        peers = binned[(label == label[i]) & ~np.isnan(score)]
        expected = ((peers < binned[i]).sum() + (peers == binned[i]).sum() / 2) / len(peers)
        assert result[i] == pytest.approx(expected)


def test_a_label_nobody_counted_has_no_percentile() -> None:
    counts = count_by_label(np.array([0, 2]), np.array([0.5, 0.5]))

    assert np.isnan(label_percentiles(counts, np.array([1, 3]), np.array([0.5, 0.5]))).all()


def test_the_numbers_in_the_documents_are_the_defaults() -> None:
    notes = TABLES["outliers"].notes

    assert f"the {RULE.neighbours} nearest" in notes
    assert f"fewer in sets under {6 * RULE.neighbours} images" in notes
    assert f"third quartile + {RULE.spread:g} interquartile ranges" in notes
    assert f"at least {RULE.least_gap:g} above" in notes
    assert f"sets under {RULE.least_images} images" in notes
    assert f"1/{SCORE_BINS.count:,}" in notes


@pytest.mark.parametrize("wrong", [{"neighbours": 0}, {"spread": 0}, {"least_gap": -1}, {"least_images": 3}])
def test_a_rule_out_of_range_is_refused(wrong) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        OutlierRule(**wrong)
