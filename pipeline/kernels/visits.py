"""Visits: which partitions a vector is sent to, as record batches that the join of a partition reads.

A row of a batch is one vector at one partition, with the lists that it probes there. The partition that holds its own
list owns it: there the row is in the database as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.database import Database, ordered_database

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float16 = NDArray[np.float16]

NOT_OWNED = -1


@dataclass(frozen=True)
class Routed:
    """Vectors with their lists, (n,) each: ids int64, split_mask uint64, vectors float16 (n, d).

    own int32: the list that a vector is in, -1 where it only asks and is no answer; probes int32 (n, nprobe); parent
    int64: whose vectors are siblings (`kernels.siblings`), None where they are vectors like others.
    """

    ids: Int64
    split_mask: NDArray[np.uint64]
    vectors: Float16
    own: Int32
    probes: Int32
    parent: Int64 | None = None

    def take(self, rows: Int64 | NDArray[np.bool_]) -> Routed:
        """Some rows."""
        parent = None if self.parent is None else self.parent[rows]
        picked = (self.ids[rows], self.split_mask[rows], self.vectors[rows], self.own[rows], self.probes[rows])
        return Routed(*picked, parent)

    def __len__(self) -> int:
        return len(self.ids)


def visit_schema(dimension: int) -> pa.Schema:
    """Schema of the batches for vectors of so many numbers, which stand last; `parent` comes before them where there
    are siblings.
    """
    return pa.schema(
        [
            pa.field("image_id", pa.int64()),
            pa.field("split_mask", pa.uint64()),
            pa.field("own", pa.int32()),
            pa.field("lists", pa.list_(pa.int32())),
            pa.field("vector", pa.binary(2 * dimension)),
        ]
    )


PARENT = pa.field("parent", pa.int64())


def visits_by_partition(routed: Routed, partition_of: Int32, partitions: int) -> list[pa.RecordBatch]:
    """One batch per partition, its rows in the order of `routed`. partition_of int32 (nlist,).

    Raises UsageError for a list that has no partition.
    """
    if len(partition_of) and not 0 <= int(partition_of.min()) <= int(partition_of.max()) < partitions:
        raise UsageError(
            f"visits: lists are in partitions up to {int(partition_of.max())}, want less than {partitions}"
        )
    return _visits(routed, partition_of, partition_of[routed.probes], partitions)


def visits_in_rounds(routed: Routed, partition_of: Int32, partitions: int) -> list[pa.RecordBatch]:
    """One batch per partition with the vectors whose nearest list is there, then one each with the others.

    Where every vector was searched among its nearest first, the others need not return what is further.
    """
    place = partition_of[routed.probes]
    return _visits(routed, partition_of, np.where(place == place[:, :1], place, place + partitions), 2 * partitions)


def _visits(routed: Routed, partition_of: Int32, place: Int32, places: int) -> list[pa.RecordBatch]:
    """One batch per place; place int32 (n, nprobe), that of each probe."""
    count, width = routed.probes.shape
    visited = place.ravel()
    row = np.repeat(np.arange(count), width)
    order = np.argsort(visited, kind="stable")
    visited, row, lists = visited[order], row[order], routed.probes.ravel()[order]
    is_first = np.ones(len(row), dtype=bool)
    is_first[1:] = (visited[1:] != visited[:-1]) | (row[1:] != row[:-1])
    start = np.append(np.flatnonzero(is_first), len(row))
    bounds = np.searchsorted(visited[start[:-1]], np.arange(places + 1))
    return [
        _batch(routed, partition_of, number, row[start[lo:hi]], lists[start[lo] : start[hi]], start[lo : hi + 1])
        for number, (lo, hi) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    ]


def by_reference(routed: Routed) -> Routed:
    """The same rows with their number, four bytes, in the place of each vector: for readers that can look it up."""
    numbers = np.arange(len(routed), dtype=np.uint32)
    return replace(routed, vectors=numbers.view(np.float16).reshape(len(routed), 2))


def resolved(batch: pa.RecordBatch, vectors: Float16) -> pa.RecordBatch:
    """A batch of `by_reference` with the vectors, float16 (n, d), that its numbers stand for."""
    numbers = np.ascontiguousarray(_vectors(batch, 2)).view(np.uint32).ravel()
    found = np.ascontiguousarray(vectors[numbers])
    column = pa.Array.from_buffers(pa.binary(2 * vectors.shape[1]), len(numbers), [None, pa.py_buffer(found)])
    last = batch.num_columns - 1
    schema = batch.schema.set(last, batch.schema.field(last).with_type(column.type))
    return pa.record_batch([*batch.columns[:-1], column], schema=schema)


def asking_batch(routed: Routed) -> pa.RecordBatch:
    """A batch of rows that ask everywhere and are no answer: no lists are named."""
    nowhere = np.zeros(len(routed) + 1, dtype=np.int64)
    return _record_batch(routed, np.full(len(routed), NOT_OWNED, np.int32), np.empty(0, np.int32), nowhere)


def visits_of(batches: Iterable[pa.RecordBatch], dimension: int) -> Routed:
    """The rows of some batches, in order; probes are padded with -1, lists of other partitions left out."""
    parts = [_routed(batch, dimension) for batch in batches]
    return concatenate_routed(parts or [_routed(pa.RecordBatch.from_pylist([], visit_schema(dimension)), dimension)])


def concatenate_routed(parts: Sequence[Routed]) -> Routed:
    """The rows of one or more parts, in order."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.probes.shape[1] for part in parts)
    probes = [np.pad(p.probes, ((0, 0), (0, width - p.probes.shape[1])), constant_values=-1) for p in parts]
    parents = [part.parent for part in parts if part.parent is not None]
    return Routed(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.split_mask for part in parts]),
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.own for part in parts]),
        np.concatenate(probes),
        np.concatenate(parents) if len(parents) == len(parts) else None,
    )


def database_of(read: Callable[[], Iterable[pa.RecordBatch]], dimension: int) -> Database:
    """The database of a partition: the rows of its batches that it owns.

    `read` is called twice: each vector goes to its place at once, so that no more than a batch is held beside them.
    """
    owned = [_owned(batch) for batch in read()]
    columns = {name: np.concatenate([part[name] for part in owned]) for name in owned[0]}
    ids, masks, own = (columns[name] for name in ("image_id", "split_mask", "own"))
    order = np.lexsort((ids, own))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    vectors = np.empty((len(order), dimension), dtype=np.float16)
    at = 0
    for batch in read():
        rows = np.flatnonzero(batch.column("own").to_numpy() >= 0)
        vectors[place[at : at + len(rows)]] = _vectors(batch, dimension)[rows]
        at += len(rows)
    parent = columns[PARENT.name][order] if PARENT.name in columns else None
    return ordered_database(ids[order], vectors, masks[order], own[order], parent)


def _owned(batch: pa.RecordBatch) -> dict[str, NDArray[Any]]:
    own = batch.column("own").to_numpy()
    names = [name for name in ("image_id", "split_mask", "own", PARENT.name) if name in batch.schema.names]
    return {name: batch.column(name).to_numpy()[own >= 0] for name in names}


def _batch(routed: Routed, partition_of: Int32, number: int, rows: Int64, lists: Int32, start: Int64) -> pa.RecordBatch:
    own = routed.own[rows]
    is_here = (own >= 0) & (partition_of[own] == number)
    there = routed.take(rows)
    return _record_batch(there, np.where(is_here, own, NOT_OWNED).astype(np.int32), lists, start - start[0])


def _record_batch(rows: Routed, own: Int32, lists: Int32, start: Int64) -> pa.RecordBatch:
    dimension = rows.vectors.shape[1]
    vectors = pa.py_buffer(np.ascontiguousarray(rows.vectors, dtype=np.float16))
    columns = [
        pa.array(rows.ids),
        pa.array(rows.split_mask),
        pa.array(own),
        pa.ListArray.from_arrays(pa.array(start.astype(np.int32)), pa.array(lists.astype(np.int32))),
        pa.Array.from_buffers(pa.binary(2 * dimension), len(rows), [None, vectors]),
    ]
    schema = visit_schema(dimension)
    if rows.parent is not None:
        columns.insert(-1, pa.array(rows.parent))
        schema = schema.insert(len(schema) - 1, PARENT)
    return pa.record_batch(columns, schema=schema)


def _routed(batch: pa.RecordBatch, dimension: int) -> Routed:
    lists = batch.column("lists")
    size = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    probes = np.full((len(size), int(size.max(initial=1))), -1, dtype=np.int32)
    probes[np.arange(probes.shape[1])[None, :] < size[:, None]] = lists.flatten().to_numpy()
    ids, masks, own = (batch.column(name).to_numpy() for name in ("image_id", "split_mask", "own"))
    parent = batch.column(PARENT.name).to_numpy() if PARENT.name in batch.schema.names else None
    return Routed(ids, masks, _vectors(batch, dimension), own, probes, parent)


def _vectors(batch: pa.RecordBatch, dimension: int) -> Float16:
    column = batch.column("vector")
    data = np.frombuffer(column.buffers()[1] or b"", dtype=np.float16)
    at = column.offset * dimension
    return data[at : at + len(column) * dimension].reshape(len(column), dimension)
