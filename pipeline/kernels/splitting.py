"""Large groups that only chains hold together: which they are, and their pieces at a higher similarity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.components import SpanningRows, labels_for, star_forest
from pipeline.kernels.groups import choose_medoids

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

UNCUT = 32_767
"""Level of an edge between exact duplicates."""
SAMPLED_MEMBERS = 4096  # of a group: the far share is known to .005


@dataclass(frozen=True)
class GroupParams:
    """Which groups are split.

    max_size: different images (copies in bytes or pixels count once) up to which a group is never split; far_below: an
    image is far from its group where its similarity to the medoid is so much under the threshold of candidates;
    max_far_share: of the images, up to which a larger group stays whole; step: by how much the similarity that its
    near-duplicate pairs must have rises from try to try; max_split: different images of all groups that are split, of
    which one task holds 100 bytes each: over it the largest stay whole; memory_bytes: of one task, beyond which the
    components are found in rounds over files. The last decides no row.

    A true cluster of thousands of copies has next to no far images (a twentieth of verified edits have a similarity
    under .58 to their original); a chain of frames or two clusters behind one wrong pair have mostly such. A family of
    augmented versions of one image has some, and a few hundred members.
    """

    max_size: int = 1000
    far_below: float = 0.1
    max_far_share: float = 0.1
    step: float = 0.02
    max_split: int = 20_000_000
    memory_bytes: int = 2_000_000_000

    def __post_init__(self) -> None:
        problems = []
        if self.max_size < 2:
            problems.append(f"max_size {self.max_size}, want at least 2")
        if not 0 <= self.far_below <= 1:
            problems.append(f"far_below {self.far_below}, want 0 to 1")
        if not 0 <= self.max_far_share <= 1:
            problems.append(f"max_far_share {self.max_far_share}, want 0 to 1")
        if not 0.001 <= self.step <= 1:
            problems.append(f"step {self.step}, want 0.001 to 1")
        if self.max_split < 0:
            problems.append(f"max_split {self.max_split}, want at least 0")
        if self.memory_bytes < 1:
            problems.append(f"memory_bytes {self.memory_bytes}, want at least 1")
        if problems:
            raise UsageError("groups: " + "; ".join(problems))

    def levels(self, similarity: Float64, threshold: float, is_exact: NDArray[np.bool_]) -> NDArray[np.int16]:
        """How many steps over the threshold the demand may rise before each edge is cut; exact ones never are."""
        steps = np.floor(np.round((similarity - threshold) / self.step, 6)).clip(0, UNCUT - 1)
        return np.where(is_exact, UNCUT, steps).astype(np.int16)

    def demand(self, level: int, threshold: float) -> float:
        """The similarity that edges of a level have at least."""
        return round(min(1.0, threshold + level * self.step), 6)


class Pieces(NamedTuple):
    """Images of split groups, ascending, the piece of each (its smallest image) and the level at which it was cut."""

    image_id: Int64
    piece_id: Int64
    level: NDArray[np.int16]


Widths = Callable[[Int64, Int64], Float64]
"""Share of images far from the medoid, per group in ascending order: of image ids sorted by group, and their groups."""


def far_shares(group: Int64, vectors: NDArray[np.float32], limit: float) -> Float64:
    """Share of the rows of each group under a similarity to its medoid, float64 (g,), groups ascending.

    group int64 (n,) ascending; vectors float32 (n, d), unit vectors of the copy space.
    """
    medoid = choose_medoids(group, vectors)
    similarity = np.empty(len(group))
    for block in range(0, len(group), SAMPLED_MEMBERS):
        rows = slice(block, block + SAMPLED_MEMBERS)
        similarity[rows] = (vectors[rows].astype(np.float64) * vectors[medoid[rows]]).sum(axis=1)
    _, start, size = np.unique(group, return_index=True, return_counts=True)
    is_far = (np.round(similarity, 6) < limit).astype(np.int64)
    return np.asarray(np.add.reduceat(is_far, start) / size if len(start) else np.empty(0))


def is_sampled(rank: Int64, size: Int64) -> NDArray[np.bool_]:
    """Which members stand for their group when its width is measured, by their rank in it and its size."""
    return np.asarray(rank % -(-size // SAMPLED_MEMBERS) == 0)


def split_wide(edges: SpanningRows, params: GroupParams, widths: Widths) -> Pieces:
    """The pieces of groups that are too wide: their edges are cut, weakest first, until no piece is both larger than
    max_size and too wide. edges: those of whole groups, each of which is.
    """
    active = np.unique(np.concatenate([edges.a, edges.b]))
    last = Pieces(active, labels_for(active, star_forest(edges.a, edges.b)), np.zeros(len(active), np.int16))
    done: list[Pieces] = []
    levels = np.unique(edges.level).astype(np.int64)
    for level in (levels + 1)[levels < UNCUT].tolist():
        if len(active) == 0:
            break
        stays = (edges.level >= level) & np.isin(edges.a, active)
        label = labels_for(active, star_forest(edges.a[stays], edges.b[stays]))
        is_wide = _are_wide(active, label, params, widths)
        done.append(Pieces(active[~is_wide], label[~is_wide], np.full((~is_wide).sum(), level, np.int16)))
        active, last = active[is_wide], Pieces(active[is_wide], label[is_wide], np.full(is_wide.sum(), level, np.int16))
    if len(active):
        done.append(last)
    found = Pieces(*map(np.concatenate, zip(*done, strict=True))) if done else last
    order = np.argsort(found.image_id)
    return Pieces(found.image_id[order], found.piece_id[order], found.level[order])


def _are_wide(ids: Int64, label: Int64, params: GroupParams, widths: Widths) -> NDArray[np.bool_]:
    """Which images (ascending) are in a piece that must be split further."""
    _, owner, size = np.unique(label, return_inverse=True, return_counts=True)
    order = np.lexsort((ids, owner))
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids)) - np.repeat(np.cumsum(size) - size, size)
    asked = order[(size[owner] > params.max_size)[order]]
    asked = asked[is_sampled(rank[asked], size[owner][asked])]
    is_wide = np.zeros(len(size), bool)
    is_wide[np.unique(owner[asked])] = widths(ids[asked], label[asked]) > params.max_far_share
    return np.asarray(is_wide[owner])
