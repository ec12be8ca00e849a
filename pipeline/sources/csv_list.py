"""CSV tables of images or boxes, row by row: flat memory, and the line of whatever is wrong."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.sources.line_blocks import Readable, line_blocks, unpacked
from pipeline.sources.listed import BLANK, Origin, Tally
from pipeline.sources.table_columns import find_columns, plain_names, rows_of

BATCH_ROWS, BATCH_BYTES = 16_384, 2**24


def read_csv(stream: BinaryIO, origin: Origin, tally: Tally) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED, a row per row of a CSV with a header (see `table_columns`); `row` is its first line, from 1.

    UTF-8, commas, `"` around values, doubled inside; only an address may have bytes that are not UTF-8. May be gzip.
    Blank lines are left out. Raises UsageError for a missing column, a row with more or fewer values than the header,
    and a quote that is not closed, with the line.
    """
    rows = CsvRows(unpacked(stream, origin), origin)
    header = _header(rows)
    columns = find_columns(header, origin)
    places = {name: header.index(name) for name in columns.wanted}
    for numbers, held in rows.batches(len(header), tally):
        yield rows_of(columns, {name: [row[at] for row in held] for name, at in places.items()}, numbers, origin)


def csv_header(stream: BinaryIO, origin: Origin) -> list[str]:
    """The columns of a CSV (`table_columns.plain_names`). Raises UsageError for an empty one."""
    return _header(CsvRows(unpacked(stream, origin), origin))


class CsvRows:
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

    def batches(self, width: int, tally: Tally) -> Iterator[tuple[list[int], list[list[str]]]]:
        """First lines and values of some rows at a time. Raises UsageError for a row of more or fewer than `width`."""
        numbers: list[int] = []
        held: list[list[str]] = []
        since = self.read
        for number, row in self:
            if not row:
                tally.add(BLANK, 1, self.origin.at(number))
                continue
            if len(row) != width:
                raise UsageError(f"{self.origin.at(number)} has {len(row)} values; wanted {width}, as its header says")
            held.append(row)
            numbers.append(number)
            if len(held) >= BATCH_ROWS or self.read - since >= BATCH_BYTES:
                yield numbers, held
                numbers, held, since = [], [], self.read
        if held:
            yield numbers, held

    def _lines(self, stream: Readable) -> Iterator[str]:
        for _, text in line_blocks(stream, self.origin):
            self.read += len(text)
            yield from io.StringIO(text, newline="\n")


def _header(rows: CsvRows) -> list[str]:
    first = next(iter(rows), None)
    if first is None:
        raise UsageError(f"{rows.origin.address} is empty; wanted a header, such as filename,label")
    return plain_names([name.strip() for name in first[1]])
