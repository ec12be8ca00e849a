"""Annotations that a caller holds in Python: a DataFrame, an Arrow table, columns, records or a COCO dict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.sources.addresses import resolved
from pipeline.sources.arrow_list import arrow_rows, checked_columns
from pipeline.sources.coco import coco_of_dict
from pipeline.sources.coco_rows import coco_rows
from pipeline.sources.listed import Origin, Tally, with_problems_told

_WANTED = (
    "wanted a DataFrame, an Arrow table, a dict of columns, a list of records (dicts), or a COCO dict with images, "
    "annotations and categories"
)


def listed_from(value: Any, base: str, tally: Tally, address: str = "annotations") -> Iterator[pa.RecordBatch]:
    """Batches of LISTED with addresses as `addresses.resolve` has them; `row` counts from 0.

    value: a DataFrame of pandas, polars or another library that speaks Arrow (or the DataFrame interchange protocol),
    an Arrow table, batch or reader, a dict of columns, a list of dicts, or a COCO dict. NaN and None of pandas are
    missing values. base: as in `list_kinds.read_annotations`; address: what messages call it. Raises UsageError for
    anything else, at the first batch.
    """
    if isinstance(value, Mapping) and not _is_columns(value):
        origin = Origin(address, base, "annotation", keeps_whole=True)
        rows = coco_rows(coco_of_dict(value, origin), origin, tally)
        yield from resolved(with_problems_told(rows, origin, tally), origin)
        return
    origin = Origin(address, base, "row", keeps_whole=True)
    try:
        reader = _reader(value, address)
        columns = checked_columns(reader.schema, origin)
        yield from resolved(with_problems_told(arrow_rows(reader, columns, origin), origin, tally), origin)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        said = " ".join(str(error).split())
        raise UsageError(
            f"{address}: a column has values of several types, or of one that Arrow has not ({said}): convert it, such "
            "as df['filename'] = df['filename'].astype(str)"
        ) from error


def _is_columns(value: Mapping[Any, Any]) -> bool:
    """Whether a dict is columns, and not COCO: that has images which are dicts."""
    return "images" not in value and "annotations" not in value


def _reader(value: Any, address: str) -> pa.RecordBatchReader:
    if isinstance(value, pa.RecordBatchReader):
        return value
    if isinstance(value, pa.RecordBatch):
        return pa.RecordBatchReader.from_batches(value.schema, [value])
    if not isinstance(value, pa.Table) and hasattr(value, "__arrow_c_stream__"):
        return pa.RecordBatchReader.from_stream(value)
    table = value if isinstance(value, pa.Table) else _table(value, address)
    if table is None:
        raise UsageError(f"{address} is {type(value).__name__} {repr(value)[:40]}; {_WANTED}")
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches())


def _table(value: Any, address: str) -> pa.Table | None:
    if isinstance(value, Mapping):
        return pa.table(_checked(value, address))
    if type(value).__module__.partition(".")[0] == "pandas":
        return pa.Table.from_pandas(value)
    if hasattr(value, "__dataframe__"):
        from pyarrow import interchange

        return interchange.from_dataframe(value)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        records = list(value)
        if records and all(isinstance(record, Mapping) for record in records):
            return pa.Table.from_pylist([_named(record, address) for record in records])
    return None


def _checked(columns: Mapping[Any, Any], address: str) -> dict[str, Any]:
    """The columns of a dict. Raises UsageError for one that is no list of values."""
    found = _named(columns, address)
    for name, values in found.items():
        if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping)):
            raise UsageError(
                f"{address}: column {name} is {type(values).__name__} {repr(values)[:40]}; wanted a list with a value "
                "for each image"
            )
    return found


def _named(values: Mapping[Any, Any], address: str) -> dict[str, Any]:
    wrong = [name for name in values if not isinstance(name, str)]
    if wrong:
        raise UsageError(f"{address}: {wrong[0]!r} is no name of a column; wanted text")
    return dict(values)
