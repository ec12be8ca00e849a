"""Contract stage: a round of the components that no task could hold, for one range of ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.kernels.components import Forest, Int64, empty_forest
from pipeline.kernels.star_contraction import contract
from pipeline.layout.groups import STAR_SCHEMA, forest_key, forest_parts, labels_among, read_stars, stars_between
from pipeline.layout.parts import Part, part_name
from pipeline.layout.root import Root
from pipeline.layout.shuffle import read_column, write_batches
from pipeline.layout.tables import read_metadata, write_table
from pipeline.runner import Counters
from pipeline.storage import Store

STRAYS = "strays"
SETTLED = b"is_settled"


@dataclass(frozen=True)
class RoundSpec:
    """The ids of one of the ranges, in one round. before: folder of the round before; in the first round, stars."""

    root: Root
    ranges: tuple[tuple[int, int], ...]
    number: int
    before: str
    stars: tuple[Part, ...]
    folder: str


def contract_range(spec: RoundSpec) -> Counters:
    """Commits the edges that go to other ranges, then the forest of this one, which says whether anything changed."""
    store = spec.root.open()
    lo, hi = spec.ranges[spec.number]
    parts = forest_parts(spec.before, spec.ranges) if spec.before else []

    def above(roots: Int64) -> Int64:
        return labels_among(store, parts, roots)

    own = read_stars(store, forest_key(spec.before, (lo, hi))) if spec.before else empty_forest()
    done = contract(lo, hi, own, _strays(store, spec), above)
    write_batches(store, strays_key(spec.folder, (lo, hi)), [_batch(done.strays, bounds) for bounds in spec.ranges])
    table = pa.table([done.own.child, done.own.root], schema=STAR_SCHEMA)
    table = table.replace_schema_metadata({SETTLED: b"1" if done.is_settled else b"0"})
    write_table(store, forest_key(spec.folder, (lo, hi)), table)
    return {"joined": len(done.own.child), "sent": len(done.strays.child), "unsettled": int(not done.is_settled)}


def is_settled(store: Store, key: str) -> bool:
    """Whether a range was found as it was in the round before; only its footer is read."""
    return read_metadata(store, key).get(SETTLED) == b"1"


def strays_key(folder: str, bounds: tuple[int, int]) -> str:
    """Key of what a range sends to the others."""
    return f"{folder}/{part_name(STRAYS, *bounds)}"


def _strays(store: Store, spec: RoundSpec) -> Iterator[Forest]:
    if not spec.before:
        yield from stars_between(store, spec.stars, *spec.ranges[spec.number])
        return
    keys = [strays_key(spec.before, bounds) for bounds in spec.ranges]
    for batch in read_column(store, keys, spec.number):
        yield Forest(batch.column(0).to_numpy(), batch.column(1).to_numpy())


def _batch(strays: Forest, bounds: tuple[int, int]) -> pa.RecordBatch:
    first, last = np.searchsorted(strays.child, bounds)
    columns = [pa.array(strays.child[first:last]), pa.array(strays.root[first:last])]
    return pa.RecordBatch.from_arrays(columns, schema=STAR_SCHEMA)
