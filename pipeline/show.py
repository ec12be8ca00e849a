"""Showing tables: readable text, JSON lines, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.audit import FINDINGS, Audit, summary_lines
from pipeline.errors import UsageError
from pipeline.storage import open_store

NAMES = FINDINGS
TOP = 20
WIDTH = 48
WORST_FIRST: dict[str, list[tuple[str, str]]] = {
    "leaks": [("severity", "descending"), ("similarity", "descending")],
    "duplicates": [("similarity", "descending")],
    "groups": [("group_size", "descending"), ("group_id", "ascending")],
    "outliers": [("score", "descending")],
    "labels": [("score", "ascending")],
    "quality": [("blurry_score", "descending")],
}
READABLE: dict[str, list[str]] = {
    "leaks": ["severity", "kind", "similarity", "uri", "split", "label", "match_uri", "match_split", "match_label"],
    "duplicates": ["kind", "similarity", "uri", "match_uri", "split", "match_split", "group_id"],
    "groups": ["group_id", "group_size", "is_keeper", "uri", "split", "label", "similarity_to_medoid", "keeper_reason"],
    "outliers": ["score", "is_outlier", "percentile", "uri", "label", "nearest_uri", "nearest_similarity"],
    "labels": ["score", "is_label_issue", "uri", "label", "suggested_label", "suggested_confidence"],
}
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class Request:
    """What to show: table, rows (None = 20 as text, all otherwise), columns, format, file."""

    table: str
    top: int | None
    columns: str | None
    format: str
    output: str | None


def show(audit: Audit, request: Request) -> None:
    """Writes a table to standard output or a file."""
    if request.top is not None and request.top < 1:
        raise UsageError(f"--top {request.top}: want at least 1")
    if request.table == "summary":
        if request.format not in ("text", "json"):
            raise UsageError(f"--{request.format}: the summary is no table; take --json, or name a table")
        text = (
            json.dumps(audit.summary(), indent=1)
            if request.format == "json"
            else "\n".join(summary_lines(audit.summary()))
        )
        _write(request.output, iter([text.encode() + b"\n"]))
        return
    columns = request.columns.split(",") if request.columns else None
    writers = {"text": _text, "json": _json, "csv": _csv, "parquet": _parquet}
    _write(request.output, writers[request.format](audit, request, columns))


def status_text(rows: list[dict[str, Any]]) -> str:
    """The stages as a readable table."""
    shown = [
        {
            "stage": row["stage"],
            "state": row["state"],
            "parts": f"{row['parts'] - row['missing']}/{row['parts']}",
            "missing": row["missing"],
            "before": row["parts_done_before"],
            "failed": len(row["failed"]),
            "items": f"{row['items']:,}",
            "seconds": f"{row['seconds']:.1f}",
            "cpu s": f"{row['cpu_seconds']:.1f}",
            "items/s": "" if row["items_per_second"] is None else f"{row['items_per_second']:,.0f}",
        }
        for row in rows
    ]
    return "\n".join(_aligned(shown))


def _top(audit: Audit, request: Request, columns: list[str] | None, limit: int) -> pa.Table:
    """The worst rows: kept while the parts stream by, so that memory holds one part and the rows shown."""
    order = [
        key for key in WORST_FIRST.get(request.table, []) if key[0] in audit.table(request.table, limit=0).column_names
    ]
    best: pa.Table | None = None
    for part in audit.batches(request.table):
        joined = part if best is None else pa.concat_tables([best, part])
        best = joined.take(pc.sort_indices(joined, sort_keys=order)[:limit]) if order else joined.slice(0, limit)
    found = audit.table(request.table, limit=0) if best is None else best
    return found if columns is None else audit_columns(found, columns, request.table)


def audit_columns(table: pa.Table, columns: list[str], name: str) -> pa.Table:
    """Some columns. Raises UsageError that lists those there are."""
    unknown = [column for column in columns if column not in table.column_names]
    if unknown:
        raise UsageError(f"table {name} has no column {', '.join(unknown)}; it has: {', '.join(table.column_names)}")
    return table.select(columns)


def _rows(audit: Audit, request: Request, columns: list[str] | None) -> Iterator[pa.Table]:
    if request.top is not None:
        yield _top(audit, request, columns, request.top)
    else:
        yield audit.table(request.table, columns, limit=0)
        yield from audit.batches(request.table, columns)


def _text(audit: Audit, request: Request, columns: list[str] | None) -> Iterator[bytes]:
    table = _top(audit, request, columns or READABLE.get(request.table), request.top or TOP)
    lines = _aligned(table.to_pylist()) if table.num_rows else [f"no rows in {request.table}"]
    yield ("\n".join(lines) + "\n").encode()


def _json(audit: Audit, request: Request, columns: list[str] | None) -> Iterator[bytes]:
    for part in _rows(audit, request, columns):
        for row in part.to_pylist():
            yield (json.dumps(row, ensure_ascii=False, default=_hex) + "\n").encode()


def _csv(audit: Audit, request: Request, columns: list[str] | None) -> Iterator[bytes]:
    header = False
    for part in _rows(audit, request, columns):
        text = io.StringIO()
        writer = csv.writer(text)
        if not header:
            writer.writerow(part.column_names)
            header = True
        for row in part.to_pylist():
            writer.writerow([_cell(value) for value in row.values()])
        yield text.getvalue().encode()


def _parquet(audit: Audit, request: Request, columns: list[str] | None) -> Iterator[bytes]:
    if request.output is None and sys.stdout.isatty():
        raise UsageError("--parquet writes binary data: add --output FILE or redirect standard output")
    sink = _Drain()
    parts = _rows(audit, request, columns)
    first = next(parts)
    with pq.ParquetWriter(sink, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for part in parts:
            writer.write_table(part.cast(first.schema))
            yield sink.drained()
    yield sink.drained()


class _Drain(io.RawIOBase):
    """Holds what was written since it was last drained."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._held.append(bytes(data))
        return len(self._held[-1])

    def drained(self) -> bytes:
        data = b"".join(self._held)
        self._held.clear()
        return data


def _write(output: str | None, pieces: Iterator[bytes]) -> None:
    if output is None:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    folder, slash, name = output.rpartition("/")
    open_store(folder or slash or ".").put_pieces(name, pieces)


def _cell(value: Any) -> Any:
    """A spreadsheet takes a cell that starts like a formula as one: such text gets a leading quote."""
    if isinstance(value, str) and value.startswith(FORMULA):
        return "'" + value
    return _hex(value) if isinstance(value, bytes) else value


def _hex(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _aligned(rows: list[dict[str, Any]]) -> list[str]:
    names = list(rows[0])
    cells = [[_shown(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(row[at]) for row in cells)) for at, name in enumerate(names)]
    right = [all(isinstance(row[name], (int, float)) or row[name] is None for row in rows) for name in names]
    lines = [names, ["-" * width for width in widths], *cells]
    return [
        "  ".join(_padded(cell, width, r) for cell, width, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    ]


def _padded(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)


def _shown(value: Any) -> str:
    """A value on one line: control characters escaped, long names cut in the middle."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _hex(value))
    return text if len(text) <= WIDTH else f"{text[: WIDTH // 2 - 1]}…{text[-WIDTH // 2 :]}"
