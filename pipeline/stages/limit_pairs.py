"""Limiting the pairs: where more are candidates than may be compared, the most similar ones are.

Siblings that are together are not compared, so they take no place of another pair; all of them are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.layout.edges import each_in_order
from pipeline.layout.inputs import Inputs
from pipeline.layout.pairs import pairs_key
from pipeline.layout.root import Root
from pipeline.layout.siblings import are_together
from pipeline.layout.tables import json_bytes, read_json, read_table, write_table
from pipeline.runner import Counters
from pipeline.storage import Store

VERSION = 2
COLUMNS = ["image_id", "match_id", "similarity"]
BINS = 1 << 20
"""Of similarity from -1 to 1: 2e-6 each, and similarities are rounded to 1e-6."""


@dataclass(frozen=True)
class LimitSpec:
    """Collected pairs of some ranges, of which at most `most` are kept, in a folder; `number`: the range of a task.

    siblings: the inputs that tell which pairs are together; None where there are no parents.
    """

    root: Root
    pairs: str
    ranges: tuple[tuple[int, int], ...]
    most: int
    folder: str
    number: int = 0
    siblings: Inputs | None = None


def limit_key(folder: str) -> str:
    """Key of what was decided for a folder of kept pairs."""
    return f"{folder}/limit.json"


def decide(spec: LimitSpec) -> Counters:
    """Commits the similarity from which on pairs are kept, and how many are left out; one part is held at once."""
    store = spec.root.open()
    keys = [pairs_key(spec.pairs, lo, hi) for lo, hi in spec.ranges]
    counts = np.zeros(BINS, np.int64)
    columns = COLUMNS if spec.siblings else COLUMNS[2:]
    for part in each_in_order(store, keys, lambda key: read_table(store, key, columns)):
        is_sibling = _siblings(spec, part)
        at = ((part["similarity"].to_numpy()[~is_sibling] + 1) / 2 * BINS).astype(np.int64)
        counts += np.bincount(np.clip(at, 0, BINS - 1), minlength=BINS)
    kept = np.cumsum(counts[::-1])
    bins = max(1, int(np.searchsorted(kept, spec.most, "right")))  # equal pairs stay together, however many
    found = {"least": 1 - 2 * bins / BINS, "left_out": int(kept[-1] - kept[bins - 1])}
    store.put_if_absent(limit_key(spec.folder), json_bytes(found))
    return {"left_out": found["left_out"]}


def keep_similar(spec: LimitSpec) -> Counters:
    """Commits the pairs of a range that are kept."""
    store = spec.root.open()
    lo, hi = spec.ranges[spec.number]
    pairs = read_table(store, pairs_key(spec.pairs, lo, hi))
    is_near = pc.greater_equal(pairs["similarity"], read_limit(store, spec.folder)["least"])
    kept: pa.Table = pairs.filter(pc.or_(is_near, pa.array(_siblings(spec, pairs))))
    write_table(store, pairs_key(spec.folder, lo, hi), kept)
    return {"pairs": kept.num_rows}


def _siblings(spec: LimitSpec, pairs: pa.Table) -> NDArray[np.bool_]:
    """Which pairs are not compared."""
    if spec.siblings is None:
        return np.zeros(pairs.num_rows, bool)
    return are_together(spec.siblings, *(pairs[name].to_numpy() for name in COLUMNS[:2]))


def has_limit(store: Store, folder: str) -> bool:
    """Whether some pairs were left out of a folder."""
    return store.exists(limit_key(folder))


def read_limit(store: Store, folder: str) -> dict[str, Any]:
    """What was decided for a folder: `least` similarity kept, how many pairs are `left_out`."""
    found: dict[str, Any] = read_json(store, limit_key(folder))
    return found
