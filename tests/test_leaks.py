"""Leak rows by hand, against a loop over all pairs, in any order; severities; counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels.leaks import (
    LEAKING,
    SEVERITY,
    TRANSITIVE,
    TRANSITIVE_SEVERITY,
    Edges,
    Leaks,
    Members,
    expand_matches,
    leak_severity,
)
from pipeline.schemas import KIND_ORDER, TABLES, Kind

BYTES, PIXELS, NEAR, EDITED, PARENT, SCENE, LOOK = (
    KIND_ORDER.index(kind)
    for kind in (
        Kind.SAME_BYTES,
        Kind.SAME_PIXELS,
        Kind.NEAR_IDENTICAL,
        Kind.EDITED,
        Kind.SAME_PARENT,
        Kind.SAME_SCENE,
        Kind.LOOK_ALIKE,
    )
)
TRAIN, VAL, TEST, NONE = 0, 1, 2, -1


def members(rows: list[tuple[int, ...]]) -> Members:
    """Rows of (image, representative, group, content, split, label) and, where there are any, parent."""
    table = np.array([(*row, -1)[:7] for row in sorted(rows)], np.int64).reshape(-1, 7)
    return Members(*table[:, :4].T, table[:, 4].astype(np.int16), table[:, 5].astype(np.int32), table[:, 6])


def edges(rows: list[tuple[int, int, int, float]]) -> Edges:
    table = np.array(rows, np.float64).reshape(-1, 4)
    return Edges(*table[:, :2].T.astype(np.int64), table[:, 2].astype(np.int8), table[:, 3])


def listed(leaks: Leaks) -> list[tuple]:
    columns = (leaks.image_id, leaks.match_split, leaks.match_id, leaks.kind, leaks.severity, leaks.is_label_conflict)
    return list(zip(*(column.tolist() for column in columns), strict=True))


PLANTED = members(
    [  # an exact group over three splits and two labels: 1 and 4 share bytes, 2 and 3 only pixels with them
        (1, 1, 1, 1, TRAIN, 0),
        (2, 1, 1, 2, VAL, 0),
        (3, 1, 1, 3, TEST, 1),
        (4, 1, 1, 1, TRAIN, 1),
        # an edited copy in each split; the one in test hangs on the one in val
        (10, 10, 1, 10, TRAIN, 0),
        (11, 11, 1, 11, VAL, 0),
        (12, 12, 1, 12, TEST, 0),
        # another frame of the scene, a look-alike of another label, and an image of no split
        (20, 20, 20, 20, VAL, 0),
        (30, 30, 30, 30, TEST, 1),
        (40, 40, 1, 40, NONE, 0),
    ]
)
PLANTED_EDGES = edges(
    [
        (1, 10, EDITED, 0.7),
        (11, 1, NEAR, 0.9),
        (11, 12, EDITED, 0.6),
        (10, 20, SCENE, 0.8),
        (20, 30, LOOK, 0.5),
        (1, 40, NEAR, 0.95),
    ]
)


def test_an_exact_group_over_three_splits_with_an_edit_in_each_leaks_from_every_member() -> None:
    leaks = expand_matches(PLANTED, PLANTED_EDGES, PLANTED.image_id)

    assert listed(leaks) == [
        (1, VAL, 2, PIXELS, 5, False),
        (1, TEST, 3, PIXELS, 5, True),
        (2, TRAIN, 1, PIXELS, 5, False),
        (2, TEST, 3, PIXELS, 5, True),
        (3, TRAIN, 1, PIXELS, 5, True),
        (3, VAL, 2, PIXELS, 5, True),
        (4, VAL, 2, PIXELS, 5, True),
        (4, TEST, 3, PIXELS, 5, False),
        (10, VAL, 2, EDITED, 3, False),
        (10, TEST, 3, EDITED, 4, True),
        (11, TRAIN, 1, NEAR, 4, False),
        (11, TEST, 3, NEAR, 5, True),
        (12, TRAIN, 1, TRANSITIVE, 3, False),
        (12, VAL, 11, EDITED, 3, False),
        (20, TRAIN, 10, SCENE, 2, False),
        (20, TEST, 30, LOOK, 1, True),
        (30, VAL, 20, LOOK, 1, True),
    ]
    by_image = {
        (i, t): (e, s)
        for i, t, e, s in zip(leaks.image_id, leaks.match_split, leaks.edge, leaks.similarity, strict=True)
    }
    assert by_image[11, TEST] == (1, 0.9)
    assert by_image[2, TEST] == (-1, 1.0)
    assert by_image[12, TRAIN][0] == -1
    assert np.isnan(by_image[12, TRAIN][1])
    assert leaks.is_transitive.tolist() == [row[3] == TRANSITIVE for row in listed(leaks)]


def test_same_bytes_beat_same_pixels_with_a_smaller_id() -> None:
    group = members([(1, 1, 1, 1, VAL, -1), (2, 1, 1, 2, VAL, -1), (3, 1, 1, 2, TRAIN, -1)])

    leaks = expand_matches(group, edges([]), np.array([3]))

    assert listed(leaks) == [(3, VAL, 2, BYTES, 5, False)]


def test_a_missing_label_is_no_conflict() -> None:
    pair = members([(1, 1, 1, 1, TRAIN, -1), (2, 2, 1, 2, VAL, 3)])

    leaks = expand_matches(pair, edges([(1, 2, NEAR, 0.9)]), np.array([1, 2]))

    assert listed(leaks) == [(1, VAL, 2, NEAR, 4, False), (2, TRAIN, 1, NEAR, 4, False)]


def test_equal_boxes_of_one_image_leak_to_the_file_that_has_their_pixels() -> None:
    """Four boxes of image 7 in three splits and a file in val; those of 8 are near it, and each other's siblings."""
    rows = [(0, TRAIN, 7), (1, VAL, 7), (2, TRAIN, 7), (3, TEST, 7), (4, VAL, -1)]
    near = [(5, 5, 0, 5, TRAIN, -1, 8), (6, 6, 0, 6, TEST, -1, 8)]
    group = members([*((i, 0, 0, i, split, -1, parent) for i, split, parent in rows), *near])

    leaks = expand_matches(group, edges([(0, 5, NEAR, 0.9), (0, 6, NEAR, 0.9), (5, 6, PARENT, 0.8)]), group.image_id)

    assert [row[:5] for row in listed(leaks)] == [
        (0, VAL, 4, PIXELS, 5),
        (0, TEST, 6, NEAR, 4),
        (1, TRAIN, 5, NEAR, 4),
        (1, TEST, 6, NEAR, 4),
        (2, VAL, 4, PIXELS, 5),
        (2, TEST, 6, NEAR, 4),
        (3, TRAIN, 5, NEAR, 4),
        (3, VAL, 4, PIXELS, 5),
        (4, TRAIN, 0, PIXELS, 5),
        (4, TEST, 3, PIXELS, 5),
        (5, VAL, 1, NEAR, 4),
        (5, TEST, 3, NEAR, 4),
        (6, TRAIN, 0, NEAR, 4),
        (6, VAL, 1, NEAR, 4),
    ]


@st.composite
def worlds(draw):
    """Up to 12 images in exact groups inside groups, with edges between representatives of any group; some siblings."""
    n = draw(st.integers(1, 12))
    content = [draw(st.integers(0, i)) for i in range(n)]
    content = [c if content[c] == c else i for i, c in enumerate(content)]
    representative = [draw(st.sampled_from([c, *range(c)])) if c == i else -1 for i, c in enumerate(content)]
    for i in range(n):
        r = representative[content[i]]
        representative[i] = r if representative[r] == r else content[i]
        if content[i] == i and representative[r] != r:
            representative[i] = i
    heads = sorted(set(representative))
    group = {r: draw(st.sampled_from(heads[: heads.index(r) + 1])) for r in heads}
    rows = [
        (
            i,
            representative[i],
            group[representative[i]],
            content[i],
            *(draw(st.integers(-1, high)) for high in (2, 1, 2)),
        )
        for i in range(n)
    ]
    pair = st.tuples(st.sampled_from(heads), st.sampled_from(heads)).filter(lambda p: p[0] != p[1])
    pairs = draw(st.lists(pair, max_size=10)) if len(heads) > 1 else []
    return rows, [(a, b, draw(st.integers(0, 6)), draw(st.sampled_from([0.2, 0.5, 0.5, 0.9]))) for a, b in pairs]


def best_by_loop(rows, links):
    kinds = {}
    for i, rep, group, content, split, _, parent in rows:
        for j, rep_j, group_j, content_j, split_j, _, parent_j in rows:
            if NONE in (split, split_j) or split == split_j:
                continue
            options = [(PIXELS, -1.0, j)] if rep == rep_j else []
            options += [(BYTES, -1.0, j)] if content == content_j else []
            siblings = parent == parent_j >= 0
            if siblings:
                options = [(PARENT, -1.0, j) for _ in options]
            options += [(EDITED + 0.5, 0.0, j)] if group == group_j and not siblings else []
            linked = [(kind, -s, j) for a, b, kind, s in links if {a, b} == {rep, rep_j} and rep != rep_j]
            options += [(PARENT, *rest) for _, *rest in linked if siblings]
            options += [option for option in linked if not siblings and option[0] != PARENT]
            kinds[i, split_j] = min([*kinds.get((i, split_j), []), *options], default=None)
            kinds[i, split_j] = [kinds[i, split_j]] if kinds[i, split_j] else []
    return {key: value[0] for key, value in kinds.items() if value}


@settings(max_examples=150, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_rows_are_those_of_a_loop_over_all_pairs_in_any_order(world, random) -> None:
    rows, links = world
    table = members(rows)
    ids = [row[0] for row in rows]

    leaks = expand_matches(table, edges(links), np.array(random.sample(ids, len(ids))))

    found = {
        (i, t): (EDITED + 0.5 if k == TRANSITIVE else k, -np.nan_to_num(s), m)
        for i, t, k, s, m in zip(
            *(getattr(leaks, n).tolist() for n in ("image_id", "match_split", "kind", "similarity", "match_id")),
            strict=True,
        )
    }
    assert found == best_by_loop(rows, links)
    shuffled = [
        (b, a, k, s) if random.random() < 0.5 else (a, b, k, s) for a, b, k, s in random.sample(links, len(links))
    ]
    assert listed(expand_matches(table, edges(shuffled), np.array(ids))) == listed(leaks)


@settings(max_examples=50, deadline=None)
@given(worlds(), st.integers(1, 4))
def test_ranges_asked_one_by_one_give_the_same_rows(world, size) -> None:
    rows, links = world
    table, pairs, ids = members(rows), edges(links), np.array([row[0] for row in rows])

    whole = expand_matches(table, pairs, ids)
    parts = [expand_matches(table, pairs, ids[k : k + size]) for k in range(0, len(ids), size)]

    assert [row for part in parts for row in listed(part)] == listed(whole)


def test_every_copy_in_a_large_exact_group_has_its_row() -> None:
    n = 20_000
    copies = members([(i, 0, 0, 0, TRAIN if i % 2 else VAL, i % 3) for i in range(n)])

    leaks = expand_matches(copies, edges([]), np.arange(n))

    assert len(leaks.image_id) == n
    assert set(leaks.match_id.tolist()) == {0, 1}
    assert (leaks.severity >= LEAKING).all()


@pytest.mark.parametrize(
    ("kind", "alone", "conflict"),
    [
        (BYTES, 5, 5),
        (PIXELS, 5, 5),
        (NEAR, 4, 5),
        (EDITED, 3, 4),
        (TRANSITIVE, 3, 4),
        (PARENT, 2, 2),
        (SCENE, 2, 2),
        (LOOK, 1, 1),
    ],
)
def test_severity(kind, alone, conflict) -> None:
    assert leak_severity(np.array([kind, kind], np.int8), np.array([False, True])).tolist() == [alone, conflict]
    assert (alone >= LEAKING) == (conflict >= LEAKING)


def test_the_severities_in_the_documents_are_the_ones_given() -> None:
    notes = TABLES["leaks"].notes.split("Severity: ")[1].split(". ")[0]
    told = {name: int(part[0]) for part in notes.split("; ") for name in part[2:].replace("`", "").split(" and ")}

    assert told.pop("transitive") == TRANSITIVE_SEVERITY
    assert told == {kind.value: severity for kind, severity in SEVERITY.items()}


def test_no_images_give_no_rows() -> None:
    assert listed(expand_matches(members([]), edges([]), np.empty(0, np.int64))) == []
    assert listed(expand_matches(PLANTED, PLANTED_EDGES, np.empty(0, np.int64))) == []


def test_an_unknown_image_or_unsorted_members_are_refused() -> None:
    with pytest.raises(UsageError, match="image 99"):
        expand_matches(PLANTED, PLANTED_EDGES, np.array([99]))
    with pytest.raises(UsageError, match="image 99"):
        expand_matches(PLANTED, edges([(1, 99, NEAR, 0.9)]), np.array([1]))
    with pytest.raises(UsageError, match="not sorted"):
        Members(*([np.array([2, 1])] * 7))
