"""Siblings of an audit: whether there are any to tell apart, which of many stay in the semantic database, and images of
which no two are siblings.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.sampling import one_of_each
from pipeline.kernels.siblings import are_siblings, sibling_sample
from pipeline.layout.exact import LARGE, LARGE_PARENT, LARGE_SCHEMA, ExactSummary, read_summary
from pipeline.layout.groups import labels_of
from pipeline.layout.inputs import READ_BLOCK, Inputs
from pipeline.layout.lookups import open_lookup
from pipeline.layout.parts import cut

LEAST_PARENTS = 10
"""Files and parents from which on an image is compared with those of other parents alone: in fewer (one video, a few of
one camera) the frames of a video tell which of them is odd, and of under ten things none is the odd one."""


def are_apart(inputs: Inputs, groups: str) -> bool:
    """Whether the semantic neighbours of an image are those of other parents alone.

    Counted are those of which the first image of a group is one: only these are found. Twelve copies of one video would
    have no neighbours at all.
    """
    store = inputs.root.open()
    summary = read_summary(store, inputs.exact)
    if not summary.parents or summary.parents + summary.files < LEAST_PARENTS:
        return False
    files, known, population = 0, np.empty(0, np.int64), inputs.population()
    for lo, hi in cut(0, inputs.opened_snapshot().total, READ_BLOCK):
        ids = population.ids(lo, hi)
        heads = ids[labels_of(store, groups, ids) == ids]
        parents = inputs.parents(lo, hi)[heads - lo]
        files += int((parents < 0).sum())
        known = np.union1d(known, parents[parents >= 0])
        if files + len(known) >= LEAST_PARENTS:
            return True
    return False


def are_together(inputs: Inputs, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which pairs of representatives lie in the same parents with all of their copies, bool (n,).

    Such a pair says nothing of two files that the copies do not say already. Of one parent, but not together, are two
    frames of which one is in another video as well: that video has a frame that resembles the other one.
    """
    if not read_summary(inputs.root.open(), inputs.exact).parents:
        return np.zeros(len(one), bool)
    return are_siblings(*(inputs.population().families(ids) for ids in (one, other)))


def together_key(has_parents: bool) -> dict[str, int]:
    """What names what depends on who is together; nothing where there are no parents."""
    return {"together": 2} if has_parents else {}


def of_few_siblings(inputs: Inputs, ids: NDArray[np.int64], parents: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which images stay in a database that is searched by lists: bool (n,); of a parent about 1,024 at most.

    Where a still scene of 20,000 frames had each in it, all lists near a frame of it would hold its siblings alone,
    and the search would find nothing. 32 lists hold 12,800 rows.
    """
    store = inputs.root.open()
    if not read_summary(store, inputs.exact).large:
        return np.ones(len(ids), bool)
    large = open_lookup(store, f"{inputs.exact}/{LARGE}")
    known, size = (large.column(name).to_numpy() for name in LARGE_SCHEMA.names)
    return sibling_sample(ids, parents, (known, size), LARGE_PARENT)


def without_many_siblings(inputs: Inputs, ids: NDArray[np.int64], groups: str) -> NDArray[np.int64]:
    """Those of some ids, ascending, that `of_few_siblings` leaves."""
    if not (read_summary(inputs.root.open(), inputs.exact).large and are_apart(inputs, groups)):
        return ids
    pieces = [ids[:0]]
    for lo, hi in cut(0, inputs.opened_snapshot().total, READ_BLOCK):
        block = ids[slice(*np.searchsorted(ids, [lo, hi]))]
        pieces.append(block[of_few_siblings(inputs, block, inputs.parents(lo, hi)[block - lo])])
    return np.concatenate(pieces)


def most_unrelated(summary: ExactSummary) -> int:
    """Representatives of which no two are siblings, at most so many: all of them where nothing is a frame or box."""
    return min(summary.representatives, summary.parents + summary.files)


def one_of_each_parent(inputs: Inputs, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of some ids, ascending, that are files of their own, and of the children of each parent one.

    Reads parents only where the audit has any, block by block: what is held is what is left of each block.
    """
    if not read_summary(inputs.root.open(), inputs.exact).parents:
        return ids
    kept, owners = [ids[:0]], [ids[:0]]
    for lo, hi in cut(0, inputs.opened_snapshot().total, READ_BLOCK):
        block = ids[slice(*np.searchsorted(ids, [lo, hi]))]
        parents = inputs.parents(lo, hi)[block - lo]
        first = one_of_each(block, parents)
        kept.append(block[first])
        owners.append(parents[first])
    every = np.concatenate(kept)
    return every[one_of_each(every, np.concatenate(owners))]
