"""Annotations in any form as one plain table: filename, box, split and label."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.sources.arrow_list import read_parquet
from pipeline.sources.box_columns import KINDS
from pipeline.sources.csv_list import csv_header, read_csv
from pipeline.sources.fragments import table_name
from pipeline.sources.list_kinds import HEAD_BYTES, Kind, kind_of, read_annotations
from pipeline.sources.list_warnings import list_warnings
from pipeline.sources.listed import LISTED, Origin, Tally
from pipeline.sources.repeats import Repeats
from pipeline.sources.sorted_list import sorted_batches
from pipeline.sources.table_columns import plain_names, several
from pipeline.sources.tabular import BOX, FILENAME, LABEL, SPLIT


def normal_table(data: bytes, address: str, base: str, said: list[str]) -> bytes:
    """A table of splits, labels or boxes, or COCO, as Parquet of the columns filename, #box, split and label, for
    `tabular.read_label_table`: each image or box once.

    The names of images without boxes stay as they are written, and in the order of the table. base: uri of the folder
    of the table; said: what is to be said of it is added. Raises UsageError, as readers of lists do.
    """
    columns = _columns(data, address, base)
    if columns is not None and {FILENAME, BOX} <= set(columns):
        return data  # what this made
    tally = Tally()
    if columns is None or any(set(kind) <= set(columns) for kind in KINDS.values()):
        table, repeats = plain_table(read_annotations(io.BytesIO(data), address, base, tally), address)
    else:
        table, repeats = _label_table(data, _origin(data, address, base), columns, tally)
    said += list_warnings(address, tally, repeats)
    return table


def plain_table(batches: Iterable[pa.RecordBatch], address: str) -> tuple[bytes, Repeats]:
    """Batches of LISTED as such a Parquet, and what was dropped: of rows that name an image or box again the first one
    counts.
    """
    found, repeats = _first_rows(batches)
    if not found.num_rows:
        raise UsageError(f"{address} annotates no image: it has no rows")
    columns = {name: found[name] for name in (SPLIT, LABEL) if found[name].null_count < found.num_rows}
    if found["fragment"].null_count < found.num_rows:
        columns[BOX] = found["fragment"]
    if not columns:
        raise UsageError(f"{address} gives no image a label, a split or a box")
    return _written({FILENAME: found["address"], **columns}), repeats


def _label_table(data: bytes, origin: Origin, names: list[str], tally: Tally) -> tuple[bytes, Repeats]:
    read = read_parquet if origin.unit == "row" else read_csv
    found, repeats = _first_rows(read(io.BytesIO(data), origin, tally))
    if SPLIT not in names and LABEL not in names:
        raise UsageError(
            f"{origin.address} has the columns {several(names)}; wanted at least one of {SPLIT} and {LABEL}, or a box: "
            "rename its columns"
        )
    found = found.sort_by("row")
    return _written({FILENAME: found["address"], SPLIT: found[SPLIT], LABEL: found[LABEL]}), repeats


def _first_rows(batches: Iterable[pa.RecordBatch]) -> tuple[pa.Table, Repeats]:
    repeats = Repeats()
    return pa.Table.from_batches(sorted_batches(_as_asked(batches), repeats), LISTED), repeats


def _as_asked(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED with the names that images are asked for, so that two spellings of one are found."""
    for batch in batches:
        names = [table_name(name.removeprefix("./")) for name in batch["address"].to_pylist()]
        yield batch.set_column(0, LISTED.field("address"), pa.array(names, pa.string()))


def _written(columns: Mapping[str, pa.ChunkedArray]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


def _columns(data: bytes, address: str, base: str) -> list[str] | None:
    """The columns of a table; None for COCO, and none for a Parquet whose reader says what is wrong."""
    if data[:4] == b"PAR1":
        try:
            return plain_names(pq.read_schema(io.BytesIO(data)).names)
        except (pa.ArrowException, OSError):
            return []
    if data.strip() and kind_of(address, data[:HEAD_BYTES]) is Kind.COCO:
        return None
    return csv_header(io.BytesIO(data), Origin(address, base))


def _origin(data: bytes, address: str, base: str) -> Origin:
    return Origin(address, base, "row" if data[:4] == b"PAR1" else "line")
