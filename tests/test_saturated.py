"""The saturated search against brute force: the same components as all pairs at or over the threshold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels import saturated
from pipeline.kernels.components import labels_for, merge_forests, star_forest
from pipeline.kernels.database import build_database
from pipeline.kernels.saturated import saturated_forest


def database(ids, x, own):
    return build_database(ids, x, np.ones(len(ids), dtype=np.uint64), own)


def expected_forest(images, queries, threshold, allowed=None):
    (ids, x), (qids, xq) = images, queries
    wide = [v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=1, keepdims=True) for v in (xq, x)]
    is_pair = np.round(wide[0] @ wide[1].T, 6) >= round(threshold, 6)
    if allowed is not None:
        is_pair &= allowed
    q, r = np.nonzero(is_pair)
    return star_forest(qids[q], ids[r])


def clusters_of(seed, n, d=12, spread=0.25):
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((max(1, n // 15), d))
    x = centre[rng.integers(0, len(centre), n)] + spread * rng.standard_normal((n, d))
    return rng.permutation(3 * n)[:n].astype(np.int64), x.astype(np.float32)


def assert_same(a, b):
    assert a.child.tolist() == b.child.tolist()
    assert a.root.tolist() == b.root.tolist()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 150), st.floats(0.5, 1), st.integers(1, 64), st.integers(1, 5), st.booleans()
)
def test_the_forest_is_that_of_all_pairs(seed, n, threshold, block, lists, half):
    ids, x = clusters_of(seed, n)
    if half:
        x = x.astype(np.float16)
    rng = np.random.default_rng(seed)
    own = rng.integers(0, lists, n)
    chosen = rng.permutation(n)[: max(1, n // 2)]
    probes = np.stack([own, rng.integers(-1, lists, n)], axis=1).astype(np.int32)[chosen]
    allowed = (probes[:, :, None] == own[None, None, :]).any(axis=1)
    expected = expected_forest((ids, x), (ids[chosen], x[chosen]), threshold, allowed)
    whole = saturated_forest(database(ids, x, own), ids[chosen], x[chosen], probes, threshold, block)
    assert_same(whole, expected)
    parts = []
    for p in range(lists):
        rows = rng.permutation(np.flatnonzero(own == p))
        for side in (slice(0, None, 2), slice(1, None, 2)):
            part = database(ids[rows], x[rows], own[rows])
            parts.append(saturated_forest(part, ids[chosen][side], x[chosen][side], probes[side], threshold))
    assert_same(merge_forests(parts), expected)


@pytest.mark.parametrize("n", [700, 2600])
def test_pilot_and_large_trees_change_nothing(n, monkeypatch):
    monkeypatch.setattr(saturated, "_LARGE_TREE", 64)
    ids, x = clusters_of(n, n, spread=0.15)
    x[: n // 3] = x[0] + 1e-3 * np.random.default_rng(0).standard_normal((n // 3, 12))
    zero = np.zeros(n, dtype=np.int32)
    for threshold in (0.8, 0.95, 0.999):
        forest = saturated_forest(database(ids, x, zero), ids, x, zero[:, None], threshold, 256)
        assert_same(forest, expected_forest((ids, x), (ids, x), threshold))


def test_a_higher_threshold_refines():
    ids, x = clusters_of(2, 400)
    zero = np.zeros(400, dtype=np.int32)
    forests = [saturated_forest(database(ids, x, zero), ids, x, zero[:, None], t) for t in (0.6, 0.8, 0.9, 0.97)]
    for coarse, fine in itertools.pairwise(forests):
        assert (labels_for(fine.child, coarse) == labels_for(fine.root, coarse)).all()
    assert len(forests[0].child) > len(forests[-1].child)


def test_pairs_at_the_threshold_itself_count_and_those_a_millionth_below_do_not():
    angle = np.arccos(np.array([1.0, 0.9, 0.899998]))
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    x[2, 1] *= -1
    zero = np.zeros(3, dtype=np.int32)
    forest = saturated_forest(database(np.arange(3), x, zero), np.arange(1), x[:1], zero[:1, None], 0.9)
    assert (forest.child.tolist(), forest.root.tolist()) == ([1], [0])


def test_a_chain_and_a_cluster_of_copies_are_one_tree_each():
    angle = np.linspace(0, 3, 500)
    chain = np.stack([np.cos(angle), np.sin(angle), 0 * angle, 0 * angle], axis=1)
    copies = np.tile([0, 0, 1, 0], (500, 1)) + 1e-6 * np.random.default_rng(0).standard_normal((500, 4))
    x = np.concatenate([chain, copies, [[0, 0, 0, 1]]]).astype(np.float32)
    ids = np.random.default_rng(1).permutation(1001).astype(np.int64)
    zero = np.zeros(1001, dtype=np.int32)
    forest = saturated_forest(database(ids, x, zero), ids, x, zero[:, None], 0.9999, 100)
    label = labels_for(ids, forest)
    assert set(label[:500].tolist()) == {ids[:500].min()}
    assert set(label[500:1000].tolist()) == {ids[500:1000].min()}
    assert label[1000] == ids[1000]


def test_blocks_inside_one_tree_are_skipped(monkeypatch):
    """20,000 near-identical vectors: the first queries join them all, and the 25 blocks of the rest compute nothing."""
    ids, zero = np.arange(20_000), np.zeros(20_000, dtype=np.int32)
    x = np.ones((20_000, 4), dtype=np.float32)
    x += 1e-3 * np.random.default_rng(0).standard_normal((20_000, 4)).astype(np.float32)
    computed = []
    real = saturated._unite_where
    monkeypatch.setattr(saturated, "_unite_where", lambda p, a, b, m: (computed.append(m.size), real(p, a, b, m)))
    forest = saturated_forest(database(ids, x, zero), ids, x, zero[:, None], 0.9)
    assert (forest.root == 0).all()
    assert len(forest.child) == 19_999
    assert sum(computed) <= 3 * 32 * 20_000


def test_empty_sides_and_wrong_input():
    ids, x = clusters_of(0, 10)
    zero = np.zeros(10, dtype=np.int32)
    db = database(ids, x, zero)
    assert len(saturated_forest(db, ids[:0], x[:0], zero[:0, None], 0.5).child) == 0
    assert len(saturated_forest(database(ids[:0], x[:0], zero[:0]), ids, x, zero[:, None], 0.5).child) == 0
    assert len(saturated_forest(db, ids, x, zero[:, None] + 9, 0.5).child) == 0
    for block in (0, 4097):
        with pytest.raises(UsageError, match="block"):
            saturated_forest(db, ids, x, zero[:, None], 0.5, block)
    with pytest.raises(UsageError, match="saturated queries"):
        saturated_forest(db, ids, x * 0, zero[:, None], 0.5)
