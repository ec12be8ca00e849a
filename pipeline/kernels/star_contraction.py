"""Components of a graph that no machine holds: large-star and small-star over ranges of ids, round by round.

Kiveris et al., Connected Components in MapReduce and Beyond, 2014. An edge (child, root) lives in the range of its
child, so the smaller neighbours of an image are in one place. Large-star hangs each edge on the smallest known
neighbour of its root, which is looked up there: a hub is asked once per range and never collects its neighbours.
Small-star joins the roots of one child; here all edges of a range are reduced to their star forest, which does that and
more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from pipeline.kernels.components import Forest, Int64, empty_forest, merge_forests

BATCH_EDGES = 1 << 22

Above = Callable[[Int64], Int64]
"""The root that the round before gave each of some ascending ids, itself where it had none."""


class Contracted(NamedTuple):
    """A range after a round: the forest of its own children, edges whose child is elsewhere, and whether all is as it
    was. The components are found in the round in which every range is.
    """

    own: Forest
    strays: Forest
    is_settled: bool


def contract(lo: int, hi: int, own: Forest, strays: Iterable[Forest], above: Above) -> Contracted:
    """One round for the ids [lo, hi): their edges of the round before and those that other ranges found for them.

    Holds one edge for each id that they name, and some 4M strays at a time.
    """
    found, is_settled = _lifted(own, above)
    waiting: list[Forest] = []
    for stray in strays:
        if len(stray.child) == 0:
            continue
        is_settled = False
        waiting.append(_lifted(stray, above)[0])
        if sum(len(forest.child) for forest in waiting) >= BATCH_EDGES:
            found, waiting = merge_forests([found, *waiting]), []
    found = found if is_settled else merge_forests([found, *waiting])
    is_own = (found.child >= lo) & (found.child < hi)
    if is_own.all():
        return Contracted(found, empty_forest(), is_settled)
    return Contracted(_take(found, is_own), _take(found, ~is_own), False)


def _lifted(edges: Forest, above: Above) -> tuple[Forest, bool]:
    """Large-star: the edges on the roots of their roots, and whether those are the same."""
    roots, inverse = np.unique(edges.root, return_inverse=True)
    higher = above(roots)
    return Forest(edges.child, higher[inverse]), bool((higher == roots).all())


def _take(forest: Forest, rows: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Forest:
    return Forest(forest.child[rows], forest.root[rows])
