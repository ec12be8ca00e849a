"""Annotations in any form as one plain table: filename, box, split and label."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.sources.box_columns import KINDS
from pipeline.sources.fragments import table_name
from pipeline.sources.list_kinds import HEAD_BYTES, Kind, kind_of, read_annotations
from pipeline.sources.list_warnings import list_warnings
from pipeline.sources.listed import LISTED, Tally
from pipeline.sources.repeats import Repeats
from pipeline.sources.sorted_list import sorted_batches
from pipeline.sources.tabular import BOX, FILENAME, LABEL, SPLIT


def normal_table(data: bytes, address: str, base: str, said: list[str]) -> bytes:
    """Annotations with boxes, and COCO, as Parquet of the columns filename, #box, split and label; other tables as they
    are, for `tabular.read_label_table`.

    base: uri of the folder of the table; said: what is to be said of it is added. Raises UsageError, as readers of
    lists do.
    """
    if not _is_annotated(data, address):
        return data
    tally = Tally()
    table, repeats = plain_table(read_annotations(io.BytesIO(data), address, base, tally), address)
    said += list_warnings(address, tally, repeats)
    return table


def plain_table(batches: Iterable[pa.RecordBatch], address: str) -> tuple[bytes, Repeats]:
    """Batches of LISTED as such a Parquet, and what was dropped: of rows that name an image or box again the first one
    counts.
    """
    repeats = Repeats()
    found = pa.Table.from_batches(sorted_batches(batches, repeats), LISTED)
    if not found.num_rows:
        raise UsageError(f"{address} annotates no image: it has no rows")
    names = [table_name(name) for name in found["address"].to_pylist()]
    columns: dict[str, pa.ChunkedArray | pa.Array] = {FILENAME: pa.array(names, pa.string())}
    columns |= {name: found[name] for name in (SPLIT, LABEL) if found[name].null_count < found.num_rows}
    if found["fragment"].null_count < found.num_rows:
        columns[BOX] = found["fragment"]
    if len(columns) == 1:
        raise UsageError(f"{address} gives no image a label, a split or a box")
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue(), repeats


def _is_annotated(data: bytes, address: str) -> bool:
    """Whether it is COCO, or a table with all columns of a box."""
    if data[:4] == b"PAR1":
        try:
            names = pq.read_schema(io.BytesIO(data)).names
        except (pa.ArrowException, OSError):
            return False  # whose reader says what is wrong
    elif not data.strip() or kind_of(address, data[:HEAD_BYTES]) is Kind.COCO:
        return bool(data.strip())
    else:
        header = data[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].decode("utf-8", "replace")
        names = [name.strip().strip('"') for name in header.split(",")]
    return any(set(kind) <= set(names) for kind in KINDS.values())
