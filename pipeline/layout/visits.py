"""Visits at rest: one shuffle file per range of offsets, one batch per partition, and one of the sampled queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from pipeline.kernels.database import Database
from pipeline.kernels.visits import Routed, concatenate_routed, database_of, visits_of
from pipeline.layout.root import Root
from pipeline.layout.shuffle import read_batch, read_column

WORK = "work"
"""Folder of what is deleted once its readers are done."""
QUERIES_AT_ONCE = 65_536  # 84 MB of 320-d vectors and as much again as unit float32


@dataclass(frozen=True)
class Visits:
    """The visits of one space: their folder, the ranges of offsets that they came from, partitions, dimension."""

    root: Root
    folder: str
    ranges: tuple[tuple[int, int], ...]
    partitions: int
    dimension: int

    def keys(self) -> list[str]:
        """Keys of the shuffle files, one per range."""
        return [visits_key(self.folder, lo, hi) for lo, hi in self.ranges]

    def sampled(self) -> Routed:
        """The queries that recall is measured with."""
        return visits_of(read_column(self.root.open(), self.keys(), self.partitions), self.dimension)

    def queries(self, partition: int, first: int, last: int) -> Iterator[Routed]:
        """The queries of ranges [first, last) at a partition, about 65,536 at a time, whole ranges together."""
        store = self.root.open()
        held: list[Routed] = []
        for key in self.keys()[first:last]:
            held.append(visits_of([read_batch(store, key, partition)], self.dimension))
            if sum(map(len, held)) >= QUERIES_AT_ONCE:
                yield concatenate_routed(held)
                held = []
        if held:
            yield concatenate_routed(held)


def visits_key(folder: str, lo: int, hi: int) -> str:
    """Key of the visits of a range."""
    return f"{folder}/visits-{lo:012d}-{hi:012d}.shuffle"


@lru_cache(maxsize=1)
def partition_database(visits: Visits, partition: int) -> Database:
    """The database of a partition, kept in this process for the next slice of its queries."""
    return database_of(lambda: read_column(visits.root.open(), visits.keys(), partition), visits.dimension)
