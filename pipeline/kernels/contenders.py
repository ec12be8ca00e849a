"""The rows that may be among the nearest of a query in a split, kept while float32 similarities come in block by block.

A slot is a query and a split. Its floor rises with what was found: under it no row can be among the nearest that are
wanted, whatever float32 got wrong. Measured on one core, 1,250 rows of 320-d a query: the product 6.7 us, the rows over
the floor 1.3, a partition 3.0 (only where a floor is missing or lets too many pass), faiss.knn for all of it 11.7.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.kernels.database import FLOAT32_ERROR, Float32, Int32, Int64, Mask
from pipeline.kernels.hits import JoinParams

_COMPACT_ROWS = 4_000_000
_LEAST_COSINE = np.float32(-1.5)  # what is under it is masked


@dataclass
class Contenders:
    """What was found: limit int64 (n, splits), the rows wanted in each slot (0: none); floor float32 of that shape.

    crowded bool (n, splits) marks the slots that are given up: float32 leaves over `crowd` times the rows needed in
    question. parts hold (slot int64, row int32, similarity float32), slot = query x splits + split; count: their rows,
    kept: those that the latest compaction left.
    """

    limit: Int64
    crowd: int
    floor: Float32
    crowded: Mask
    parts: list[tuple[Int64, Int32, Float32]] = field(default_factory=list)
    count: int = 0
    kept: int = 0


def no_contenders(limit: Int64, params: JoinParams) -> Contenders:
    """Return the start of a search; similarities surely under params.least are of no interest."""
    lowest = -np.inf if params.least is None else params.least - FLOAT32_ERROR
    floor = np.where(limit > 0, np.float32(lowest), np.float32(np.inf)).astype(np.float32)
    return Contenders(limit, 1 + params.overfetch, floor, np.zeros(limit.shape, dtype=bool))


def collect(found: Contenders, queries: Int64, split: int, rows: Int64, similarity: Float32) -> None:
    """Add the rows that may be among the nearest; similarity float32 (n, m); changes found.

    queries int64 (n,), rows int64 (m,), below 2**31; no row comes to a slot twice. Similarities under -1.5 are masked.
    """
    columns = similarity.shape[1]
    floor, need = found.floor[queries, split], found.limit[queries, split] + 1  # one more: the query itself
    is_open = np.isneginf(floor) & (2 * need < columns)
    floor[is_open] = _floors(similarity[is_open], need[is_open])
    # numpy finds flat positions four times as fast as rows and columns.
    query, column = np.divmod(np.flatnonzero(similarity >= np.maximum(floor, _LEAST_COSINE)[:, None]), columns)
    values = similarity[query, column]
    is_many = ~is_open & (np.bincount(query, minlength=len(queries)) > 2 * need)
    if is_many.any():
        floor[is_many] = np.maximum(floor[is_many], _floors(similarity[is_many], need[is_many]))
        keep = values >= floor[query]
        query, column, values = query[keep], column[keep], values[keep]
    is_crowd = np.bincount(query, minlength=len(queries)) > found.crowd * need
    if is_crowd.any():
        keep = ~is_crowd[query]
        query, column, values = query[keep], column[keep], values[keep]
        floor[is_crowd] = np.inf
        found.crowded[queries[is_crowd], split] = True
    found.floor[queries, split] = floor
    add(found, queries[query] * found.limit.shape[1] + split, rows[column].astype(np.int32), values)


def add(found: Contenders, slot: Int64, row: Int32, similarity: Float32) -> None:
    """Add rows to slots as they are, all (m,); changes found."""
    found.parts.append((slot, row, similarity))
    found.count += len(slot)
    if found.count > max(_COMPACT_ROWS, 2 * found.kept):  # 65,536 queries that want 62 rows each keep 4.1M
        compact(found)


def compact(found: Contenders) -> tuple[Int64, Int32]:
    """Return slot int64 (m,), ascending, and row int32 (m,) of what may be among the nearest; all else is forgotten."""
    slot = np.concatenate([np.empty(0, dtype=np.int64), *(part[0] for part in found.parts)])
    row = np.concatenate([np.empty(0, dtype=np.int32), *(part[1] for part in found.parts)])
    values = np.concatenate([np.empty(0, dtype=np.float32), *(part[2] for part in found.parts)])
    order = np.argsort(_slot_then_nearest(slot, values))
    slot, row, values = slot[order], row[order], values[order]
    is_first = np.ones(len(slot), dtype=bool)
    is_first[1:] = slot[1:] != slot[:-1]
    first = np.flatnonzero(is_first)
    run = np.cumsum(is_first) - 1
    need = found.limit.reshape(-1)[slot[first]] + 1
    last = first + need - 1
    is_full = last < np.append(first[1:], len(slot))
    floor = found.floor.reshape(-1)[slot[first]]
    floor[is_full] = np.maximum(floor[is_full], values[last[is_full]] - np.float32(FLOAT32_ERROR))
    keep = values >= floor[run]
    is_crowd = np.bincount(run[keep], minlength=len(first)) > found.crowd * need
    floor[is_crowd] = np.inf
    found.floor.reshape(-1)[slot[first]] = floor
    found.crowded.reshape(-1)[slot[first[is_crowd]]] = True
    keep &= ~is_crowd[run]
    found.parts = [(slot[keep], row[keep], values[keep])]
    found.count = found.kept = int(keep.sum())
    return slot[keep], row[keep]


def _floors(similarity: Float32, need: Int64) -> Float32:
    """Return what the need[i]-th largest of each row leaves open, float32 (n,); every need at most the columns."""
    wanted = np.unique(need)
    if len(wanted) == 0:
        return np.empty(0, dtype=np.float32)
    columns = similarity.shape[1]
    ordered = np.partition(similarity, columns - wanted, axis=1)
    return np.asarray(ordered[np.arange(len(need)), columns - need] - np.float32(FLOAT32_ERROR), dtype=np.float32)


def _slot_then_nearest(slot: Int64, values: Float32) -> Int64:
    """Return integers that ascend by slot and then by falling similarity: they are sorted at once."""
    bits = values.view(np.int32)
    falling = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return np.asarray((slot << 32) + falling, dtype=np.int64)
