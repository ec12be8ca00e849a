"""Leaks: the best match of every image in every other split, its severity, and the shares that leak."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.siblings import are_siblings
from pipeline.schemas import KIND_ORDER, Kind

Array = NDArray[Any]

TRANSITIVE = -1
"""In place of a kind: the two images are in one group, without a direct edge."""

SEVERITY = {
    Kind.SAME_BYTES: 5,
    Kind.SAME_PIXELS: 5,
    Kind.NEAR_IDENTICAL: 4,
    Kind.EDITED: 3,
    Kind.SAME_PARENT: 2,
    Kind.SAME_SCENE: 2,
    Kind.LOOK_ALIKE: 1,
}
TRANSITIVE_SEVERITY = 3
LEAKING = 3
"""Severity from which on an image counts as leaking."""

_SAME_BYTES, _SAME_PIXELS, _EDITED, _SAME_PARENT = (
    KIND_ORDER.index(k) for k in (Kind.SAME_BYTES, Kind.SAME_PIXELS, Kind.EDITED, Kind.SAME_PARENT)
)
_SEVERITIES = np.array([*(SEVERITY[kind] for kind in KIND_ORDER), TRANSITIVE_SEVERITY], np.int8)
"""By position in KIND_ORDER; TRANSITIVE, being -1, takes the last."""


@dataclass(frozen=True)
class Members:
    """All images of the groups at hand (those that the images asked about, or their matches, belong to), (n,) each.

    image_id, representative and group int64, sorted by image_id. content int64: equal for images of one representative
    with the same bytes, such as the smallest image_id with those bytes; images without a content hash have their own.
    split int16 and label int32, < 0 for none. parent int64: equal for siblings, < 0 for a file.
    """

    image_id: Array
    representative: Array
    group: Array
    content: Array
    split: Array
    label: Array
    parent: Array

    def __post_init__(self) -> None:
        if (np.diff(self.image_id) <= 0).any():
            raise UsageError("leaks: members are not sorted by image_id, or one is there twice; sort them first")


@dataclass(frozen=True)
class Edges:
    """Pairs of representatives in any order and direction, (e,) each: ids int64, kind = position in KIND_ORDER int8,
    similarity float64 in the copy space.
    """

    image_id: Array
    match_id: Array
    kind: Array
    similarity: Array


@dataclass(frozen=True)
class Leaks:
    """One row per image and other split with a match, sorted by image_id, then split of the match; (m,) each.

    kind int8: position in KIND_ORDER, or TRANSITIVE. edge int64: the row of `Edges` that says so, -1 for an exact
    group and a transitive match. similarity: 1 for an exact group, NaN for a transitive match.
    """

    image_id: Array
    match_id: Array
    split: Array
    match_split: Array
    kind: Array
    similarity: Array
    edge: Array
    severity: Array
    is_label_conflict: Array
    is_transitive: Array


def expand_matches(members: Members, edges: Edges, asked: Array) -> Leaks:
    """The best match of each asked image in every other split, with what its representative stands for.

    asked int64: image ids among the members, in any order. A match is, strongest first, an image with the same bytes,
    one with the same pixels, one reached by an edge between the representatives, one of the same group; among equals
    the smallest id. Siblings are a match only where their pixels are equal or by an edge of any kind, and then a
    SAME_PARENT one; an edge of that kind says nothing of other images. `members` holds every image of the groups of the
    asked images and of their edges' other ends. Work and memory grow with (images + edges) x splits, never with the
    pairs inside a group. Raises UsageError for an asked image, or an end of an edge, that is not among the members.
    """
    rows = _rows_of(np.unique(asked), members)
    rows = rows[members.split[rows] >= 0]
    keys = (members.content, members.representative, members.group)
    exact = [
        _sharing(members, key, rows, kind)
        for key, kind in zip(keys, (_SAME_BYTES, _SAME_PIXELS, TRANSITIVE), strict=True)
    ]
    best = _best([*exact, _linked(members, rows, edges), _linked_within(members, rows, edges)], members)
    return _judged(members, best)


@dataclass(frozen=True)
class _Candidates:
    """Matches of member rows, all (c,)."""

    row: Array
    match_row: Array
    kind: Array
    similarity: Array
    edge: Array


@dataclass(frozen=True)
class _Lookup:
    """Values by key, several per key, sorted by key."""

    key: Array
    value: Array


def _rows_of(ids: Array, members: Members) -> Array:
    rows = np.searchsorted(members.image_id, ids)
    found = rows < len(members.image_id)
    found[found] = members.image_id[rows[found]] == ids[found]
    if not found.all():
        raise UsageError(
            f"leaks: image {int(ids[~found][0])} is asked for or ends an edge, but is not among the members"
        )
    return rows


def _first_per_split(key: Array, members: Members) -> _Lookup:
    """The member row with the smallest id for every (key, split), and with it the first that is no sibling of it."""
    inside = np.flatnonzero(members.split >= 0)
    splits = int(members.split.max(initial=0)) + 1
    unique, first, place = np.unique(
        key[inside] * splits + members.split[inside], return_index=True, return_inverse=True
    )
    seconds = _of_other_parents(place, inside[first], inside, members.parent)
    keys = np.concatenate([unique, unique[place[seconds]]]) // splits
    order = np.argsort(keys, kind="stable")
    return _Lookup(keys[order], inside[np.concatenate([first, seconds])[order]])


def _of_other_parents(place: Array, first: Array, rows: Array, parent: Array) -> Array:
    """For each first row that has siblings, the position of the first of `rows` at its place that is none of them."""
    among = np.flatnonzero((parent[first] >= 0)[place])
    among = among[parent[rows[among]] != parent[first][place[among]]]
    return np.asarray(among[np.unique(place[among], return_index=True)[1]])


def _matching(keys: Array, lookup: _Lookup) -> tuple[Array, Array]:
    """Every (position in keys, value) with an equal key."""
    start, stop = (np.searchsorted(lookup.key, keys, side) for side in ("left", "right"))
    size = stop - start
    entry = np.arange(size.sum()) + np.repeat(start - (np.cumsum(size) - size), size)
    return np.repeat(np.arange(len(keys)), size), lookup.value[entry]


def _sharing(members: Members, key: Array, rows: Array, kind: int) -> _Candidates:
    """Matches of member rows by a key that both have; siblings are SAME_PARENT, and none where that is a group."""
    position, match = _matching(key[rows], _first_per_split(key, members))
    siblings = are_siblings(members.parent[rows[position]], members.parent[match])
    kinds = np.where(siblings, _SAME_PARENT, kind).astype(np.int8)
    similarity = np.full(len(match), np.nan if kind == TRANSITIVE else 1.0)
    found = _Candidates(rows[position], match, kinds, similarity, np.full(len(match), -1, np.int64))
    return _take(found, np.flatnonzero(~siblings)) if kind == TRANSITIVE else found


def _linked(members: Members, rows: Array, edges: Edges) -> _Candidates:
    """Matches of member rows whose representative has an edge to the match's, siblings excepted.

    Decided once per representative and split, so that a million copies of one image do not each carry its edges.
    """
    ends, others, number = _halves(edges)
    _rows_of(np.unique(ends), members)
    is_across = edges.kind[number] != _SAME_PARENT
    ends, others, number = ends[is_across], others[is_across], number[is_across]
    half, match = _matching(others, _first_per_split(members.representative, members))
    edge, owner = number[half], ends[half]
    link = _Candidates(owner, match, edges.kind[edge], edges.similarity[edge], edge)
    link = _take(link, _first_links(link, members))
    position, at = _matching(members.representative[rows], _Lookup(link.row, np.arange(len(link.row))))
    found = replace(_take(link, at), row=rows[position])
    return _take(found, np.flatnonzero(~are_siblings(members.parent[found.row], members.parent[found.match_row])))


def _linked_within(members: Members, rows: Array, edges: Edges) -> _Candidates:
    """Siblings of member rows, where their representatives have an edge."""
    rows = rows[members.parent[rows] >= 0]
    of_parent = np.flatnonzero(members.parent >= 0) if len(rows) else rows
    heads, head = np.unique(members.representative[of_parent], return_inverse=True)
    parents, parent = np.unique(members.parent[of_parent], return_inverse=True)
    key = np.full(len(members.image_id), -1, np.int64)
    key[of_parent] = head * len(parents) + parent
    ends, others, number = _halves(edges)
    is_known = np.isin(ends, heads) & np.isin(others, heads)
    order = np.flatnonzero(is_known)[np.argsort(ends[is_known], kind="stable")]
    position, half = _matching(members.representative[rows], _Lookup(ends[order], order))
    wanted = np.searchsorted(heads, others[half]) * len(parents) + key[rows[position]] % max(len(parents), 1)
    siblings = _first_per_split(key, members) if len(wanted) else _Lookup(wanted, wanted)
    at, match = _matching(wanted, siblings)
    edge = number[half[at]]
    kinds = np.full(len(edge), _SAME_PARENT, np.int8)
    return _Candidates(rows[position[at]], match, kinds, edges.similarity[edge], edge)


def _halves(edges: Edges) -> tuple[Array, Array, Array]:
    """Each edge from either end: that end, the other one, and which edge it is."""
    ends = np.concatenate([edges.image_id, edges.match_id]).astype(np.int64)
    others = np.concatenate([edges.match_id, edges.image_id]).astype(np.int64)
    return ends, others, np.tile(np.arange(len(edges.image_id)), 2)


def _first_links(link: _Candidates, members: Members) -> Array:
    """Positions of the best candidate for every (row, split) and of the best that is no sibling of that, by row."""
    split = members.split[link.match_row]
    best = _first_by_rank(link, split)
    splits = int(members.split.max(initial=0)) + 1
    code = link.row * splits + split  # ascending over the best ones
    place = np.searchsorted(code[best], code)
    parent = members.parent[link.match_row]
    first = parent[best][place]
    away = np.flatnonzero((first >= 0) & (parent != first))
    every = np.concatenate([best, away[_first_by_rank(_take(link, away), split[away])]])
    return np.asarray(every[np.argsort(link.row[every], kind="stable")])


def _take(candidates: _Candidates, at: Array) -> _Candidates:
    return _Candidates(*(getattr(candidates, field.name)[at] for field in fields(_Candidates)))


def _first_by_rank(candidates: _Candidates, split: Array) -> Array:
    """The best candidate's position for every (row, split), in that order."""
    rank = np.where(candidates.kind == TRANSITIVE, _EDITED + 0.5, candidates.kind)
    similarity = -np.nan_to_num(candidates.similarity)
    order = np.lexsort((candidates.edge, candidates.match_row, similarity, rank, split, candidates.row))
    row, split = candidates.row[order], split[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (row[1:] != row[:-1]) | (split[1:] != split[:-1])
    return np.asarray(order[is_first])


def _best(parts: list[_Candidates], members: Members) -> _Candidates:
    """The best candidate per image and split of the match, its own split left out."""
    every = _Candidates(*(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(_Candidates)))
    across = _take(every, np.flatnonzero(members.split[every.match_row] != members.split[every.row]))
    return _take(across, _first_by_rank(across, members.split[across.match_row]))


def _judged(members: Members, best: _Candidates) -> Leaks:
    label, match_label = members.label[best.row], members.label[best.match_row]
    conflict = (label >= 0) & (match_label >= 0) & (label != match_label)
    return Leaks(
        members.image_id[best.row],
        members.image_id[best.match_row],
        members.split[best.row],
        members.split[best.match_row],
        best.kind,
        best.similarity,
        best.edge,
        leak_severity(best.kind, conflict),
        conflict,
        best.kind == TRANSITIVE,
    )


def leak_severity(kind: Array, is_label_conflict: Array) -> Array:
    """Severity 1 to 5, int8, of kinds (positions in KIND_ORDER or TRANSITIVE).

    SEVERITY by kind, TRANSITIVE_SEVERITY for a transitive match. From LEAKING on, a label conflict raises it by one, up
    to 5: such an image misleads the score of its split as well as inflating it. Two look-alikes under different labels
    are more likely to be two things, so there it raises nothing.
    """
    severity = _SEVERITIES[kind]
    raised = np.minimum(severity + 1, 5)
    return np.where(is_label_conflict & (severity >= LEAKING), raised, severity).astype(np.int8)
