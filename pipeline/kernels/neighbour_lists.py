"""Neighbour lists as the findings read them: without the image's own group, nearest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError

Array = NDArray[Any]


@dataclass(frozen=True)
class Neighbours:
    """What a search found for n queries, k per query, in any order; ids < 0 fill a short list.

    own_group int64 (n,): the group of each query. ids and groups int64 (n, k): the neighbours and the groups they
    are in. similarities float64 (n, k): semantic, ignored where ids < 0.
    """

    own_group: Array
    ids: Array
    groups: Array
    similarities: Array

    def __post_init__(self) -> None:
        shapes = (self.ids.shape, self.groups.shape, self.similarities.shape)
        if self.ids.ndim != 2 or len(set(shapes)) > 1 or self.own_group.shape != self.ids.shape[:1]:
            raise UsageError(
                f"neighbours: ids, groups and similarities have the shapes {shapes}, own_group {self.own_group.shape}; "
                "want (n, k) three times and (n,)"
            )


def nearest_first(found: Neighbours, allowed: Array | None = None) -> tuple[Array, Array]:
    """The neighbours outside each query's own group, by falling similarity, equal ones by id.

    `allowed` bool (n, k) leaves further ones out. Returns ids int64 (n, k), -1 behind the last, and similarities
    float64 (n, k), 0 there. Raises UsageError for a NaN among the similarities of real neighbours.
    """
    keep = (found.ids >= 0) & (found.groups != found.own_group[:, None])
    if allowed is not None:
        keep = keep & allowed
    if np.isnan(found.similarities[keep]).any():
        raise UsageError("neighbours: a similarity is NaN; an image without a finite embedding must not be searched")
    order = np.lexsort((found.ids, -np.where(keep, found.similarities, 0.0), ~keep), axis=1)
    kept = np.take_along_axis(keep, order, axis=1)
    ids = np.where(kept, np.take_along_axis(found.ids, order, axis=1), -1)
    similarities = np.where(kept, np.take_along_axis(found.similarities, order, axis=1), 0.0)
    return ids.astype(np.int64), similarities.astype(np.float64)
