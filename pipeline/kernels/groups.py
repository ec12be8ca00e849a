"""Groups: which image to keep and why, the medoid, and who joined only through others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError

Array = NDArray[Any]

WINS = ("split first", "more pixels", "larger file", "shorter uri", "smaller id")
LOSES = ("split later", "fewer pixels", "smaller file", "longer uri", "larger id")
"""Why an image is the keeper or is not: the first rule that tells it from the runner-up, or from the keeper."""

TRAIN = "train"

_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class KeeperPolicy:
    """splits: names in the order in which they keep their images; then any other name, then train, then no split.

    Train comes last unless it is listed: a copy is cheap to remove from the training data, and an evaluation set that
    is thinned is another set, whatever it is called (dev, eval, holdout, fold3).
    """

    splits: tuple[str, ...] = ("test", "val")

    def __post_init__(self) -> None:
        if len(set(self.splits)) != len(self.splits) or "" in self.splits:
            raise UsageError(f"keeper policy: splits {self.splits}, want different names")

    def ranks(self, names: list[str]) -> Array:
        """The rank of each split name, int16; index it with -1 for the rank of an image without a split."""
        listed = len(self.splits)
        known = {TRAIN: listed + 1} | {name: rank for rank, name in enumerate(self.splits)}
        return np.array([*(known.get(name, listed) for name in names), listed + 2], np.int16)


@dataclass(frozen=True)
class GroupMembers:
    """The members of whole groups, in any order, (n,) each: ids int64, split_rank int (smaller is kept), pixels =
    width * height, size_bytes and uri_length (characters) int64.
    """

    group: Array
    image_id: Array
    split_rank: Array
    pixels: Array
    size_bytes: Array
    uri_length: Array


@dataclass(frozen=True)
class Keepers:
    """Per member: is_keeper bool and reason int8, an index into WINS for keepers and into LOSES for the others.

    The only image of a group is its keeper, with reason -1.
    """

    is_keeper: Array
    reason: Array


def choose_keepers(members: GroupMembers) -> Keepers:
    """One keeper per group: by split, then most pixels, largest file, shortest uri, smallest image_id."""
    rules = np.stack(
        [members.split_rank, -members.pixels, -members.size_bytes, members.uri_length, members.image_id], axis=1
    ).astype(np.int64)
    order = np.lexsort((*rules.T[::-1], members.group))
    groups = members.group[order]
    _, start, size = np.unique(groups, return_index=True, return_counts=True)
    rival = np.repeat(start, size)
    rival[start] = start + np.minimum(1, size - 1)
    differs = rules[order] != rules[order][rival]
    reason = np.where(differs.any(axis=1), differs.argmax(axis=1), -1)
    is_keeper = np.zeros(len(order), bool)
    is_keeper[order[start]] = True
    reasons = np.empty(len(order), np.int8)
    reasons[order] = reason
    return Keepers(is_keeper, reasons)


def choose_medoids(group: Array, vectors: Array) -> Array:
    """The row of the member with the largest mean similarity to its group, for each row; int64 (n,).

    group int64 (n,) ascending, ids ascending inside; vectors float32 (n, d), unit vectors of the copy space, one per
    representative: copies of one image must not outvote the others. The sum of the cosines to all members is the dot
    product with the members' sum, so this costs n * d, not n * n * d. Equal members: the first. Raises UsageError for
    groups out of order.
    """
    if (np.diff(group) < 0).any():
        raise UsageError("medoids: rows are not sorted by group; sort them first")
    if len(group) == 0:
        return np.empty(0, np.int64)
    _, start, size = np.unique(group, return_index=True, return_counts=True)
    sums = np.empty((len(start), vectors.shape[1]))
    for place, (first, count) in enumerate(zip(start, size, strict=True)):
        sums[place] = _sum_rows(vectors, int(first), int(first + count))
    owner = np.repeat(np.arange(len(start)), size)
    itself = _dots(vectors, vectors, np.arange(len(group)))
    # 1e-9: two members that are equal but for the order of additions stay equal
    total = np.round(_dots(vectors, sums, owner) - itself, 9)
    order = np.lexsort((np.arange(len(group)), -total, owner))
    return np.asarray(order[start][owner])


def _sum_rows(vectors: Array, first: int, last: int) -> Array:
    total = np.zeros(vectors.shape[1])
    for block in range(first, last, _BLOCK_ROWS):
        total += vectors[block : min(block + _BLOCK_ROWS, last)].sum(axis=0, dtype=np.float64)
    return total


def _dots(left: Array, right: Array, place: Array) -> Array:
    """left[i] . right[place[i]] in float64, in blocks of rows."""
    result = np.empty(len(left))
    for block in range(0, len(left), _BLOCK_ROWS):
        rows = slice(block, block + _BLOCK_ROWS)
        a, b = left[rows].astype(np.float64), right[place[rows]].astype(np.float64)
        result[rows] = (a * b).sum(axis=1)
    return result


def chained(similarity: Array, threshold: float, has_edge: Array) -> Array:
    """Whether a member joined only through others: under the threshold to the medoid, without an edge to it; bool (n,).

    The edge counts because a verified mirrored or cropped copy can lie under any threshold.
    """
    return np.asarray((similarity < threshold) & ~has_edge)


def has_edge_to(medoid_id: Array, image_id: Array, edges: Array) -> Array:
    """Whether each image is its medoid or has an edge to it: bool (n,). edges int64 (e, 2), in any direction."""
    known = np.unique(np.sort(edges, axis=1), axis=0) if len(edges) else np.empty((0, 2), np.int64)
    asked = np.sort(np.stack([medoid_id, image_id], axis=1), axis=1)
    both, inverse = np.unique(np.concatenate([known, asked]), axis=0, return_inverse=True)
    is_edge = np.zeros(len(both), bool)
    is_edge[inverse.ravel()[: len(known)]] = True
    return np.asarray(is_edge[inverse.ravel()[len(known) :]] | (medoid_id == image_id))


def group_minimum(group: Array, similarity: Array) -> Array:
    """The smallest similarity of each row's group, float64 (n,); groups in any order."""
    _, owner = np.unique(group, return_inverse=True)
    least = np.full(owner.max(initial=-1) + 1, np.inf)
    np.minimum.at(least, owner, similarity)
    return least[owner]
