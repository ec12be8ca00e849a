"""CSV tables of images or boxes, row by row: flat memory, and the line of whatever is wrong."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.sources.line_blocks import Readable, line_blocks, unpacked
from pipeline.sources.listed import Origin, Tally
from pipeline.sources.table_columns import Columns, find_columns, rows_of

BATCH_ROWS, BATCH_BYTES = 65_536, 2**24


def read_csv(stream: BinaryIO, origin: Origin, tally: Tally) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED, a row per row of a CSV with a header (see `table_columns`); `row` is its first line, from 1.

    UTF-8, commas, `"` around values, doubled inside; only an address may have bytes that are not UTF-8. May be gzip.
    Blank lines are left out. Raises UsageError for a missing column, a row with more or fewer values than the header,
    and a quote that is not closed, with the line.
    """
    rows = _Rows(unpacked(stream, origin), origin)
    first = next(iter(rows), None)
    if first is None:
        raise UsageError(f"{origin.address} is empty; wanted a header, such as filename,label")
    header = [name.strip() for name in first[1]]
    columns = find_columns(header, origin)
    places = {name: header.index(name) for name in columns.wanted}
    yield from csv_rows(rows, columns, places, len(header), tally)


class _Rows:
    """The rows of a CSV, each with its first line."""

    def __init__(self, stream: Readable, origin: Origin) -> None:
        self.origin, self.read = origin, 0
        self._reader = csv.reader(self._lines(stream), strict=True)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        reader, begun = self._reader, self._reader.line_num + 1
        try:
            for row in reader:
                yield begun, row
                begun = reader.line_num + 1
        except csv.Error as error:
            raise UsageError(
                f"{self.origin.at(begun)}: {error}: a quote too many or too few in the row that begins here? Values "
                'with commas, quotes or line ends stand in "...", with "" for each quote inside'
            ) from error

    def _lines(self, stream: Readable) -> Iterator[str]:
        for _, text in line_blocks(stream, self.origin):
            self.read += len(text)
            yield from io.StringIO(text, newline="\n")


def csv_rows(
    rows: _Rows, columns: Columns, places: dict[str, int], width: int, tally: Tally
) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED from rows of `width` values, of which `places` says where each wanted column is."""
    origin = rows.origin
    held: list[list[str]] = []
    numbers: list[int] = []
    since = rows.read
    for number, row in rows:
        if len(row) != width:
            if not row:
                tally.add("blank lines", 1, origin.at(number))
                continue
            raise UsageError(f"{origin.at(number)} has {len(row)} values; wanted {width}, as in the header")
        held.append(row)
        numbers.append(number)
        if len(held) >= BATCH_ROWS or rows.read - since >= BATCH_BYTES:
            yield _batch(held, columns, places, numbers, origin)
            held, numbers, since = [], [], rows.read
    if held:
        yield _batch(held, columns, places, numbers, origin)


def _batch(
    held: list[list[str]], columns: Columns, places: dict[str, int], numbers: list[int], origin: Origin
) -> pa.RecordBatch:
    values = {name: [row[place] for row in held] for name, place in places.items()}
    return rows_of(columns, values, numbers, origin)
