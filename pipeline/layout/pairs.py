"""Pairs at rest: parts by the range of the smaller id, read as if they were one sorted table."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

import pyarrow as pa

from pipeline.layout.edges import each_in_order
from pipeline.layout.neighbours import CANDIDATE_SCHEMA
from pipeline.layout.parts import part_name
from pipeline.layout.root import kept
from pipeline.layout.tables import count_rows, json_bytes, read_json, read_rows
from pipeline.storage import Store

PAIRS = "pairs"
INDEX = "pairs.json"


def pairs_key(folder: str, lo: int, hi: int) -> str:
    """Key of the pairs whose smaller id is in [lo, hi)."""
    return f"{folder}/{part_name(PAIRS, lo, hi)}"


def index_pairs(store: Store, folder: str, ranges: Iterable[tuple[int, int]]) -> None:
    """Commits how many pairs each part holds: the done-marker of the folder."""
    names = [part_name(PAIRS, lo, hi) for lo, hi in ranges]
    counts = each_in_order(store, names, lambda name: count_rows(store, f"{folder}/{name}"))
    store.put_if_absent(f"{folder}/{INDEX}", json_bytes([*zip(names, counts, strict=True)]))


def count_pairs(store: Store, folder: str) -> int:
    """The number of pairs of a folder."""
    return sum(rows for _, rows in _index(store, folder))


def read_pairs(store: Store, folder: str, lo: int, hi: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows [lo, hi) of all pairs of a folder, sorted by image_id, then match_id."""
    index = _index(store, folder)
    ends = [*accumulate(rows for _, rows in index)]
    tables = []
    at, number = lo, bisect_right(ends, lo)
    while at < hi and number < len(index):
        name, rows = index[number]
        first = ends[number] - rows
        stop = min(hi, ends[number])
        if at < stop:
            tables.append(read_rows(store, f"{folder}/{name}", at - first, stop - first, columns))
        at, number = max(at, stop), number + 1
    names = CANDIDATE_SCHEMA.names if columns is None else columns
    empty = pa.schema([CANDIDATE_SCHEMA.field(name) for name in names]).empty_table()
    return pa.concat_tables(tables) if tables else empty


def _index(store: Store, folder: str) -> list[tuple[str, int]]:
    key = f"{folder}/{INDEX}"
    found: list[tuple[str, int]] = kept(store, key, lambda: read_json(store, key))
    return found
