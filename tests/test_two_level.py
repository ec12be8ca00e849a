"""Lists of two levels: trained in parts, routed as their definition says, whatever comes in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels import routing
from pipeline.kernels.routing import Lists, one_level, partition_lists, route, route_lists
from pipeline.kernels.two_level import (
    expected_rows,
    stack_lists,
    sublist_counts,
    train_sublists,
    train_super,
)


def clusters(seed, n, d=16, centres=60):
    rng = np.random.default_rng(seed)
    centre = 3 * np.random.default_rng(centres).standard_normal((centres, d))
    return (centre[rng.integers(0, centres, n)] + rng.standard_normal((n, d))).astype(np.float32)


def trained(x, nlist, seed=0):
    supers = train_super(x, nlist, seed)
    own, _ = route(x, supers, 1)
    counts = sublist_counts(np.bincount(own, minlength=len(supers)), nlist)
    parts = [train_sublists(x[own == i], int(count), seed) for i, count in enumerate(counts)]
    return stack_lists(supers, [part.centroids for part in parts]), np.concatenate([part.rows for part in parts])


def ranked(x, centroids):
    """Positions of the centroids by (-cosine rounded to 1e-6, position), float64."""
    wide = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    return np.argsort(-np.round(wide @ centroids.T.astype(np.float64), 6), axis=1, kind="stable")


def expected_probes(x, lists, nprobe, supers):
    out = []
    for row, nearest in zip(x, ranked(x, lists.supers)[:, :supers], strict=True):
        below = np.concatenate([np.arange(lists.start[s], lists.start[s + 1]) for s in sorted(nearest)])
        chosen = below[ranked(row[None], lists.centroids[below])[0, :nprobe]]
        out.append([int(chosen[0]), *sorted(chosen[1:].tolist())])
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 12), st.sampled_from([np.float32, np.float16]))
def test_routes_are_the_nearest_lists_of_the_nearest_super_lists_whatever_the_batch(seed, supers, nprobe, dtype):
    rng = np.random.default_rng(seed)
    lists, _ = trained(clusters(seed, 900), 60, seed)
    lists.centroids[rng.integers(0, 60, 5)] = lists.centroids[7]  # equal lists: the smaller one owns
    lists.supers[2] = lists.supers[1]
    x = clusters(seed + 1, 80).astype(dtype)
    length = np.sort(np.diff(lists.start))
    enough = int(np.flatnonzero(np.cumsum(length) >= nprobe)[0]) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "_SUPERS", supers)
        own, probes = route_lists(x, lists, nprobe)
        assert own.dtype == probes.dtype == np.int32
        count = min(len(lists.supers), max(enough, supers + nprobe // 2))
        assert probes.tolist() == expected_probes(x, lists, nprobe, count)
        assert (own == probes[:, 0]).all()
        order = rng.permutation(80)
        for part in (order[:9], order[9:10], order[10:]):
            assert (route_lists(x[part], lists, nprobe)[1] == probes[part]).all()


def test_every_super_list_probed_is_the_flat_route():
    lists, _ = trained(clusters(1, 3000), 200)
    x = clusters(2, 500)
    for nprobe in (1, 200, 5000):
        nearest = ranked(x, lists.centroids)[:, :nprobe]
        own, probes = route_lists(x, one_level(lists.centroids), nprobe)
        assert own.tolist() == nearest[:, 0].tolist()
        assert np.sort(probes, axis=1).tolist() == np.sort(nearest, axis=1).tolist()
        if nprobe > 1:  # of one list the nearest super lists do not hold the nearest
            assert (route_lists(x, lists, nprobe)[1] == probes).all()
            assert (route_lists(x, lists, nprobe)[0] == own).all()


def test_blocks_of_routing_join_seamlessly(monkeypatch):
    lists, _ = trained(clusters(3, 2000), 150)
    x = clusters(4, 700)
    whole = route_lists(x, lists, 8)[1]
    monkeypatch.setattr(routing, "_BLOCK_ROWS", 64)
    assert (route_lists(x, lists, 8)[1] == whole).all()
    assert len(route_lists(x[:0], lists, 8)[0]) == 0


def test_two_levels_lose_little_of_one():
    lists, _ = trained(clusters(5, 12_000, centres=300), 1200)
    x = clusters(6, 1000, centres=300)
    flat, two = route(x, lists.centroids, 8), route_lists(x, lists, 8)
    assert (flat[0] == two[0]).mean() > 0.99
    overlap = [len(set(a) & set(b)) for a, b in zip(flat[1].tolist(), two[1].tolist(), strict=True)]
    assert np.mean(overlap) / 8 > 0.98


def test_training_is_deterministic_and_covers_the_lists_asked_for():
    x = clusters(7, 5000)
    lists, rows = trained(x, 300)
    again, _ = trained(x, 300)
    assert (lists.centroids == again.centroids).all()
    assert (lists.supers == again.supers).all()
    assert len(lists.supers) == 34
    assert len(lists) >= 300
    assert len(rows) == len(lists)
    assert rows.sum() == 5000
    assert np.allclose(np.linalg.norm(lists.centroids, axis=1), 1, atol=1e-6)
    total = expected_rows(rows, 1_000_000)
    assert 1_000_000 <= total.sum() <= 1_000_000 + len(lists)
    partition = partition_lists(lists.centroids, total, 200_000)
    assert np.bincount(partition, weights=total).max() <= 200_000


@pytest.mark.parametrize("n", [1, 5, 400])
def test_identical_vectors_have_lists_too(n):
    lists, rows = trained(np.ones((n, 8), dtype=np.float32), min(n, 100))
    assert np.isfinite(lists.centroids).all()
    assert rows.sum() == n
    own, probes = route_lists(np.ones((20, 8), dtype=np.float16), lists, 3)
    assert len(np.unique(own)) == 1
    assert len(np.unique(probes, axis=0)) == 1


def test_super_lists_without_rows_or_with_fewer_rows_than_lists():
    empty = train_sublists(np.empty((0, 8), dtype=np.float32), 4, 0)
    assert empty.centroids.shape == (0, 8)
    assert len(empty.rows) == 0
    assert train_sublists(clusters(8, 3, d=8), 10, 0).centroids.shape == (3, 8)
    assert train_sublists(clusters(8, 3, d=8), 0, 0).centroids.shape == (0, 8)
    supers = train_super(clusters(9, 100, d=8), 16, 0)
    parts = [train_sublists(clusters(i, 20, d=8), 3, 0).centroids for i in range(8)]
    lists = stack_lists(supers, [parts[0], empty.centroids, *parts[2:7], empty.centroids])
    own, probes = route_lists(clusters(10, 50, d=8), lists, 17)
    assert all(len(set(row)) == 17 for row in probes.tolist())
    assert own.max() < len(lists)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=30), st.integers(1, 400))
def test_lists_are_dealt_in_proportion_to_rows(rows, nlist):
    counts = sublist_counts(np.array(rows), nlist)
    assert (counts <= rows).all()
    assert ((counts > 0) == (np.array(rows) > 0)).all()
    assert min(nlist, sum(rows)) <= counts.sum() <= nlist + np.count_nonzero(rows)
    larger = np.argsort(rows, kind="stable")
    assert (np.diff(counts[larger]) >= -1).all()


def test_wrong_input_is_refused():
    x = clusters(11, 10)
    lists, _ = trained(x, 4)
    for wrong in [(x[:0], 5, 0), (x, 0, 0), (x * 0, 4, 0)]:
        with pytest.raises(UsageError, match="routing"):
            train_super(*wrong)
    for wrong in [(x, 0), (x[:, :4], 1), (x * np.nan, 1)]:
        with pytest.raises(UsageError, match="routing"):
            route_lists(wrong[0], lists, wrong[1])
    for wrong in [
        (lists.centroids[:-1], lists.supers, lists.start),
        (lists.centroids, lists.supers, lists.start[::-1]),
        (lists.centroids, lists.supers[:1], lists.start),
        (lists.centroids[:, :3], lists.supers, lists.start),
        (lists.centroids[:0], lists.supers[:0], lists.start[:1]),
    ]:
        with pytest.raises(UsageError, match="routing"):
            Lists(*wrong)
    with pytest.raises(UsageError, match="routing"):
        stack_lists(lists.supers, [lists.centroids[:0]] * len(lists.supers))
