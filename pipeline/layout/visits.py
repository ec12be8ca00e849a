"""Visits at rest: one shuffle file per range of offsets, a batch per partition and one of the sampled queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.database import Database
from pipeline.kernels.visits import Routed, concatenate_routed, database_of, resolved, visits_of
from pipeline.layout.lookups import lookup_name, open_lookup, write_lookup
from pipeline.layout.root import Root, one_kept
from pipeline.layout.shuffle import read_batch, read_column
from pipeline.storage import Store

QUERIES_AT_ONCE = 65_536  # 84 MB of 320-d vectors and as much again as unit float32


@dataclass(frozen=True)
class Visits:
    """The visits of one space: their folder, the ranges of offsets that they came from, partitions, dimension.

    is_in_rounds: each partition has two columns, the visits of the vectors that are nearest to it and, `partitions`
    further on, all others. has_siblings: each vector is there with its parent.
    """

    root: Root
    folder: str
    ranges: tuple[tuple[int, int], ...]
    partitions: int
    dimension: int
    is_in_rounds: bool = False
    has_siblings: bool = False

    @property
    def columns(self) -> int:
        """Batches of a file before that of the sampled queries."""
        return self.partitions * (2 if self.is_in_rounds else 1)

    @property
    def is_by_reference(self) -> bool:
        """Whether a visit names the row of its vector: on a disk, where vectors are mapped and not read.

        Each carries its own where an object store would be asked for single rows. On a disk 11.6M vectors that visit
        4.4 partitions of 13 would be 35 GB; they are 7 GB, and 60 bytes a visit.
        """
        return self.root.open().local_path(self.folder) is not None

    def keys(self) -> list[str]:
        """Keys of the shuffle files, one per range."""
        return [visits_key(self.folder, lo, hi) for lo, hi in self.ranges]

    def sampled(self) -> Routed:
        """The queries that recall is measured with."""
        return visits_of(self.batches(self.columns), self.dimension)

    def batches(self, column: int) -> Iterator[pa.RecordBatch]:
        """The batches of a column with their vectors, range by range."""
        found = read_column(self.root.open(), self.keys(), column)
        return (self._resolved(batch, *bounds) for batch, bounds in zip(found, self.ranges, strict=True))

    def owned(self, partition: int) -> Iterator[pa.RecordBatch]:
        """The rows that a partition owns, range by range."""
        found = read_column(self.root.open(), self.keys(), partition)
        kept = (batch.filter(pa.array(batch.column("own").to_numpy() >= 0)) for batch in found)
        return (self._resolved(batch, *bounds) for batch, bounds in zip(kept, self.ranges, strict=True))

    def _resolved(self, batch: pa.RecordBatch, lo: int, hi: int) -> pa.RecordBatch:
        if not self.is_by_reference:
            return batch
        return resolved(batch, read_vectors(self, lo, hi))

    def queries(self, column: int, first: int, last: int) -> Iterator[Routed]:
        """The queries of ranges [first, last) in a column, about 65,536 at a time (in the second round, which keeps
        less of each, 196,608), whole ranges together.
        """
        at_once = QUERIES_AT_ONCE * (1 if column < self.partitions else 3)
        store = self.root.open()
        held: list[Routed] = []
        for lo, hi in self.ranges[first:last]:
            batch = read_batch(store, visits_key(self.folder, lo, hi), column)
            held.append(visits_of([self._resolved(batch, lo, hi)], self.dimension))
            if sum(map(len, held)) >= at_once:
                yield concatenate_routed(held)
                held = []
        if held:
            yield concatenate_routed(held)


def visits_key(folder: str, lo: int, hi: int) -> str:
    """Key of the visits of a range."""
    return f"{folder}/visits-{lo:012d}-{hi:012d}.shuffle"


@one_kept
def partition_database(visits: Visits, partition: int) -> Database:
    """The database of a partition, kept in this process for the next slice of its queries."""
    return database_of(lambda: visits.owned(partition), visits.dimension)


def vectors_key(folder: str, lo: int, hi: int) -> str:
    """Key of the vectors of a range that visits name by row."""
    return f"{folder}/{lookup_name('vectors', lo, hi)}"


def write_vectors(store: Store, key: str, vectors: NDArray[np.float16]) -> None:
    """Commits vectors float16 (n, d) that are read by row."""
    data = pa.py_buffer(np.ascontiguousarray(vectors))
    column = pa.Array.from_buffers(pa.binary(2 * vectors.shape[1]), len(vectors), [None, data])
    write_lookup(store, key, pa.table({"vector": column}))


def read_vectors(visits: Visits, lo: int, hi: int) -> NDArray[np.float16]:
    """The vectors of a range, float16 (n, d), mapped."""
    column = open_lookup(visits.root.open(), vectors_key(visits.folder, lo, hi)).column("vector")
    return np.frombuffer(column.buffers()[1] or b"", np.float16).reshape(-1, visits.dimension)[: len(column)]
