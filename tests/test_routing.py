"""Lists and partitions: right against float64, stable, and bounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels.routing import choose_nlist, partition_lists, route, split_long_lists, train_centroids


def clusters(seed, n, d=16, centres=20):
    rng = np.random.default_rng(seed)
    return (3 * rng.standard_normal((centres, d))[rng.integers(0, centres, n)] + rng.standard_normal((n, d))).astype(
        np.float32
    )


def expected_route(x, centroids, nprobe):
    wide = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    order = np.argsort(-np.round(wide @ centroids.T.astype(np.float64), 6), axis=1, kind="stable")[:, :nprobe]
    order[:, 1:].sort(axis=1)
    return order


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 40), st.sampled_from([np.float32, np.float16]))
def test_routes_are_the_nearest_lists_whatever_the_batch(seed, nlist, nprobe, dtype):
    x = clusters(seed, 60).astype(dtype)
    centroids = train_centroids(clusters(seed, 200), nlist, seed)
    if nlist > 3:
        centroids[nlist // 2] = centroids[0]  # equal lists: the smaller one owns
    own, probes = route(x, centroids, nprobe)
    assert own.dtype == probes.dtype == np.int32
    assert probes.tolist() == expected_route(x, centroids, nprobe).tolist()
    assert (own == probes[:, 0]).all()
    order = np.random.default_rng(seed).permutation(60)
    for part in (order[:7], order[7:8], order[8:]):
        assert (route(x[part], centroids, nprobe)[1] == probes[part]).all()


def test_blocks_of_routing_join_seamlessly():
    x, centroids = clusters(1, 2500), train_centroids(clusters(2, 500), 12, 0)
    assert route(x, centroids, 4)[1].tolist() == expected_route(x, centroids, 4).tolist()


def test_training_is_deterministic_unit_length_and_finds_the_clusters():
    x = clusters(3, 2000)
    centroids = train_centroids(x, 20, seed=5)
    assert centroids.shape == (20, 16)
    assert centroids.dtype == np.float32
    assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)
    assert (train_centroids(x, 20, seed=5) == centroids).all()
    assert np.allclose(train_centroids(x * 8, 20, seed=5), centroids, atol=1e-6)  # a power of two moves no bit
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    untrained = (unit @ unit[:20].T).max(axis=1).mean()
    assert (unit @ centroids.T).max(axis=1).mean() > (1 + 2 * untrained) / 3


def test_one_list_is_the_mean_direction_even_where_rows_cancel_out():
    x = clusters(4, 100)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    mean = unit.mean(axis=0)
    assert np.allclose(train_centroids(x, 1, 0), mean / np.linalg.norm(mean), atol=1e-6)
    opposite = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    assert train_centroids(opposite, 1, 0).tolist() == [[1, 0]]
    own, probes = route(opposite, train_centroids(opposite, 1, 0), 8)
    assert own.tolist() == [0, 0]
    assert probes.tolist() == [[0], [0]]


def test_identical_vectors_share_their_lists():
    x = np.ones((300, 8), dtype=np.float32)
    centroids = train_centroids(x, 7, 0)
    assert np.isfinite(centroids).all()
    own, probes = route(x, centroids, 3)
    assert len(np.unique(own)) == 1
    assert len(np.unique(probes, axis=0)) == 1


def test_long_lists_are_split():
    rng = np.random.default_rng(0)
    crowd = np.array([5, 0, 0, 0]) + rng.standard_normal((4000, 4))
    x = np.concatenate([crowd, clusters(5, 1000, d=4)]).astype(np.float32)
    centroids = train_centroids(clusters(5, 1000, d=4), 30, 0)
    longest = np.bincount(route(x, centroids, 1)[0], minlength=30).max()
    split = split_long_lists(x, centroids, seed=0)
    counts = np.bincount(route(x, split, 1)[0], minlength=len(split))
    assert len(split) > 30
    assert counts.max() < longest / 2
    same = split_long_lists(clusters(5, 1000), train_centroids(clusters(5, 1000), 20, 0), seed=0)
    assert same.shape == (20, 16)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 80), st.integers(1, 3000), st.booleans())
def test_partitions_hold_at_most_their_rows(seed, nlist, max_rows, alike):
    rng = np.random.default_rng(seed)
    centroids = np.ones((nlist, 4), np.float32) if alike else rng.standard_normal((nlist, 4)).astype(np.float32)
    counts = rng.integers(0, 300, nlist)
    partition = partition_lists(centroids, counts, max_rows)
    assert partition.dtype == np.int32
    assert sorted(set(partition.tolist())) == list(range(partition.max() + 1))
    rows, lists = np.bincount(partition, weights=counts), np.bincount(partition)
    assert ((rows <= max_rows) | (lists == 1)).all()
    if counts.sum() <= max_rows:
        assert not partition.any()


def test_neighbouring_lists_share_a_partition():
    """Queries of 8 lists touch far fewer of 12 partitions than they would if lists were dealt out at random."""
    x = clusters(6, 6000, d=16, centres=60)
    centroids = train_centroids(x, 120, 0)
    own, probes = route(x, centroids, 8)
    partition = partition_lists(centroids, np.bincount(own, minlength=120), 600)
    touched = np.mean([len(set(row)) for row in partition[probes].tolist()])
    dealt = np.random.default_rng(0).permutation(partition)
    assert touched < 0.6 * np.mean([len(set(row)) for row in dealt[probes].tolist()])


def test_the_number_of_lists_follows_the_count_alone():
    assert [choose_nlist(n) for n in (0, 1, 100_000, 100_001, 1_000_000)] == [1, 1, 1, 250, 2500]
    assert choose_nlist(5000, exact_limit=0) == 12
    assert choose_nlist(3, exact_limit=0) == 1


def test_wrong_input_is_refused():
    x = clusters(7, 10)
    for wrong in [(x, 11), (x, 0), (x[:0], 1)]:
        with pytest.raises(UsageError, match="routing"):
            train_centroids(*wrong, 0)
    centroids = train_centroids(x, 2, 0)
    for wrong in [(x, centroids, 0), (x[:, :4], centroids, 1), (x * 0, centroids, 1), (x * np.nan, centroids, 1)]:
        with pytest.raises(UsageError, match="routing"):
            route(*wrong)
    for wrong in [(np.ones(2), 0), (np.ones(3), 5)]:
        with pytest.raises(UsageError, match="routing"):
            partition_lists(centroids, *wrong)
    with pytest.raises(UsageError):
        choose_nlist(-1)
