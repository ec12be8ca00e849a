"""Hits at rest: per column of the visits one shuffle file per slice of their ranges, and what is committed with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ArtifactError
from pipeline.kernels.hit_batches import hits_of
from pipeline.kernels.hits import Hits, JoinParams, empty_hits, merge_hits
from pipeline.layout.neighbours import SATURATED
from pipeline.layout.parts import Part, cover, missing
from pipeline.layout.root import Root
from pipeline.layout.shuffle import read_column
from pipeline.layout.tables import way_out

HITS = "hits"
AT_ONCE = 16  # partitions: 91,136 queries of 33 hits in each are 1.1 GB
_NAME = re.compile(rf"/{HITS}-\d{{6}}-\d{{6}}-\d{{6}}\.shuffle$")


@dataclass(frozen=True)
class Joined:
    """What the join of one space commits: its folder, the ranges of queries, how many partitions were joined.

    A slice that was cut may be there whole as well, of an attempt that ended late: both hold equal rows. is_in_rounds:
    as in `Visits`; the first round commits floors for the second.
    """

    root: Root
    folder: str
    ranges: tuple[tuple[int, int], ...]
    partitions: int
    is_in_rounds: bool = False

    @property
    def columns(self) -> int:
        """Of the visits."""
        return self.partitions * (2 if self.is_in_rounds else 1)

    def hits_key(self, column: int, first: int, last: int) -> str:
        """Key of the hits of ranges [first, last) of a column."""
        return f"{self.folder}/{HITS}-{column:06d}-{first:06d}-{last:06d}.shuffle"

    def saturated_key(self, column: int, first: int, last: int) -> str:
        """Key of the forest of the queries of ranges [first, last) that are saturated at a partition alone."""
        return f"{self.folder}/{SATURATED}-{column:06d}-{first:06d}-{last:06d}.parquet"

    def floors_key(self, column: int, first: int, last: int) -> str:
        """Key of the floors of the queries of ranges [first, last) of a column of the first round."""
        return f"{self.folder}/floors-{column:06d}-{first:06d}-{last:06d}.shuffle"

    def has_floors(self, column: int) -> bool:
        """Whether a column is of the first of two rounds."""
        return self.is_in_rounds and column < self.partitions

    def beside(self, column: int, first: int, last: int) -> str:
        """Key of what is committed with the hits, before them."""
        return (
            self.floors_key(column, first, last) if self.has_floors(column) else self.saturated_key(column, first, last)
        )

    def committed(self) -> list[list[Part]]:
        """Of each column the slices whose files are both there, as ranges; one listing."""
        store = self.root.open()
        have = {info.key for info in store.list(f"{self.folder}/")}
        found: list[list[Part]] = [[] for _ in range(self.columns)]
        for key in filter(_NAME.search, sorted(have)):
            column, first, last = _place_of(key)
            if self.beside(column, first, last) in have:
                found[column].append(Part(first, last, 0, key))
        return found

    def gaps(self) -> Iterator[tuple[int, int, int]]:
        """Column and ranges [first, last) of what is not committed."""
        for column, parts in enumerate(self.committed()):
            for first, last in missing(parts, 0, len(self.ranges)):
                yield column, first, last

    def floors(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The queries of ranges [first, last) that found enough in the first round, ascending, and their floors."""
        committed = self.committed()[: self.partitions]
        batches = []
        for number in range(first, last):
            keys = self._keys(committed, number)
            floors = [self.floors_key(*_place_of(key)) for key in keys]
            batches += [*read_column(self.root.open(), floors, number)]
        ids, floor = (np.concatenate([batch.column(at).to_numpy() for batch in batches]) for at in (0, 1))
        order = np.argsort(ids)
        return ids[order], floor[order]

    def found(self, number: int) -> Hits:
        """What all partitions found for the queries of a range. Raises ArtifactError."""
        return self._read(self._keys(self.committed(), number), number)

    def merged(self, number: int, params: JoinParams) -> Hits:
        """`found`, merged some partitions at a time: graphs answer each query in every partition."""
        return self._merged(number, number, params)

    def true(self, number: int, params: JoinParams) -> Hits:
        """What a search of everything found for the sampled queries of a range, merged.

        The slices that begin with range 0 hold it.
        """
        return self._merged(0, len(self.ranges) + number, params)

    def saturated_keys(self) -> list[str]:
        """Keys of the forests of the queries that are saturated at one partition, each slice once.

        Raises ArtifactError where one is gone.
        """
        return [
            self.saturated_key(column, part.lo, part.hi)
            for column, parts in enumerate(self.committed())
            for part in self._whole(column, parts, 0, len(self.ranges))
        ]

    def _read(self, keys: Sequence[str], column: int) -> Hits:
        return hits_of(read_column(self.root.open(), keys, column))

    def _merged(self, place: int, column: int, params: JoinParams) -> Hits:
        keys, merged = self._keys(self.committed(), place), empty_hits()
        for start in range(0, len(keys), AT_ONCE):
            merged = merge_hits([merged, self._read(keys[start : start + AT_ONCE], column)], params)
        return merged

    def _keys(self, committed: list[list[Part]], number: int) -> list[str]:
        """Keys of the hits of a range, one per column."""
        every = enumerate(committed)
        return [part.key for column, parts in every for part in self._whole(column, parts, number, number + 1)]

    def _whole(self, column: int, parts: list[Part], first: int, last: int) -> list[Part]:
        """The parts that hold ranges [first, last), none missing unseen."""
        for gap in missing(parts, first, last):
            key = self.hits_key(column, *gap)
            raise ArtifactError(f"{self.root.uri}/{key}: it is gone. {way_out(key, is_there=False)}")
        return [piece.part for piece in cover(parts, first, last)]


def _place_of(key: str) -> tuple[int, int, int]:
    """Column and slice of a file of hits."""
    column, first, last = map(int, key.removesuffix(".shuffle").split("-")[-3:])
    return column, first, last
