"""The edges of an edges folder by either end: a lookup of their rows, and every end with the row of its edge.

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
from pipeline.layout.tables import read_json, write_json
from pipeline.schemas import EDGES
from pipeline.storage import Store

ENDS, INDEXED = "ends.arrow", "indexed.json"
ROWS = "indexed"
ROWS_PER_FILE = 131_072  # 10 MB
END_SCHEMA = pa.schema([pa.field("end", pa.int64()), pa.field("row", pa.int64())])


def write_edge_index(store: Store, folder: str) -> int:
    """Commits the index of a folder of edges, its count last; returns that. It holds 96 bytes of each edge."""
    sides: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    count = 0
    for table in _in_files(edge_tables(store, folder)):
        write_lookup(store, f"{folder}/{lookup_name(ROWS, count, count + table.num_rows)}", table)
        sides.append((table["image_id"].to_numpy(), table["match_id"].to_numpy()))
        count += table.num_rows
    ends = np.concatenate([*(a for a, _ in sides), *(b for _, b in sides), np.empty(0, np.int64)])
    sides.clear()
    order = np.argsort(ends, kind="stable")
    ends = ends[order]
    order %= max(count, 1)
    write_lookup(store, f"{folder}/{ENDS}", pa.table([ends, order], schema=END_SCHEMA))
    write_json(store, f"{folder}/{INDEXED}", {"edges": count})
    return count


def index_files(store: Store, folder: str) -> list[str]:
    """Names of the files that the index of a folder consists of; of one that is not whole the last alone."""
    try:
        count = read_json(store, f"{folder}/{INDEXED}")["edges"]
    except NotFound:
        return [INDEXED]
    rows = [lookup_name(ROWS, *bounds) for bounds in cut(0, count, ROWS_PER_FILE)]
    return [*rows, ENDS, INDEXED]


def edges_at(store: Store, folder: str, ids: NDArray[np.int64]) -> pa.Table:
    """The edges with an end among some ids, each once, in the order of the folder."""
    index = open_lookup(store, f"{folder}/{ENDS}")
    ends = index["end"].to_numpy()
    wanted = distinct(ids)
    start, stop = np.searchsorted(ends, wanted, "left"), np.searchsorted(ends, wanted, "right")
    rows = distinct(index["row"].to_numpy()[ranges_of(start, stop)])
    return take_rows(store, folder, ROWS, rows) if len(rows) else EDGES.empty()


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
