"""Keepers by hand and against sorting, medoids against all pairs, chaining."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels.groups import (
    LOSES,
    WINS,
    GroupMembers,
    KeeperPolicy,
    chained,
    choose_keepers,
    choose_medoids,
    group_minimum,
    has_edge_to,
)
from pipeline.schemas import TABLES
from pipeline.sources.splits import SPLIT_NAMES


def contenders(rows: list[tuple[int, int, int, int, int, int]]) -> GroupMembers:
    return GroupMembers(*np.array(rows, np.int64).reshape(-1, 6).T)


def reasons(rows: list[tuple[int, int, int, int, int, int]]) -> list[str]:
    kept = choose_keepers(contenders(rows))
    names = [(WINS if keeper else LOSES)[reason] for keeper, reason in zip(kept.is_keeper, kept.reason, strict=True)]
    return [f"{'keep' if keeper else 'drop'}: {name}" for keeper, name in zip(kept.is_keeper, names, strict=True)]


def test_evaluation_splits_keep_their_images() -> None:
    assert KeeperPolicy().ranks(["train", "val", "fold3", "test"]).tolist() == [3, 1, 2, 0, 4]
    assert KeeperPolicy(("gold",)).ranks(["train", "test", "gold"])[[2, 1, 0, -1]].tolist() == [0, 1, 2, 3]
    assert KeeperPolicy(("train", "gold")).ranks(["gold", "train", "dev"])[[1, 0, 2, -1]].tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("split", [*sorted(set(SPLIT_NAMES.values()) - {"train"}), "fold3"])
def test_every_split_but_train_keeps_its_copy_of_a_training_image(split) -> None:
    """Of a small copy in the split and a large one in train, the small one is kept; no split at all comes last."""
    named, train, none = KeeperPolicy().ranks([split, "train"])
    rows = [(1, 1, none, 90, 90, 1), (1, 2, train, 50, 50, 2), (1, 3, named, 10, 10, 3)]

    assert reasons(rows) == ["drop: split later", "drop: split later", "keep: split first"]


@pytest.mark.parametrize(
    ("first", "second", "rule"),
    [
        pytest.param((0, 10, 1, 99), (2, 9999, 9999, 1), 0, id="split before size"),
        pytest.param((0, 20, 1, 99), (0, 10, 9999, 1), 1, id="pixels before bytes"),
        pytest.param((0, 10, 200, 99), (0, 10, 100, 1), 2, id="bytes before path"),
        pytest.param((0, 10, 100, 5), (0, 10, 100, 6), 3, id="path before id"),
        pytest.param((0, 10, 100, 5), (0, 10, 100, 5), 4, id="smaller id"),
    ],
)
def test_each_rule_decides_when_the_ones_before_are_equal(first, second, rule) -> None:
    ids = (1, 2) if rule == 4 else (2, 1)
    rows = [(7, ids[0], *first), (7, ids[1], *second)]

    assert reasons(rows) == [f"keep: {WINS[rule]}", f"drop: {LOSES[rule]}"]
    assert reasons(rows[::-1]) == [f"drop: {LOSES[rule]}", f"keep: {WINS[rule]}"]


def test_a_keeper_is_explained_by_the_runner_up_and_the_others_by_the_keeper() -> None:
    rows = [(1, 1, 0, 50, 10, 9), (1, 2, 0, 50, 20, 9), (1, 3, 2, 90, 90, 9), (1, 4, 0, 40, 10, 9)]

    assert reasons(rows) == ["drop: smaller file", "keep: larger file", "drop: split later", "drop: fewer pixels"]


def test_an_image_alone_is_its_keeper_without_a_reason() -> None:
    kept = choose_keepers(contenders([(5, 5, 0, 1, 1, 1)]))

    assert (kept.is_keeper.tolist(), kept.reason.tolist()) == ([True], [-1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 5), max_size=14), st.randoms(use_true_random=False))
def test_keepers_are_the_first_of_a_sort_in_any_order(rows, random) -> None:
    rows = [(group, image, *rest) for image, (group, *rest) in enumerate(rows)]
    shuffled = random.sample(rows, len(rows))

    kept = choose_keepers(contenders(shuffled))

    best = {}
    for group, image, rank, pixels, size, length in rows:
        best[group] = min(best.get(group, (9,)), (rank, -pixels, -size, length, image))
    expected = {key[-1] for key in best.values()}
    assert {row[1] for row, keep in zip(shuffled, kept.is_keeper, strict=True) if keep} == expected


def test_the_reasons_in_the_documents_are_the_ones_given() -> None:
    notes = TABLES["groups"].notes

    assert all(f"`{reason}`" in notes for reason in (*WINS, *LOSES))
    assert f"split ({', '.join(KeeperPolicy().splits)}, any other, train, none:" in notes


def unit(random: np.random.Generator, n: int, d: int = 320) -> np.ndarray:
    vectors = random.normal(size=(n, d)) + 1.5 * random.normal(size=d)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_medoids_are_those_of_all_pairs(seed) -> None:
    random = np.random.default_rng(seed)
    group = np.sort(random.integers(0, 6, 60))
    vectors = unit(random, 60)

    found = choose_medoids(group, vectors)

    similarity = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    for g in np.unique(group):
        rows = np.flatnonzero(group == g)
        inside = similarity[np.ix_(rows, rows)]
        medoid = rows[(inside.sum(axis=1) - inside.diagonal()).argmax()]
        assert (found[rows] == medoid).all()


def test_the_smallest_similarity_of_a_group_is_that_of_its_rows() -> None:
    group, similarity = np.array([7, 2, 7, 2, 9]), np.array([0.5, 0.9, 0.3, 1.0, 0.7])

    assert group_minimum(group, similarity).tolist() == [0.3, 0.9, 0.3, 0.9, 0.7]


def test_a_medoid_does_not_depend_on_the_groups_around_it_and_ties_go_to_the_first() -> None:
    random = np.random.default_rng(0)
    vectors, group = unit(random, 40), np.repeat([1, 4, 9], [2, 25, 13])

    whole = choose_medoids(group, vectors)
    alone = choose_medoids(group[2:27], vectors[2:27])

    np.testing.assert_array_equal(whole[2:27] - 2, alone)
    assert whole[:2].tolist() == [0, 0]
    assert choose_medoids(np.zeros(5, np.int64), np.repeat(vectors[:1], 5, axis=0)).tolist() == [0] * 5


def test_no_groups_and_unsorted_groups() -> None:
    assert len(choose_medoids(np.empty(0, np.int64), np.empty((0, 8), np.float32))) == 0
    assert len(group_minimum(np.empty(0, np.int64), np.empty(0))) == 0
    with pytest.raises(UsageError, match="not sorted"):
        choose_medoids(np.array([2, 1]), np.ones((2, 3), np.float32))


def test_a_member_far_from_the_medoid_is_chained_unless_an_edge_joins_them() -> None:
    image = np.array([10, 11, 12, 13, 14])
    medoid = np.full(5, 12)
    edges = np.array([[12, 11], [10, 11], [13, 12]])

    linked = has_edge_to(medoid, image, edges)

    assert linked.tolist() == [False, True, True, True, False]
    assert chained(np.array([0.4, 0.4, 1.0, 0.9, 0.6]), 0.5, linked).tolist() == [True, False, False, False, False]
    assert has_edge_to(medoid, image, np.empty((0, 2), np.int64)).tolist() == [False, False, True, False, False]


def test_a_split_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="different names"):
        KeeperPolicy(("val", "val"))
