"""Parts: committed pieces of an artifact, named by the range of offsets that they hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.storage import Store

_NAME = re.compile(r"^(?P<stem>[a-z]+)-(?P<lo>\d{12})-(?P<hi>\d{12})(?:-(?P<attempt>\d{4}))?\.(?P<form>[a-z]+)$")


@dataclass(frozen=True, order=True)
class Part:
    """One committed part: offsets [lo, hi), attempt number (0 unless rows were tried again), key in the store."""

    lo: int
    hi: int
    attempt: int
    key: str


@dataclass(frozen=True)
class Slice:
    """The rows [lo, hi) of a part."""

    part: Part
    lo: int
    hi: int


def part_name(stem: str, lo: int, hi: int, attempt: int = 0) -> str:
    """File name of the part that holds offsets [lo, hi)."""
    suffix = f"-{attempt:04d}" if attempt else ""
    return f"{stem}-{lo:012d}-{hi:012d}{suffix}.parquet"


def list_parts(store: Store, folder: str, stem: str, form: str = "parquet") -> list[Part]:
    """Committed parts of an artifact, sorted; one listing. form: how their names end."""
    found = []
    for info in store.list(f"{folder}/{stem}-"):
        match = _NAME.match(info.key.rsplit("/", 1)[-1])
        if match and match["stem"] == stem and match["form"] == form:
            found.append(Part(int(match["lo"]), int(match["hi"]), int(match["attempt"] or 0), info.key))
    return sorted(found)


def cut(lo: int, hi: int, size: int) -> list[tuple[int, int]]:
    """[lo, hi) cut at multiples of `size`, so that a shard is the same whoever asks for it."""
    bounds = [lo, *range((lo // size + 1) * size, hi, size), hi]
    return [(start, stop) for start, stop in pairwise(bounds) if start < stop]


def cover(parts: Iterable[Part], lo: int, hi: int) -> list[Slice]:
    """The slices that together hold [lo, hi) once each, as far as the parts reach; one pass over the sorted parts.

    Overlapping parts (of runs over unaligned ranges) hold equal rows, but for statuses of the attempt. From the first
    offset on, where one part ends the one that reaches furthest follows, then the one that starts first: the part of an
    offset depends on the names alone, and not on the range that is asked for.
    """
    slices: list[Slice] = []
    ordered = sorted(parts)
    at, following, best = min(lo, ordered[0].lo if ordered else lo), 0, None
    while at < hi:
        while following < len(ordered) and ordered[following].lo <= at:
            if best is None or ordered[following].hi > best.hi:
                best = ordered[following]
            following += 1
        if best is not None and best.hi > at:
            stop = min(best.hi, hi)
            if stop > lo:
                slices.append(Slice(best, max(at, lo), stop))
            at = stop
        elif following < len(ordered):
            at = ordered[following].lo
        else:
            break
    return slices


def missing(parts: Sequence[Part], lo: int, hi: int) -> list[tuple[int, int]]:
    """The ranges of [lo, hi) that no part holds."""
    gaps: list[tuple[int, int]] = []
    at = lo
    for piece in cover(parts, lo, hi):
        if piece.lo > at:
            gaps.append((at, piece.lo))
        at = piece.hi
    if at < hi:
        gaps.append((at, hi))
    return gaps


def shard_size(total: int) -> int:
    """Images per shard: a function of the snapshot's size alone, for at most about a thousand shards.

    1,024 up to a million images (about 2 s of one core), 16,384 at 11.6 million (about 25 s).
    """
    size = 1024
    while total > size * 1024:
        size *= 2
    return size
