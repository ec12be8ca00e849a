"""Siblings: the rows of one parent, frames of one video or boxes of one image. They do not compete with other rows.

Among the nearest of a split a query finds no sibling, or ten frames of a still scene would hide the copy in another
file. Where candidates are wanted its siblings have lists of their own, numbered behind those of the splits.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.database import MAX_SPLITS
from pipeline.kernels.sampling import mix
from pipeline.kernels.sorted_ids import ranges_of

Int64: TypeAlias = NDArray[np.int64]
Parents: TypeAlias = "Int64 | None"
"""What each row is a frame or box of, a hash; negative for a file of its own. None: nothing is."""

NO_PARENT = -1
SIBLING_SPLIT = MAX_SPLITS
"""Siblings found in split s are hits of split s + 64."""
MASKED = -2.0
"""In the place of a similarity that is not to be seen: no cosine is under -1."""
_SALT, _SETS = 5, 6


def sibling_places(queries: Int64, rows: Int64) -> Int64:
    """Return where a query and a row have one parent: query x rows + row, ascending by query.

    queries int64 (n,) and rows int64 (m,): parents, negative for none. Costs by the rows and by what is returned.
    """
    if not len(queries) or not len(rows) or queries.max() < 0 or rows.max() < 0:
        return np.empty(0, np.int64)
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    start, stop = np.searchsorted(ordered, queries, "left"), np.searchsorted(ordered, queries, "right")
    start = np.where(queries < 0, stop, start)
    first = np.repeat(np.arange(len(queries)) * len(rows), stop - start)
    return np.asarray(first + order[ranges_of(start, stop)], np.int64)


def are_siblings(one: Int64, other: Int64) -> NDArray[np.bool_]:
    """Return which of two arrays of parents, broadcast against each other, are equal and of a parent at all."""
    return np.asarray((one == other) & (one >= 0), bool)


def sibling_sample(ids: Int64, parents: Int64, large: tuple[Int64, Int64], most: int) -> NDArray[np.bool_]:
    """Return which rows stay where each parent keeps about `most`: bool (n,), each row decided alone.

    ids, parents int64 (n,); large int64 (p,) twice: the parents that have more, ascending, and how many rows of each.
    """
    known, size = large
    if not len(known):
        return np.ones(len(ids), bool)
    at = np.minimum(np.searchsorted(known, parents), len(known) - 1)
    share = np.where(known[at] == parents, most / size[at], 1.0)
    bound = np.minimum(share * 2.0**64, 2.0**64 - 2048).astype(np.uint64)
    return np.asarray((mix(ids, _SALT) < bound) | (share >= 1), bool)


def families(owner: Int64, parents: Int64) -> tuple[Int64, Int64]:
    """Return the distinct owners, ascending, and what the images of each are frames or boxes of: their parent; of
    several one number for each set of them, a sum, which has no order; NO_PARENT where one is a file of its own.

    owner and parents int64 (n,), in any order.
    """
    order = np.lexsort((parents, owner))
    owner, parents = owner[order], parents[order]
    is_new = np.ones(len(owner), bool)
    is_new[1:] = (owner[1:] != owner[:-1]) | (parents[1:] != parents[:-1])
    owner, parents = owner[is_new], parents[is_new]
    first = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]][: len(owner)])
    if not len(first):
        return owner, parents
    several = np.add.reduceat(mix(parents, _SETS), first) >> np.uint64(1)
    is_one = np.diff(np.r_[first, len(owner)]) == 1
    found = np.where(is_one, parents[first], several.astype(np.int64))
    return owner[first], np.where(parents[first] < 0, NO_PARENT, found)
