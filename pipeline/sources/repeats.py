"""Rows of a list that name the same image or box again: dropped where they say the same, and kept apart where not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.sources.listed import LISTED

CONFLICTS = pa.schema([*LISTED, pa.field("kept_row", pa.int64(), nullable=False)])
"""LISTED, of the rows that were dropped although they say otherwise; kept_row: the row that stays instead."""

_NAME, _SAID = ("address", "fragment", "raw_address"), ("split", "label")


@dataclass
class Repeats:
    """What was dropped. same: rows that say the same again; conflicts: batches of CONFLICTS."""

    same: int = 0
    conflicts: list[pa.RecordBatch] = field(default_factory=list)


def first_rows(batches: Iterable[pa.RecordBatch], repeats: Repeats) -> Iterator[pa.RecordBatch]:
    """The first row of each image or box, from batches of LISTED in the order of (address, fragment, row).

    A later one is dropped and counted; where its split or label is another, it is kept as a conflict.
    """
    last: pa.RecordBatch | None = None
    for batch in batches:
        if not batch.num_rows:
            continue
        rows = batch if last is None else _together(last, batch)
        first = _first_of_each(rows)
        is_repeat = first != np.arange(len(first))
        kept = rows.take(pa.array(first))
        says_other = is_repeat & ~np.logical_and.reduce([_equal(rows[name], kept[name]) for name in _SAID])
        repeats.same += int((is_repeat & ~says_other).sum())
        if says_other.any():
            at = pa.array(np.flatnonzero(says_other))
            columns = [*rows.take(at).columns, kept["row"].take(at)]
            repeats.conflicts.append(pa.record_batch(columns, schema=CONFLICTS))
        is_new = ~is_repeat
        is_new[: 0 if last is None else 1] = False
        if is_new.any():
            yield rows.take(pa.array(np.flatnonzero(is_new)))
        last = kept.slice(len(kept) - 1)


def _together(last: pa.RecordBatch, batch: pa.RecordBatch) -> pa.RecordBatch:
    (rows,) = pa.Table.from_batches([last, batch]).combine_chunks().to_batches()
    return rows


def _first_of_each(rows: pa.RecordBatch) -> NDArray[np.int64]:
    """Place of the first row of the same name, int64 (n,)."""
    count = rows.num_rows
    is_first = np.ones(count, np.bool_)
    for_all = [_equal(rows[name].slice(1), rows[name].slice(0, count - 1)) for name in _NAME]
    is_first[1:] = ~np.logical_and.reduce(for_all)
    found: NDArray[np.int64] = np.maximum.accumulate(np.where(is_first, np.arange(count), 0))
    return found


def _equal(left: pa.Array, right: pa.Array) -> NDArray[np.bool_]:
    """Element by element; nulls are equal to each other."""
    both = pc.and_(pc.is_null(left), pc.is_null(right))
    same: NDArray[np.bool_] = pc.or_(both, pc.fill_null(pc.equal(left, right), False)).to_numpy(zero_copy_only=False)
    return same
