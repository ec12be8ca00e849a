"""Every metric against scipy's full matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from pipeline.errors import UsageError
from pipeline.kernels import metrics
from pipeline.kernels.metrics import METRICS, nearest_by_metric, similarity_of_distance

SCIPY_NAME = {"l1": "cityblock", "linf": "chebyshev"}


def rows_of(seed, n, d=12, dtype=np.float32):
    """Positive rows of unequal length, some of them twice."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, d)) * rng.uniform(0.5, 3, (n, 1)) + 0.01
    x[rng.integers(0, n, n // 4)] = x[rng.integers(0, n, n // 4)]
    return rng.permutation(4 * n)[:n].astype(np.int64), x.astype(dtype)


def assert_nearest(found, distance, query_ids, full, ids, k):
    """Distances are the k smallest of the full matrix, each that of its id, equal ones by id."""
    for row, query in enumerate(query_ids.tolist()):
        others = np.flatnonzero(ids != query)
        expected = np.sort(full[row, others])[:k]
        got = min(k, len(others))
        assert np.allclose(distance[row, :got], expected, rtol=1e-9, atol=1e-7)
        assert (found[row, got:] == -1).all()
        assert np.isinf(distance[row, got:]).all()
        at = {image_id: column for column, image_id in enumerate(ids.tolist())}
        columns = [at[image_id] for image_id in found[row, :got].tolist()]
        assert len(set(columns)) == got
        assert np.allclose(full[row, columns], distance[row, :got], rtol=1e-9, atol=1e-7)
        assert query not in found[row]
        keys = list(zip(distance[row, :got].tolist(), found[row, :got].tolist(), strict=True))
        assert keys == sorted(keys)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(METRICS), st.integers(0, 1000), st.integers(1, 60), st.integers(1, 70), st.sampled_from("fe"))
def test_the_nearest_are_those_of_the_full_matrix(metric, seed, n, k, dtype):
    ids, x = rows_of(seed, n, dtype=np.dtype(dtype))
    chosen = np.random.default_rng(seed).permutation(n)[: max(1, n // 2)]
    found, distance = nearest_by_metric(x[chosen], ids[chosen], x, ids, metric, k)
    assert found.shape == distance.shape == (len(chosen), min(k, n))
    wide = x.astype(np.float64)
    full = np.nan_to_num(cdist(wide[chosen], wide, SCIPY_NAME.get(metric, metric)))
    assert_nearest(found, distance, ids[chosen], full, ids, k)
    similarity = similarity_of_distance(distance)
    assert ((similarity >= 0) & (similarity <= 1)).all()
    assert (np.diff(similarity, axis=1) <= 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_and_the_order_of_rows_do_not_matter(metric, monkeypatch):
    ids, x = rows_of(3, 300)
    whole = nearest_by_metric(x, ids, x, ids, metric, 7)
    monkeypatch.setattr(metrics, "_BLOCK_NUMBERS", 2000)
    monkeypatch.setattr(metrics, "_PAIRS", 17)
    order = np.random.default_rng(0).permutation(300)
    again = nearest_by_metric(x, ids, x[order], ids[order], metric, 7)
    assert (whole[0] == again[0]).all()
    assert (whole[1] == again[1]).all()


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_are_found_by_the_smallest_ids(metric):
    ids = np.random.default_rng(1).permutation(2000).astype(np.int64)
    x = np.tile(np.random.default_rng(2).random(9), (2000, 1))
    found, distance = nearest_by_metric(x[:50], ids[:50], x, ids, metric, 3)
    assert np.allclose(distance, 0, atol=1e-7)
    assert found.tolist() == [[i for i in range(4) if i != query][:3] for query in ids[:50].tolist()]


def test_distances_of_lengths_far_apart_are_not_lost_in_the_product():
    """Far from the origin a product leaves no digit of a small distance."""
    rng = np.random.default_rng(4)
    x = 1e6 + rng.standard_normal((400, 8)) * np.logspace(-5, 0, 400)[:, None]
    ids = np.arange(400)
    found, distance = nearest_by_metric(x, ids, x, ids, "euclidean", 5)
    full = cdist(x, x)
    np.fill_diagonal(full, np.inf)
    assert (found == np.argsort(full, axis=1, kind="stable")[:, :5]).all()
    assert np.allclose(distance, np.sort(full, axis=1)[:, :5], rtol=1e-12)


def test_zero_rows_have_distances_where_they_are_defined():
    x = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, -1.0], [-1.0, 1.0]])
    for metric in ("euclidean", "l1", "linf", "canberra", "braycurtis"):
        found, distance = nearest_by_metric(x, np.arange(4), x, np.arange(4), metric, 3)
        assert found[0, 0] == 1
        assert distance[0, 0] == 0
        assert np.isfinite(distance).all()
    found, distance = nearest_by_metric(x, np.arange(4), x[:0], np.arange(0), "l1", 3)
    assert found.shape == (4, 0)


def test_wrong_input_is_refused():
    ids, x = rows_of(5, 20)
    for wrong, text in [
        ((x, ids, x, ids, "hamming", 3), "want one of cosine"),
        ((x, ids, x, ids, "l1", 0), "at least 1"),
        ((x[:, :3], ids, x, ids, "l1", 2), "want equal"),
        ((x, ids[:4], x, ids, "l1", 2), "want equal"),
        ((x, ids, x, ids * 0, "l1", 2), "twice"),
        ((x, ids, x * np.nan, ids, "l1", 2), "NaN"),
        ((x, ids, x * 0, ids, "cosine", 2), "no cosine"),
        ((x, ids, -x, ids, "jensenshannon", 2), "distributions"),
        ((x, ids, np.zeros((50_001, 12)), np.arange(50_001), "l1", 2), "at most 50000"),
    ]:
        with pytest.raises(UsageError, match=text):
            nearest_by_metric(*wrong)
