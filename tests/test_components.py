"""Components against a plain search of the graph, and the invariants of a forest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels.components import (
    Forest,
    Touched,
    empty_forest,
    group_sizes,
    labels_for,
    merge_forests,
    star_forest,
    touched_ids,
    union_dense,
    union_forests,
)

EDGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=60)
SPREAD = [0, 1, 7, 10**6, 10**12]


def arrays(edges, factor=1):
    return tuple(np.array([e[side] * factor for e in edges], dtype=np.int64) for side in (0, 1))


def brute_labels(edges):
    """The smallest id reachable from each id, by walking the graph."""
    near = {}
    for a, b in edges:
        near.setdefault(a, set()).add(b)
        near.setdefault(b, set()).add(a)
    label = {}
    for start in sorted(near):
        waiting = [start] if start not in label else []
        while waiting:
            node = waiting.pop()
            if node not in label:
                label[node] = start
                waiting += near[node]
    return label


def forest_dict(forest):
    return dict(zip(forest.child.tolist(), forest.root.tolist(), strict=True))


def shapes():
    rng = np.random.default_rng(0)
    chain = [(i, i + 1) for i in range(3000)]
    order = rng.permutation(3001).tolist()
    yield "sorted chain", chain
    yield "reversed chain", [(b, a) for a, b in reversed(chain)]
    yield "shuffled chain", [(order[a], order[b]) for a, b in rng.permutation(chain).tolist()]
    yield "star", [(3000, i) for i in range(3000)]
    yield "cliques and a bridge", [(a + o, b + o) for o in (0, 30) for a in range(30) for b in range(a)] + [(5, 45)]
    yield "random", rng.integers(0, 2000, (1500, 2)).tolist()
    yield "single self-loop", [(5, 5)]
    yield "empty", []


@pytest.mark.parametrize(("name", "edges"), list(shapes()), ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("factor", [1, 10**12])
def test_known_shapes_equal_a_walk_of_the_graph(name, edges, factor):
    expected = {n * factor: root * factor for n, root in brute_labels(edges).items()}
    a, b = arrays(edges, factor)
    forest = star_forest(a, b)
    assert forest_dict(forest) == {n: root for n, root in expected.items() if n != root}


@settings(max_examples=60, deadline=None)
@given(EDGES, st.sampled_from(SPREAD[1:]), st.randoms(use_true_random=False), st.integers(1, 5))
def test_order_direction_repetition_and_sharding_do_not_matter(edges, factor, random, shards):
    forest = star_forest(*arrays(edges, factor))
    expected = {n * factor: root * factor for n, root in brute_labels(edges).items() if n != root}
    assert forest_dict(forest) == expected
    mixed = [e if random.random() < 0.5 else e[::-1] for e in edges + edges[:7]]
    random.shuffle(mixed)
    parts = [star_forest(*arrays(mixed[s::shards], factor)) for s in range(shards)]
    for tree in (merge_forests(parts), merge_forests([merge_forests(parts[1:]), parts[0], empty_forest()])):
        assert forest_dict(tree) == expected
        assert (np.diff(tree.child) > 0).all()
        assert (tree.root < tree.child).all()
        assert not np.isin(tree.root, tree.child).any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.floats(0, 1)), max_size=60), st.floats(0, 1))
def test_a_higher_threshold_refines(edges, threshold):
    coarse = star_forest(*arrays(edges))
    fine = star_forest(*arrays([e for e in edges if e[2] >= threshold]))
    assert (labels_for(fine.child, coarse) == labels_for(fine.root, coarse)).all()


@settings(max_examples=30, deadline=None)
@given(EDGES, st.integers(1, 10))
def test_dense_union_equals_the_forest_for_any_chunks(edges, chunk):
    chunks = [arrays(edges[s : s + chunk]) for s in range(0, len(edges), chunk)]
    assert union_dense(41, chunks).tolist() == labels_for(np.arange(41), star_forest(*arrays(edges))).tolist()
    assert union_dense(41, chunks[::-1]).dtype == np.uint32


@settings(max_examples=40, deadline=None)
@given(EDGES, st.sampled_from([1, 7, 64, 1000]), st.integers(1, 6))
def test_a_union_of_forests_equals_their_merger_over_all_ids_and_over_a_list(edges, factor, shards):
    a, b = arrays(edges, factor)
    forests = [star_forest(a[s::shards], b[s::shards]) for s in range(shards)]
    touched = touched_ids(40 * factor + 1, forests)
    for nodes in (touched, Touched(40 * factor + 1)):
        slices = list(union_forests(nodes, iter(forests)))
        found = Forest(*(np.concatenate([piece[side] for piece in slices] or [a[:0]]) for side in (0, 1)))
        assert forest_dict(found) == forest_dict(merge_forests(forests))
        assert (np.diff(found.child) > 0).all()
    assert (touched.ids == np.union1d(a[a != b], b[a != b])).all()
    assert (touched.nodes(touched.ids) == np.arange(touched.size)).all()


def test_labels_and_sizes_of_groups():
    forest = star_forest(np.array([1, 2, 7]), np.array([2, 9, 8]))
    labels = labels_for(np.array([9, 0, 8, 1, 7]), forest)
    assert labels.tolist() == [1, 0, 7, 1, 7]
    sizes = group_sizes(labels)
    assert (sizes.label.tolist(), sizes.size.tolist()) == ([0, 1, 7], [1, 2, 2])
    none = np.empty(0, dtype=np.int64)
    assert len(labels_for(none, forest)) == len(group_sizes(none).label) == len(merge_forests([]).child) == 0


def test_wrong_edges_are_refused():
    with pytest.raises(UsageError, match="negative"):
        star_forest(np.array([1, -1]), np.array([2, 3]))
    with pytest.raises(UsageError, match="want equal"):
        star_forest(np.array([1]), np.array([2, 3]))
    with pytest.raises(UsageError, match="node 5"):
        union_dense(5, [(np.array([1]), np.array([5]))])
    with pytest.raises(UsageError, match="2\\*\\*32"):
        union_dense(2**32 + 1, [])
