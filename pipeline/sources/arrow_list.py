"""Tables of images or boxes that are Arrow: Parquet files, and tables in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.sources.listed import Origin, Tally
from pipeline.sources.table_columns import Columns, find_columns, plain_names, rows_of

BATCH_ROWS = 65_536
READ_BUFFER = 2**20


def read_parquet(stream: BinaryIO, origin: Origin, tally: Tally) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED, a row per row of a Parquet file (see `table_columns`); `row` counts from 0.

    Raises UsageError for a file that cannot be read, a missing column and one of another type.
    """
    del tally  # nothing is left out
    try:
        # buffered column by column: a row group of a million rows is not held whole
        with pq.ParquetFile(stream, buffer_size=READ_BUFFER, pre_buffer=False) as file:
            columns = checked_columns(file.schema_arrow, origin)
            names = file.schema_arrow.names
            wanted = [name for name, plain in zip(names, plain_names(names), strict=True) if plain in columns.wanted]
            batches = file.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False)
            yield from arrow_rows(batches, columns, origin)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{origin.address}: a Parquet file that cannot be read ({error}): was it cut off? Write it anew"
        ) from error


def checked_columns(schema: pa.Schema, origin: Origin) -> Columns:
    """The columns to read of a table. Raises UsageError for a missing one, and one with values of another kind."""
    names = plain_names(schema.names)
    columns = find_columns(names, origin)
    texts = (columns.address, columns.bucket, columns.etag)
    for name in columns.wanted:
        kind = schema.field(names.index(name)).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if name in texts:
            is_right, wanted = _is_text(kind), "text"
        elif name in (columns.split, columns.label):
            is_right, wanted = _is_text(kind) or _is_number(kind) or pa.types.is_boolean(kind), "text or numbers"
        else:
            is_right, wanted = _is_text(kind) or _is_number(kind), "numbers"
        if not is_right and not pa.types.is_null(kind):
            raise UsageError(f"{origin.address}: column {name} is {kind}; wanted {wanted}: convert or rename it")
    return columns


def arrow_rows(batches: Iterable[pa.RecordBatch], columns: Columns, origin: Origin) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED from batches with the wanted columns. Raises UsageError for text that is not UTF-8."""
    at = 0
    for found in batches:
        whole = found.rename_columns(plain_names(found.schema.names))
        for start in range(0, whole.num_rows, BATCH_ROWS):
            batch = whole.slice(start, BATCH_ROWS)
            values = {name: _plain(batch, name, origin) for name in columns.wanted}
            yield rows_of(columns, values, range(at, at + batch.num_rows), origin)
            at += batch.num_rows


def _plain(batch: pa.RecordBatch, name: str, origin: Origin) -> pa.Array:
    column = batch[name]
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if _is_text(column.type) or pa.types.is_null(column.type):
        column = pc.cast(column, pa.string())
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise UsageError(f"{origin.address}: column {name} has text that is not UTF-8 ({error})") from error
    return column


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
