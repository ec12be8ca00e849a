"""Ids in ascending order: the distinct ones, and ranges of rows between two places."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


def distinct(values: Int64) -> Int64:
    """The distinct values, ascending: int64 (n,) in. np.unique takes a table of hashes: 60 ms for 245,000, not 5."""
    ordered = np.sort(values, axis=None)
    is_first = np.ones(len(ordered), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    found: Int64 = ordered[is_first]
    return found


def is_among(values: Int64, ordered: Int64) -> NDArray[np.bool_]:
    """Which values are among some that ascend: bool (n,)."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[at] == values, bool)


def ranges_of(start: Int64, stop: Int64) -> Int64:
    """All of start[0] to stop[0], then all of start[1] to stop[1], and so on."""
    size = stop - start
    places: Int64 = np.arange(size.sum()) + np.repeat(start - (np.cumsum(size) - size), size)
    return places
