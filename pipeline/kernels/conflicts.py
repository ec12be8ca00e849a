"""Label conflicts: one image, or copies of it, under different labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError

Array = NDArray[Any]


@dataclass(frozen=True)
class LabelConflicts:
    """One row per labelled image of a group with more than one label, sorted by group, then image; (m,) each.

    row int64: the image's place in the arguments. conflict_id int64: smallest image with another label, within the
    exact group if is_certain, else within the group. label_count int32: labels in the group. label_share float64: share
    of the group's labelled images with this label. majority int32: the group's most frequent label, -1 on a tie.
    """

    row: Array
    is_certain: Array
    conflict_id: Array
    label_count: Array
    label_share: Array
    majority: Array


def label_conflicts(image_id: Array, representative: Array, group: Array, label: Array) -> LabelConflicts:
    """The label conflicts of whole groups, one argument entry per image, in any order.

    image_id, representative, group int64; label int32, < 0 for none; (n,) each. Work grows with the images, not with
    the pairs inside a group. Raises UsageError for arguments of different lengths.
    """
    if not len(image_id) == len(representative) == len(group) == len(label):
        raise UsageError(
            f"label conflicts: {len(image_id)} ids, {len(representative)} representatives, {len(group)} groups and "
            f"{len(label)} labels; want one of each per image"
        )
    labelled = np.flatnonzero(label >= 0)
    row = labelled[np.lexsort((image_id[labelled], group[labelled]))]
    ids, labels = image_id[row], label[row]
    certain_id = _smallest_other(representative[row], ids, labels)
    other_id = _smallest_other(group[row], ids, labels)
    shares = _share_in_group(group[row], labels)
    conflicting = np.flatnonzero(other_id >= 0)
    certain = certain_id[conflicting] >= 0
    return LabelConflicts(
        row[conflicting],
        certain,
        np.where(certain, certain_id[conflicting], other_id[conflicting]),
        *(part[conflicting] for part in shares),
    )


def _smallest_other(key: Array, ids: Array, labels: Array) -> Array:
    """The smallest id with the same key and another label, -1 without one: the two smallest labels' firsts suffice."""
    pairs, inverse = np.unique(np.stack([key, labels.astype(np.int64)], axis=1), axis=0, return_inverse=True)
    first = np.full(len(pairs), np.iinfo(np.int64).max)
    np.minimum.at(first, inverse.ravel(), ids)
    order = np.lexsort((first, pairs[:, 0]))
    _, start, size = np.unique(pairs[order, 0], return_index=True, return_counts=True)
    place = np.searchsorted(pairs[order, 0][start], key) if len(start) else np.empty(0, np.int64)
    best = order[start[place]]
    second = order[start[place] + np.minimum(1, size[place] - 1)]
    chosen = np.where(pairs[best, 1] != labels, best, second)
    return np.asarray(np.where(pairs[chosen, 1] != labels, first[chosen], -1))


def _share_in_group(group: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Per image: labels in its group int32, share of its own label float64, most frequent label int32 (-1 on a tie)."""
    pairs, inverse, count = np.unique(
        np.stack([group, labels.astype(np.int64)], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    _, owner, kinds = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    total = np.zeros(len(kinds), np.int64)
    np.add.at(total, owner, count)
    top = np.zeros(len(kinds), np.int64)
    np.maximum.at(top, owner, count)
    leads = count == top[owner]
    majority = np.full(len(kinds), -1, np.int32)
    majority[owner[leads]] = pairs[leads, 1]
    majority[np.bincount(owner[leads], minlength=len(kinds)) > 1] = -1
    pair = inverse.ravel()
    mine = owner[pair]
    return kinds[mine].astype(np.int32), count[pair] / total[mine], majority[mine]
