"""Hits at rest: per partition one shuffle file per slice of the ranges of queries, and beside it the slice's forest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
_NAME = re.compile(rf"/{HITS}-(?P<partition>\d{{6}})-(?P<first>\d{{6}})-(?P<last>\d{{6}})\.shuffle$")


@dataclass(frozen=True)
class Joined:
    """What the join of one space commits: its folder, the ranges of queries, how many partitions were joined.

    A slice that was cut may be there whole as well, of an attempt that ended late: both hold equal rows.
    """

    root: Root
    folder: str
    ranges: tuple[tuple[int, int], ...]
    partitions: int

    def hits_key(self, partition: int, first: int, last: int) -> str:
        """Key of the hits of ranges [first, last) at a partition."""
        return f"{self.folder}/{HITS}-{partition:06d}-{first:06d}-{last:06d}.shuffle"

    def saturated_key(self, partition: int, first: int, last: int) -> str:
        """Key of the forest of the queries of ranges [first, last) that are saturated at a partition alone."""
        return f"{self.folder}/{SATURATED}-{partition:06d}-{first:06d}-{last:06d}.parquet"

    def committed(self) -> list[list[Part]]:
        """Of each partition the slices whose files are both there, as ranges; one listing."""
        store = self.root.open()
        have = {info.key for info in store.list(f"{self.folder}/")}
        found: list[list[Part]] = [[] for _ in range(self.partitions)]
        for match in filter(None, map(_NAME.search, sorted(have))):
            partition, first, last = (int(match[name]) for name in ("partition", "first", "last"))
            if self.saturated_key(partition, first, last) in have:
                found[partition].append(Part(first, last, 0, match.string))
        return found

    def gaps(self) -> Iterator[tuple[int, int, int]]:
        """Partition and ranges [first, last) of what is not committed."""
        for partition, parts in enumerate(self.committed()):
            for first, last in missing(parts, 0, len(self.ranges)):
                yield partition, first, last

    def found(self, number: int) -> Hits:
        """What all partitions found for the queries of a range. Raises ArtifactError."""
        return self._read(self._keys(number), number)

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
            self.saturated_key(partition, part.lo, part.hi)
            for partition, parts in enumerate(self.committed())
            for part in self._whole(partition, parts, 0, len(self.ranges))
        ]

    def _read(self, keys: Sequence[str], column: int) -> Hits:
        return hits_of(read_column(self.root.open(), keys, column))

    def _merged(self, place: int, column: int, params: JoinParams) -> Hits:
        keys, merged = self._keys(place), empty_hits()
        for start in range(0, len(keys), AT_ONCE):
            merged = merge_hits([merged, self._read(keys[start : start + AT_ONCE], column)], params)
        return merged

    def _keys(self, number: int) -> list[str]:
        """Keys of the hits of a range, one per partition."""
        every = enumerate(self.committed())
        return [part.key for partition, parts in every for part in self._whole(partition, parts, number, number + 1)]

    def _whole(self, partition: int, parts: list[Part], first: int, last: int) -> list[Part]:
        """The parts that hold ranges [first, last), none missing unseen."""
        for gap in missing(parts, first, last):
            key = self.hits_key(partition, *gap)
            raise ArtifactError(f"{self.root.uri}/{key}: it is gone. {way_out(key, is_there=False)}")
        return [piece.part for piece in cover(parts, first, last)]
