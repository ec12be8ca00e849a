"""Label conflicts: one image, or copies of it, under different labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.siblings import are_siblings

Array = NDArray[Any]


@dataclass(frozen=True)
class LabelConflicts:
    """One row per labelled image of whose group another file has another label, sorted by group, then image; (m,) each.

    row int64: the image's place in the arguments. conflict_id int64: smallest image with another label that is no
    sibling, within the exact group if is_certain, else within the group. label_count int32: labels in the group.
    label_share float64: share of the group's labelled images with this label. majority int32: the group's most
    frequent label, -1 on a tie.
    """

    row: Array
    is_certain: Array
    conflict_id: Array
    label_count: Array
    label_share: Array
    majority: Array


def label_conflicts(
    image_id: Array, representative: Array, group: Array, label: Array, parent: Array
) -> LabelConflicts:
    """The label conflicts of whole groups, one argument entry per image, in any order.

    image_id, representative, group int64; label int32, < 0 for none; parent int64, < 0 for a file; (n,) each. Work
    grows with the images, not with the pairs inside a group. Raises UsageError for arguments of different lengths.
    """
    if not len(image_id) == len(representative) == len(group) == len(label) == len(parent):
        raise UsageError(
            f"label conflicts: {len(image_id)} ids, {len(representative)} representatives, {len(group)} groups, "
            f"{len(label)} labels and {len(parent)} parents; want one of each per image"
        )
    labelled = np.flatnonzero(label >= 0)
    row = labelled[np.lexsort((image_id[labelled], group[labelled]))]
    ids, labels = image_id[row], label[row]
    certain_id = _smallest_other(representative[row], ids, labels, parent[row])
    other_id = _smallest_other(group[row], ids, labels, parent[row])
    shares = _share_in_group(group[row], labels)
    conflicting = np.flatnonzero(other_id >= 0)
    certain = certain_id[conflicting] >= 0
    return LabelConflicts(
        row[conflicting],
        certain,
        np.where(certain, certain_id[conflicting], other_id[conflicting]),
        *(part[conflicting] for part in shares),
    )


@dataclass(frozen=True)
class _Pairs:
    """The different (key, label) of some images, sorted; `of` is each image's pair."""

    key: Array
    label: Array
    count: Array
    of: Array


def _pairs(key: Array, labels: Array) -> _Pairs:
    span = int(labels.max(initial=0)) + 1
    code, of, count = np.unique(key * span + labels, return_inverse=True, return_counts=True)
    return _Pairs(code // span, code % span, count, of)


def _smallest_other(key: Array, ids: Array, labels: Array, parents: Array) -> Array:
    """The smallest id with the same key, another label and another parent, -1 without one.

    It is the key's first; or, where that has the image's own label, the first of those of another label, or of these
    the first with another parent than that one; or, where it is a sibling, the same with parents and labels exchanged.
    """
    order = np.argsort(ids)
    label, parent = labels[order], parents[order]
    keys, owner = np.unique(key[order], return_inverse=True)

    def other_label(place: Array) -> Array:
        return np.asarray(label != label[place][owner])

    def other_parent(place: Array) -> Array:
        return ~are_siblings(parent, parent[place][owner])

    def first(wanted: Array) -> Array:
        at = np.flatnonzero(wanted)[::-1]
        place = np.full(len(keys), -1)
        place[owner[at]] = at  # of equal ones the last is kept, which is the first of all
        return place

    head = first(np.ones(len(label), bool))
    unlike, elsewhere = first(other_label(head)), first(other_parent(head))
    second = first(other_label(head) & other_parent(unlike))
    third = first(other_parent(head) & other_label(elsewhere))
    found = np.full(len(ids), np.iinfo(np.int64).max)
    for place in (head, unlike, elsewhere, second, third):
        fits = (place[owner] >= 0) & other_label(place) & other_parent(place)
        found = np.where(fits, np.minimum(found, ids[order][place[owner]]), found)
    smallest = np.empty(len(ids), np.int64)
    smallest[order] = np.where(found < np.iinfo(np.int64).max, found, -1)
    return smallest


def _share_in_group(group: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Per image: labels in its group int32, share of its own label float64, most frequent label int32 (-1 on a tie)."""
    pairs = _pairs(group, labels)
    _, owner, kinds = np.unique(pairs.key, return_inverse=True, return_counts=True)
    total, top = np.zeros(len(kinds), np.int64), np.zeros(len(kinds), np.int64)
    np.add.at(total, owner, pairs.count)
    np.maximum.at(top, owner, pairs.count)
    leads = pairs.count == top[owner]
    majority = np.full(len(kinds), -1, np.int32)
    majority[owner[leads]] = pairs.label[leads]
    majority[np.bincount(owner[leads], minlength=len(kinds)) > 1] = -1
    mine = owner[pairs.of]
    return kinds[mine].astype(np.int32), pairs.count[pairs.of] / total[mine], majority[mine]
