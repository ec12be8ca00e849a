"""The data files of an S3 Inventory, in CSV, Parquet or ORC, as columns of the same names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UsageError
from pipeline.sources.csv_list import CsvRows
from pipeline.sources.line_blocks import Unpacked
from pipeline.sources.listed import Origin, Tally, text_column

WANTED = ("key", "size", "etag", "lastmodifieddate", "islatest", "isdeletemarker")
FORMATS = ("csv", "parquet", "orc")
BATCH_ROWS, READ_BUFFER, HASHED_AT_ONCE = 65_536, 2**20, 2**23


class DataRows(NamedTuple):
    """Some rows of a data file. keys: as on S3; arrays: the other columns of WANTED; numbers: of the rows."""

    keys: list[str]
    arrays: Mapping[str, pa.Array]
    numbers: Sequence[int]


def canonical(name: str) -> str:
    """A column's name as all formats share it: `IsLatest` and `is_latest` are `islatest`."""
    return name.strip().lower().replace("_", "")


def require_same(stream: BinaryIO, size: int, md5: str, origin: Origin) -> None:
    """Raises UsageError unless the stream has these bytes; it is at its start afterwards."""
    digest, total = hashlib.md5(usedforsecurity=False), 0
    while chunk := stream.read(HASHED_AT_ONCE):
        digest.update(chunk)
        total += len(chunk)
    if total != size or digest.hexdigest() != md5:
        raise UsageError(
            f"{origin.address}: {total:,} bytes with MD5 {digest.hexdigest()}; the manifest says {size:,} and {md5}: "
            "was it cut off, or is it of another day? Copy it again"
        )
    stream.seek(0)


def data_rows(kind: str, stream: BinaryIO, columns: tuple[str, ...], origin: Origin) -> Iterator[DataRows]:
    """The rows of a data file of a kind of FORMATS, some at a time; columns are those of a CSV.

    Raises UsageError for a file that cannot be read.
    """
    if kind == "csv":
        yield from _csv_rows(stream, columns, origin)
        return
    try:
        yield from (_parquet_rows if kind == "parquet" else _orc_rows)(stream, origin)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{origin.address}: {kind} that cannot be read ({error}): copy it again") from error


def _csv_rows(stream: BinaryIO, columns: tuple[str, ...], origin: Origin) -> Iterator[DataRows]:
    """CSV in gzip, without a header; its keys are encoded as in a query: `a+b%2B` is `a b+`."""
    rows = CsvRows(Unpacked(stream, origin), origin)
    places = {name: columns.index(name) for name in WANTED if name in columns}
    for numbers, held in rows.batches(len(columns), Tally()):
        keys = [unquote_plus(row[places["key"]], errors="surrogateescape") for row in held]
        texts = {name: [row[at] for row in held] for name, at in places.items() if name != "key"}
        arrays = {name: text_column(values, name, numbers, origin) for name, values in texts.items()}
        yield DataRows(keys, arrays, numbers)


def _parquet_rows(stream: BinaryIO, origin: Origin) -> Iterator[DataRows]:
    with pq.ParquetFile(stream, buffer_size=READ_BUFFER, pre_buffer=False) as file:
        wanted = _wanted(file.schema_arrow, origin)
        yield from _arrow_rows(file.iter_batches(BATCH_ROWS, columns=list(wanted.values()), use_threads=False), wanted)


def _orc_rows(stream: BinaryIO, origin: Origin) -> Iterator[DataRows]:
    from pyarrow import orc

    file = orc.ORCFile(stream)
    wanted = _wanted(file.schema, origin)
    stripes = (file.read_stripe(number, columns=list(wanted.values())) for number in range(file.nstripes))
    yield from _arrow_rows(stripes, wanted)


def _wanted(schema: pa.Schema, origin: Origin) -> dict[str, str]:
    """The file's own names of the columns of WANTED."""
    found = {canonical(name): name for name in schema.names if canonical(name) in WANTED}
    if "key" not in found:
        raise UsageError(f"{origin.address} has the columns {', '.join(schema.names)}; wanted a key of text")
    kind = schema.field(found["key"]).type
    if not _is_text(_decoded(kind)):
        raise UsageError(f"{origin.address} has a column {found['key']} of {kind}; wanted a key of text")
    nested = [name for name in found.values() if pa.types.is_nested(schema.field(name).type)]
    if nested:
        raise UsageError(f"{origin.address}: column {nested[0]} is {schema.field(nested[0]).type}; wanted plain values")
    return found


def _arrow_rows(batches: Iterator[pa.RecordBatch], wanted: Mapping[str, str]) -> Iterator[DataRows]:
    at = 0
    for whole in batches:
        for start in range(0, whole.num_rows, BATCH_ROWS):
            batch = whole.slice(start, BATCH_ROWS)
            batch.validate(full=True)
            arrays = {name: _plain(batch[own]) for name, own in wanted.items()}
            keys = arrays.pop("key").to_pylist()
            if None in keys:
                raise pa.ArrowInvalid(f"row {at + keys.index(None)} has no key")
            yield DataRows(keys, arrays, range(at, at + len(keys)))
            at += len(keys)


def _plain(column: pa.Array) -> pa.Array:
    """The column without a dictionary, text of any type as strings. Raises ArrowInvalid for text that is not UTF-8."""
    kind = _decoded(column.type)
    return pc.cast(column, pa.string() if _is_text(kind) else kind)


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    """Whether it is text, or bytes that may be: pandas writes large strings, others text that is not marked as such."""
    types = pa.types
    is_string = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(is_string or types.is_binary(kind) or types.is_large_binary(kind))
