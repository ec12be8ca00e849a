"""The vote against brute force, planted wrong labels, rare and single labels, label conflicts by hand and by loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels.conflicts import label_conflicts
from pipeline.kernels.labels import (
    Confidence,
    Judgement,
    LabelRule,
    judge,
    label_confidence,
    label_issues,
    label_shares,
    merge_confidence,
    vote,
)
from pipeline.kernels.neighbour_lists import Neighbours
from pipeline.schemas import TABLES

RULE = LabelRule()


def search(points: np.ndarray, k: int = 32) -> Neighbours:
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2.0)
    ids = np.argsort(-similarity, axis=1, kind="stable")[:, : min(k, len(unit) - 1)]
    return Neighbours(np.arange(len(unit)), ids, ids, np.take_along_axis(similarity, ids, axis=1))


def judged(points: np.ndarray, label: np.ndarray, rule: LabelRule = RULE):
    own = np.arange(len(points))
    labelled = np.flatnonzero(label >= 0)
    result = judge(vote(search(points), label_shares(own, label), rule), labelled, label[labelled])
    usual = label_confidence(result, label[labelled], int(label.max()) + 1)
    return result, label_issues(result, label[labelled], usual, rule)


def classes(seed: int, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(len(sizes), 48))
    label = np.repeat(np.arange(len(sizes)), sizes)
    return centres[label] + 0.8 * random.normal(size=(len(label), 48)), label


@st.composite
def small_worlds(draw):
    members = draw(st.lists(st.tuples(st.integers(0, 7), st.integers(-1, 3)), min_size=1, max_size=24))
    n, k = 4, 6
    ids = np.array([draw(st.permutations(range(-2, 8)))[:k] for _ in range(n)], np.int64)
    similarity = np.array(draw(st.lists(st.sampled_from([0.2, 0.5, 0.9]), min_size=n * k, max_size=n * k))).reshape(
        n, k
    )
    return np.array(members), Neighbours(np.arange(n), ids, ids // 2, similarity)


@settings(max_examples=60, deadline=None)
@given(small_worlds(), st.integers(1, 6))
def test_the_vote_is_that_of_a_loop(world, m) -> None:
    members, found = world
    shares = label_shares(members[:, 0], members[:, 1])
    votes = vote(found, shares, LabelRule(neighbours=m, temperature=0.3))

    for q in range(4):
        total: dict[int, float] = {}
        rows = sorted(
            (-s, i)
            for i, g, s in zip(found.ids[q], found.groups[q], found.similarities[q], strict=True)
            if i >= 0 and g != q
        )
        labels_of = [(s, members[(members[:, 0] == i) & (members[:, 1] >= 0), 1]) for s, i in rows]
        voters = [(s, labels) for s, labels in labels_of if len(labels)][:m]
        for s, labels in voters:
            for label in labels:
                total[label] = total.get(label, 0) + np.exp((-s - 1) / 0.3) / len(labels)
        entry = slice(votes.start[q], votes.start[q + 1])
        assert votes.count[q] == len(voters)
        assert votes.label[entry].tolist() == sorted(total)
        np.testing.assert_allclose(votes.share[entry], [total[x] / sum(total.values()) for x in sorted(total)])


def test_a_representative_votes_once_with_the_shares_of_its_group() -> None:
    shares = label_shares(np.array([4, 4, 4, 4, 9]), np.array([0, 0, 1, -1, 1]))
    found = Neighbours(np.array([0]), np.array([[4, 9]]), np.array([[4, 9]]), np.array([[0.5, 0.5]]))

    votes = vote(found, shares, RULE)

    assert votes.label.tolist() == [0, 1]
    np.testing.assert_allclose(votes.share, [1 / 3, 2 / 3])
    assert votes.count.tolist() == [2]


def test_scores_suggestions_and_ties() -> None:
    shares = label_shares(np.arange(10, 14), np.array([0, 0, 1, 2]))
    ids = np.array([[10, 11, 12, 13], [10, 12, -1, -1], [-1, -1, -1, -1]])
    found = Neighbours(np.arange(3), ids, ids, np.full(ids.shape, 0.5))
    result = judge(vote(found, shares, RULE), np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 3, 0, 2, 0]))

    np.testing.assert_allclose(result.score, [62.5, 37.5, 25.0, 50.0, 25.0, np.nan])
    assert result.suggested.tolist() == [-1, 0, 0, -1, 0, -1]
    np.testing.assert_allclose(result.other_share, [0.25, 0.5, 0.5, 0.5, 0.5, np.nan])


@pytest.mark.parametrize(
    ("given_share", "other_share", "suggested", "issue"),
    [
        pytest.param(0.03, 0.8, 1, True, id="clearly the other"),
        pytest.param(0.03, 0.57, 1, True, id="just over 0.8 of the other's usual 0.7"),
        pytest.param(0.03, 0.55, 1, False, id="under it"),
        pytest.param(0.05, 0.9, 1, False, id="over 0.1 of its own usual 0.4"),
        pytest.param(0.03, 0.8, -1, False, id="nothing suggested"),
        pytest.param(0.0, 1.0, 2, False, id="a label that no image with votes has"),
    ],
)
def test_an_issue_needs_a_likely_other_and_an_unlikely_given_label(given_share, other_share, suggested, issue) -> None:
    usual = Confidence(np.array([400_000, 1_400_000, 0]), np.array([1, 2, 0]))
    one = Judgement(*(np.array([x]) for x in (given_share, other_share, 1, 10.0, suggested)))

    assert label_issues(one, np.array([0]), usual, RULE).tolist() == [issue]


@pytest.mark.parametrize("seed", range(3))
def test_planted_wrong_labels_are_found(seed: int) -> None:
    points, truth = classes(seed, [150] * 5)
    random = np.random.default_rng(seed)
    label = truth.copy()
    changed = random.random(len(label)) < 0.05
    label[changed] = (label[changed] + random.integers(1, 5, changed.sum())) % 5

    result, issue = judged(points, label)

    assert issue[changed].mean() >= 0.7
    assert changed[issue].mean() >= 0.9
    assert (result.suggested[issue & changed] == truth[issue & changed]).all()
    wrong, right = result.score[changed], result.score[~changed]
    assert (wrong[:, None] < right[None, :]).mean() >= 0.98


def test_clean_labels_and_a_rare_label_give_no_issues() -> None:
    points, label = classes(1, [200, 200, 12, 3, 1])

    _, issue = judged(points, label)

    assert not issue.any()


def test_a_single_label_gives_full_agreement_and_no_issue() -> None:
    points, label = classes(2, [40])

    result, issue = judged(points, label)

    assert (result.score == 100).all()
    assert not issue.any()
    assert (result.suggested == -1).all()


def test_unlabelled_neighbours_do_not_vote_and_unlabelled_images_are_not_judged() -> None:
    points, label = classes(3, [60, 60])
    label[::3] = -1

    result, _ = judged(points, label)

    assert len(result.score) == (label >= 0).sum()
    with pytest.raises(UsageError, match="without a label"):
        judge(vote(search(points), label_shares(np.arange(120), label), RULE), np.array([0]), np.array([-1]))


def test_nobody_to_vote() -> None:
    found = Neighbours(np.array([0]), np.array([[-1]]), np.array([[-1]]), np.array([[0.0]]))
    nothing = label_shares(np.empty(0, np.int64), np.empty(0, np.int64))

    result = judge(vote(found, nothing, RULE), np.array([0]), np.array([0]))

    assert np.isnan(result.score).all()
    assert not label_issues(result, np.array([0]), label_confidence(result, np.array([0]), 1), RULE).any()


def test_confidence_adds_up_in_any_order_and_queries_do_not_depend_on_their_company() -> None:
    points, label = classes(4, [70, 50, 30])
    shares, found = label_shares(np.arange(150), label), search(points)
    whole = judge(vote(found, shares, RULE), np.arange(150), label)
    parts, scores = [], []
    for rows in (np.arange(100, 150), np.arange(0, 37), np.arange(37, 100)):
        part = Neighbours(*(a[rows] for a in (found.own_group, found.ids, found.groups, found.similarities)))
        result = judge(vote(part, shares, RULE), np.arange(len(rows)), label[rows])
        parts.append(label_confidence(result, label[rows], 3))
        scores.append((rows, result.score))

    for rows, score in scores:
        np.testing.assert_array_equal(whole.score[rows], score)
    expected = label_confidence(whole, label, 3)
    for order in (parts, parts[::-1]):
        merged = merge_confidence(order, 3)
        assert merged.micros.tolist() == expected.micros.tolist()
        assert merged.count.tolist() == [70, 50, 30]


def test_the_numbers_in_the_documents_are_the_defaults() -> None:
    notes = TABLES["labels"].notes

    assert f"The {RULE.neighbours} most similar" in notes
    assert f"(similarity - 1) / {RULE.temperature:g})" in notes
    assert f"at least {RULE.support:g} of" in notes
    assert f"under {RULE.doubt:g} of" in notes


@pytest.mark.parametrize("wrong", [{"neighbours": 0}, {"temperature": 0}, {"doubt": 0.9}, {"support": 1.1}])
def test_a_rule_out_of_range_is_refused(wrong) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        LabelRule(**wrong)


def test_boxes_of_one_image_are_no_conflict_of_each_other() -> None:
    """Two equal boxes of image 7 under two labels, a copy of the first label, one of a third, and a box of image 7
    that is near them.
    """
    label, parent = np.array([0, 1, 0, 2]), np.array([7, 7, -1, 7])

    found = label_conflicts(np.arange(4), np.array([0, 0, 0, 3]), np.zeros(4, np.int64), label, parent)

    assert found.row.tolist() == [1, 2, 3]
    assert found.conflict_id.tolist() == [2, 1, 2]
    assert found.is_certain.tolist() == [True, True, False]
    assert found.label_count.tolist() == [3] * 3


def test_conflicts_of_an_exact_and_a_near_group_by_hand() -> None:
    image_id = np.array([0, 1, 2, 3, 4, 5, 6, 7])
    representative = np.array([0, 0, 2, 0, 4, 5, 6, 6])
    group = np.array([0, 0, 0, 0, 4, 4, 6, 6])
    label = np.array([1, 1, 2, 0, 3, -1, 5, 5])

    found = label_conflicts(image_id, representative, group, label, np.full(8, -1))

    assert found.row.tolist() == [0, 1, 2, 3]
    assert found.is_certain.tolist() == [True, True, False, True]
    assert found.conflict_id.tolist() == [3, 3, 0, 0]
    assert found.label_count.tolist() == [3] * 4
    assert found.label_share.tolist() == [0.5, 0.5, 0.25, 0.25]
    assert found.majority.tolist() == [1] * 4


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(*(st.integers(low, 2) for low in (0, 0, -1, -1))), max_size=14),
    st.randoms(use_true_random=False),
)
def test_conflicts_are_those_of_a_loop_in_any_order(rows, random) -> None:
    order = random.sample(range(len(rows)), len(rows))
    group = np.array([rows[i][0] for i in order], np.int64)
    representative = group * 10 + np.array([rows[i][1] for i in order], np.int64)
    label = np.array([rows[i][2] for i in order], np.int32)
    parent = np.array([rows[i][3] for i in order], np.int64)
    ids = np.array(order, np.int64)

    found = label_conflicts(ids, representative, group, label, parent)

    expected = []
    for i in sorted(range(len(ids)), key=lambda i: (group[i], ids[i])):
        peers = (group == group[i]) & (label >= 0)
        other = peers & (label != label[i]) & ((parent != parent[i]) | (parent < 0))
        exact = other & (representative == representative[i])
        if label[i] < 0 or not other.any():
            continue
        names, counts = np.unique(label[peers], return_counts=True)
        top = names[counts == counts.max()]
        conflict = ids[exact].min() if exact.any() else ids[other].min()
        share = (label[peers] == label[i]).mean()
        expected.append((i, exact.any(), conflict, len(names), share, top[0] if len(top) == 1 else -1))
    columns = (found.row, found.is_certain, found.conflict_id, found.label_count, found.label_share, found.majority)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected


def test_conflict_arguments_of_different_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="one of each"):
        label_conflicts(np.arange(2), np.arange(2), np.arange(2), np.arange(3), np.arange(2))
