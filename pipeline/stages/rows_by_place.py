"""Rows of the catalog by their place: those that it has, sorted, and those that a listing adds."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.layout.snapshots import Snapshot, catalog_rows, removed_ids, restamped_times
from pipeline.schemas import CATALOG_ROWS
from pipeline.sources.folder import encode_keys
from pipeline.sources.fragments import fragment_uri
from pipeline.stages.listing import Listed, Place
from pipeline.storage import Store

Ids = NDArray[np.int64]
BLOCK_ROWS = 65_536
FRAGMENT_COLUMNS = ("fragment", "position", "length", "parent_size", "parent_kind", "problem", "label")

State = tuple[int, str, int, str, str, int, int]
"""What tells a file, or a fragment of one, from what it was: bytes, etag; of a fragment the size of its file, problem,
label and the bytes that it takes there; last the time in ns, 0 where it has an etag.
"""

Row = tuple[Place, str, str, int, str, int, str, str, int, int]
"""A row to be added: place, key of its file, of a fragment the kind of that, and its state.

Plain tuples of text and numbers, which are no work for the collector of garbage: of 131,072 objects it had 1.5 us each.
"""


class KnownRow(NamedTuple):
    """A row of the catalog, which is there or was removed."""

    place: Place
    image_id: int
    state: State
    is_live: bool


END = KnownRow((sys.maxsize, b"", 0, ""), -1, (0, "", 0, "", "", 0, 0), False)
"""Behind every row."""


def state_of(listed: Listed) -> State:
    """The state of what is listed."""
    info, inner = listed.info, listed.fragment
    time = 0 if info.etag else info.mtime_ns
    if inner is None:
        return info.size, info.etag, 0, "", "", 0, time
    return inner.size, info.etag, info.size, inner.problem, inner.label, inner.length, time


def row_of(listed: Listed) -> Row:
    """The row of what is listed."""
    return listed.place, listed.info.key, listed.kind if listed.fragment else "", *state_of(listed)


def rows_table(rows: Sequence[Row], lo: int) -> pa.Table:
    """CATALOG_ROWS of rows, of which the first gets the id `lo`."""
    uris, raw_keys = encode_keys([row[1] for row in rows])
    is_file = np.array([not row[2] for row in rows])
    columns: dict[str, Any] = {
        "image_id": np.arange(lo, lo + len(rows), dtype=np.int64),
        "source": np.array([row[0][0] for row in rows], np.int16),
        "uri": uris,
        "raw_key": raw_keys,
        "size_bytes": [row[3] for row in rows],
        "etag": [row[4] or None for row in rows],
        "mtime_ns": [None if row[4] else row[9] for row in rows],
    }
    if is_file.all():
        columns |= {name: pa.nulls(len(rows), CATALOG_ROWS.schema.field(name).type) for name in FRAGMENT_COLUMNS}
    else:
        columns |= _fragment_columns(rows, is_file)
        columns["uri"] = [fragment_uri(uri, row[0][3]) for uri, row in zip(uris.to_pylist(), rows, strict=True)]
    return pa.table(columns, schema=CATALOG_ROWS.schema)


def _fragment_columns(rows: Sequence[Row], is_file: NDArray[np.bool_]) -> dict[str, pa.Array]:
    places = ([row[0][at] for row in rows] for at in (3, 2))
    inner = ([row[at] for row in rows] for at in (8, 5, 2, 6, 7))
    return {
        name: pa.array(column, CATALOG_ROWS.schema.field(name).type, mask=is_file)
        for name, column in zip(FRAGMENT_COLUMNS, (*places, *inner), strict=True)
    }


def known_rows(store: Store, snapshot: Snapshot) -> Iterator[KnownRow]:
    """Every row of the snapshot sorted by place, those of one place by id: a merge of its sorted runs."""
    gone, stamps = removed_ids(store, snapshot), restamped_times(store, snapshot)
    runs = sorted({part.run for part in snapshot.parts})
    return heapq.merge(*(_run_rows(store, snapshot, run, gone, stamps) for run in runs))


def _run_rows(store: Store, snapshot: Snapshot, run: int, gone: Ids, stamps: tuple[Ids, Ids]) -> Iterator[KnownRow]:
    for part in snapshot.parts:
        for lo in range(part.lo, part.hi, BLOCK_ROWS) if part.run == run else ():
            hi = min(lo + BLOCK_ROWS, part.hi)
            rows = catalog_rows(store, snapshot, lo, hi)
            times = pc.fill_null(rows["mtime_ns"], 0).to_numpy().copy()
            stamped = _within(stamps[0], lo, hi)
            times[stamps[0][stamped] - lo] = stamps[1][stamped]
            is_live = np.ones(hi - lo, np.bool_)
            is_live[gone[_within(gone, lo, hi)] - lo] = False
            yield from map(KnownRow, _places(rows), range(lo, hi), _states(rows, times), is_live.tolist())


def _states(rows: pa.Table, times: NDArray[np.int64]) -> Iterator[State]:
    """What `state_of` was of each row."""
    sizes, etags = rows["size_bytes"].to_pylist(), pc.fill_null(rows["etag"], "").to_pylist()
    if rows["position"].null_count == rows.num_rows:
        return zip(sizes, etags, repeat(0), repeat(""), repeat(""), repeat(0), times.tolist())
    filled = (("parent_size", 0), ("problem", ""), ("label", ""), ("length", 0))
    inner = (pc.fill_null(rows[name], value).to_pylist() for name, value in filled)
    return zip(sizes, etags, *inner, times.tolist(), strict=True)


def _places(rows: pa.Table) -> Iterator[Place]:
    """What `Listed.place` was of each row."""
    sources, raws = rows["source"].to_pylist(), pc.coalesce(rows["raw_key"], rows["uri"].cast(pa.binary())).to_pylist()
    if rows["position"].null_count == rows.num_rows:
        return zip(sources, raws, repeat(-1), repeat(""))
    names, positions = pc.fill_null(rows["fragment"], "").to_pylist(), pc.fill_null(rows["position"], -1).to_pylist()
    is_escaped = rows["raw_key"].is_valid().to_pylist()
    for at, name in enumerate(names):
        if name and not is_escaped[at]:
            raws[at] = raws[at][: -len(name.encode()) - 1]
    return zip(sources, raws, positions, names, strict=True)


def _within(ids: Ids, lo: int, hi: int) -> slice:
    """Where the ids of [lo, hi) are among sorted ones."""
    return slice(*np.searchsorted(ids, (lo, hi)))
