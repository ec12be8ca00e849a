"""The edges of an edges folder by either end: a lookup of their rows, and every end with the row of its edge by id.

Edges are stored by their smaller id. A range of images needs those that end there too, and a folder of 10 million is
too much to read for each of 177 ranges.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import NotFound
from pipeline.kernels.sorted_ids import distinct, ranges_of
from pipeline.layout.edges import edge_tables
from pipeline.layout.lookups import lookup_name, open_lookup, take_rows, write_lookup
from pipeline.layout.parts import cut
from pipeline.layout.root import kept
from pipeline.layout.tables import read_json, write_json
from pipeline.schemas import EDGES
from pipeline.storage import Store

Int64 = NDArray[np.int64]

ENDS, ROWS, INDEXED = "ends", "indexed", "indexed.json"
ROWS_PER_FILE = 131_072  # 10 MB
ENDS_PER_FILE = 4_194_304  # 67 MB
IDS_PER_BIN = 4096
END_SCHEMA = pa.schema([pa.field("end", pa.int64()), pa.field("row", pa.int64())])


def write_edge_index(store: Store, folder: str) -> int:
    """Commits the index of a folder of edges, the list of its files last; returns the number of edges.

    It holds 16 bytes of each edge and what goes into one file: ends sorted at once would take 96.
    """
    sides: list[tuple[Int64, Int64]] = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    count = 0
    for table in _in_files(edge_tables(store, folder)):
        write_lookup(store, f"{folder}/{lookup_name(ROWS, count, count + table.num_rows)}", table)
        sides.append((table["image_id"].to_numpy(), table["match_id"].to_numpy()))
        count += table.num_rows
    smaller, larger = (np.concatenate(side) for side in zip(*sides, strict=True))
    del sides
    ranges = _id_ranges(smaller, larger)
    for lo, hi in ranges:
        rows = [np.flatnonzero((side >= lo) & (side < hi)) for side in (smaller, larger)]
        ends = np.concatenate([smaller[rows[0]], larger[rows[1]]])
        order = np.argsort(ends, kind="stable")
        table = pa.table([ends[order], np.concatenate(rows)[order]], schema=END_SCHEMA)
        write_lookup(store, f"{folder}/{lookup_name(ENDS, lo, hi)}", table)
    write_json(store, f"{folder}/{INDEXED}", {"edges": count, "ends": ranges})
    return count


def index_files(store: Store, folder: str) -> list[str]:
    """Names of the files that the index of a folder consists of; of one that was never finished the last alone."""
    try:
        made = read_json(store, f"{folder}/{INDEXED}")
    except NotFound:
        return [INDEXED]
    rows = [lookup_name(ROWS, *bounds) for bounds in cut(0, made["edges"], ROWS_PER_FILE)]
    return [*rows, *(lookup_name(ENDS, lo, hi) for lo, hi in made["ends"]), INDEXED]


def edges_at(store: Store, folder: str, ids: Int64) -> pa.Table:
    """The edges with an end among some ids, each once, in the order of the folder."""
    wanted = distinct(ids)
    found = [np.empty(0, np.int64)]
    for lo, hi in kept(store, f"{folder}/{INDEXED}", lambda: read_json(store, f"{folder}/{INDEXED}"))["ends"]:
        first, last = np.searchsorted(wanted, [lo, hi])
        if first < last:
            index = open_lookup(store, f"{folder}/{lookup_name(ENDS, lo, hi)}")
            ends, inside = index["end"].to_numpy(), wanted[first:last]
            start, stop = np.searchsorted(ends, inside, "left"), np.searchsorted(ends, inside, "right")
            found.append(index["row"].to_numpy()[ranges_of(start, stop)])
    rows = distinct(np.concatenate(found))
    return take_rows(store, folder, ROWS, rows) if len(rows) else EDGES.empty()


def _id_ranges(smaller: Int64, larger: Int64) -> list[tuple[int, int]]:
    """Ranges of ids with about ENDS_PER_FILE ends in each: whole bins, of which one alone may hold more."""
    last = int(max(smaller.max(initial=-1), larger.max(initial=-1)))
    counts = np.zeros(last // IDS_PER_BIN + 1, np.int64)
    for side in (smaller, larger):
        counts += np.bincount(side // IDS_PER_BIN, minlength=len(counts))
    ranges, lo, held = [], 0, 0
    for number, count in enumerate(counts.tolist()):
        if held and held + count > ENDS_PER_FILE:
            ranges.append((lo, number * IDS_PER_BIN))
            lo, held = number * IDS_PER_BIN, 0
        held += count
    return [*ranges, (lo, len(counts) * IDS_PER_BIN)] if held else ranges


def _in_files(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of ROWS_PER_FILE, the last one shorter."""
    held: list[pa.Table] = []
    size = 0
    for table in tables:
        held.append(table)
        size += table.num_rows
        while size >= ROWS_PER_FILE:
            joined = pa.concat_tables(held)
            yield joined.slice(0, ROWS_PER_FILE)
            held, size = [joined.slice(ROWS_PER_FILE)], size - ROWS_PER_FILE
    if size:
        yield pa.concat_tables(held)
