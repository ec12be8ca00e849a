"""Showing tables: readable text, JSON lines, CSV and Parquet."""

from __future__ import annotations

import csv
import errno
import io
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.cells import cell_len

from pipeline.audit import FINDINGS, Audit, summary_lines
from pipeline.errors import StorageError, StorageFull, UsageError
from pipeline.kernels.leaks import LEAKING
from pipeline.schemas import CHECKS, GROUPING_KINDS
from pipeline.storage import StorageConfig, open_store

NAMES = FINDINGS
TOP = 20
NARROWEST = 16
"""Characters that a cut text keeps at least; a terminal too narrow for that loses columns instead."""
FLAG, WORST, ISSUES, SIZE = "flag", "worst_score", "issues", "size"
"""Columns that are made for showing: whether a row is a finding, and what quality's many columns say."""
WORST_FIRST: dict[str, list[tuple[str, str]]] = {
    "leaks": [("severity", "descending"), ("similarity", "descending")],
    "duplicates": [(FLAG, "descending"), ("similarity", "descending")],
    "groups": [("group_size", "descending"), ("group_id", "ascending")],
    "outliers": [("score", "descending")],
    "labels": [(FLAG, "descending"), ("score", "ascending")],
    "label_conflicts": [(FLAG, "descending"), ("group_id", "ascending")],
    "quality": [(FLAG, "descending"), (WORST, "descending")],
}
READABLE: dict[str, list[str]] = {
    "leaks": ["severity", "kind", "similarity", "uri", "match_uri", "split", "match_split", "label", "match_label"],
    "duplicates": ["kind", "similarity", "uri", "match_uri", "split", "match_split", "group_id"],
    "groups": ["group_id", "group_size", "is_keeper", "uri", "split", "label", "similarity_to_medoid", "keeper_reason"],
    "outliers": ["score", "is_outlier", "percentile", "uri", "label", "nearest_uri", "nearest_similarity"],
    "labels": ["score", "is_label_issue", "uri", "label", "suggested_label", "suggested_confidence"],
    "label_conflicts": ["group_id", "is_certain", "uri", "label", "conflict_uri", "conflict_label", "majority_label"],
    "quality": [WORST, ISSUES, "uri", SIZE, "split"],
    "invalid": ["status", "uri", "message"],
}
FLAGGED = {
    "leaks": f"at severity {LEAKING} or more, which are leaks",
    "duplicates": "duplicates and near-duplicates",
    "outliers": "outliers",
    "labels": "suspect",
    "label_conflicts": "certain",
    "quality": "with an issue",
}
"""What the footer calls the rows that are findings, in the tables that hold others as well."""
COPIES = sorted(kind.value for kind in GROUPING_KINDS)
SUFFIXES = {"json": "json", "jsonl": "json", "ndjson": "json", "csv": "csv", "parquet": "parquet"}
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
        _write(request.output, iter([text.encode() + b"\n"]), audit.root.storage)
        return
    columns = request.columns.split(",") if request.columns else None
    audit.table(request.table, columns, limit=0)  # raises for a column that is not there or only made here
    writers = {"text": _text, "json": _json, "csv": _csv, "parquet": _parquet}
    _write(request.output, writers[request.format](audit, request, columns), audit.root.storage)


def format_of(output: str | None) -> str:
    """What a file is written as where no flag says it: by the suffix of its name."""
    name, _, suffix = (output or "").rpartition("/")[2].rpartition(".")
    return SUFFIXES.get(suffix.lower(), "text") if name else "text"


def status_text(rows: list[dict[str, Any]]) -> str:
    """The stages as a readable table."""
    if not rows:
        return "no stage has run yet"
    shown = [
        {
            "stage": row["stage"],
            "state": row["state"],
            "parts": f"{row['parts'] - row['missing']}/{row['parts']}",
            "missing": row["missing"],
            "before": row["parts_done_before"],
            "failed": len(row["failed"]),
            "items": _of(row["items"], row["items_in_all"]),
            "failed images": f"{row['failed_images']:,}",
            "seconds": f"{row['seconds']:.1f}",
            "cpu s": f"{row['cpu_seconds']:.1f}",
            "items/s": "" if row["items_per_second"] is None else f"{row['items_per_second']:,.0f}",
        }
        for row in rows
    ]
    return "\n".join(_aligned(shown, None)[0])


def _of(done: int, wanted: int) -> str:
    return f"{done:,} of {wanted:,}" if done < wanted else f"{done:,}"


@dataclass(frozen=True)
class _Worst:
    """The worst rows of a table with the columns made for showing, and how many rows and findings there are."""

    table: pa.Table
    rows: int
    flagged: int


def _worst(audit: Audit, name: str, limit: int) -> _Worst:
    """The worst rows: kept while the parts stream by, so that memory holds one part and the rows shown."""
    order = WORST_FIRST.get(name)
    best = _with_made(audit.table(name, limit=0), name)
    rows = flagged = 0
    for part in audit.batches(name):
        made = _with_made(part, name)
        rows += made.num_rows
        flagged += pc.sum(made[FLAG]).as_py() or 0
        best = pa.concat_tables([best, made])
        best = best.take(pc.sort_indices(best, sort_keys=order)[:limit]) if order else best.slice(0, limit)
    return _Worst(best, rows, flagged)


def _with_made(part: pa.Table, name: str) -> pa.Table:
    """A part with FLAG, and with the worst score, the issues by name and the size where it is quality."""
    if name == "quality":
        scores = [part[f"{check}_score"] for check in CHECKS]
        found = [pc.if_else(part[f"is_{check}_issue"], f"{check}, ", "") for check in CHECKS]
        part = part.append_column(WORST, pc.max_element_wise(*scores))
        part = part.append_column(ISSUES, pc.utf8_rtrim(pc.binary_join_element_wise(*found, ""), ", "))
        sides = [pc.cast(part[side], pa.string()) for side in ("width", "height")]
        part = part.append_column(SIZE, pc.binary_join_element_wise(*sides, "x"))
        return part.append_column(FLAG, pc.not_equal(part[ISSUES], ""))
    if name == "leaks":
        return part.append_column(FLAG, pc.greater_equal(part["severity"], LEAKING))
    if name == "duplicates":
        return part.append_column(FLAG, pc.is_in(part["kind"], pa.array(COPIES)))
    of = {"outliers": "is_outlier", "labels": "is_label_issue", "label_conflicts": "is_certain"}
    flags = part[of[name]] if name in of else pa.array([False] * part.num_rows, pa.bool_())
    return part.append_column(FLAG, flags)


def audit_columns(table: pa.Table, columns: list[str], name: str) -> pa.Table:
    """Some columns. Raises UsageError that lists those there are."""
    unknown = [column for column in columns if column not in table.column_names]
    if unknown:
        raise UsageError(f"table {name} has no column {', '.join(unknown)}; it has: {', '.join(table.column_names)}")
    return table.select(columns)


def _rows(audit: Audit, request: Request, columns: list[str] | None) -> Iterator[pa.Table]:
    if request.top is not None:
        worst = _worst(audit, request.table, request.top).table
        yield audit_columns(worst, columns or audit.table(request.table, limit=0).column_names, request.table)
    else:
        yield audit.table(request.table, columns, limit=0)
        yield from audit.batches(request.table, columns)


def _text(audit: Audit, request: Request, columns: list[str] | None) -> Iterator[bytes]:
    worst = _worst(audit, request.table, request.top or TOP)
    if not worst.rows:
        yield f"no rows in {request.table}{_why_none(audit, request.table)}\n".encode()
        return
    listed = columns or READABLE.get(request.table) or audit.table(request.table, limit=0).column_names
    rows = [_said_once(row) for row in audit_columns(worst.table, listed, request.table).to_pylist()]
    room = shutil.get_terminal_size().columns if request.output is None and _is_terminal() else None
    lines, left_out = _aligned(rows, room, may_drop=columns is None)
    yield "\n".join([*lines, *_footer(request.table, worst, left_out), ""]).encode()


def _footer(name: str, worst: _Worst, left_out: list[str]) -> list[str]:
    """What the rows above are of; without it nobody sees that there are more."""
    shown = worst.table.num_rows
    cut = f"{shown:,} of {worst.rows:,} rows" if shown < worst.rows else f"{shown:,} row{'s' if shown > 1 else ''}"
    parts = [cut, *([f"{worst.flagged:,} {FLAGGED[name]}"] if name in FLAGGED else [])]
    parts += ["--top N or --csv for all"] if shown < worst.rows else []
    parts += [f"no room for {', '.join(left_out)}"] if left_out else []
    return ["; ".join(parts)]


def _why_none(audit: Audit, name: str) -> str:
    splits, labels = (audit.summary()["images"][kind] for kind in ("splits", "labels"))
    if name.startswith("label") and not labels:
        return ": no labels are known. Name them by folders such as cat/ and dog/, or with --labels or --pattern"
    if name != "leaks" or len(splits) > 1:
        return ""
    known = f"only the split {next(iter(splits))} is known" if splits else "no splits are known"
    return f": {known}. Name one with --test, or by folders such as train/ and test/"


def _said_once(row: dict[str, Any]) -> dict[str, Any]:
    """A message that names the file says so after the column uri: what follows the name stays."""
    if row.get("message") and row.get("uri"):
        before, _, after = row["message"].partition(f"{row['uri']}: ")
        return {**row, "message": after or before}
    return row


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
    if request.output is None and _is_terminal():
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


def _write(output: str | None, pieces: Iterator[bytes], storage: StorageConfig) -> None:
    if output is None:
        write_out(pieces)
        return
    folder, slash, name = output.rpartition("/")
    open_store(folder or slash or ".", storage).put_pieces(name, pieces)


class ReaderGone(Exception):
    """The other end of standard output was closed."""


def write_out(pieces: Iterable[bytes]) -> None:
    """Writes to standard output, all of it before this returns.

    Raises ReaderGone where nobody reads on (`| head`), StorageFull or StorageError where it takes no more.
    """
    for piece in pieces if sys.stdout is not None else ():  # None: it was closed before the start (`>&-`)
        _write_piece(piece)


def _write_piece(piece: bytes) -> None:
    # past the buffer, of which Python would write the rest at its end, and complain with a code of its own
    out, rest = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer), memoryview(piece)
    try:
        while rest:
            rest = rest[out.write(rest) or 0 :]
    except BrokenPipeError as error:
        raise ReaderGone from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        kind, advice = (StorageFull, "Free space there") if full else (StorageError, "Check where it leads")
        raise kind(f"write to standard output: {error.strerror}. {advice}, then run the command again") from error


def _cell(value: Any) -> Any:
    """A spreadsheet takes a cell that starts like a formula as one: such text gets a leading quote."""
    if isinstance(value, str) and value.startswith(FORMULA):
        return "'" + value
    return _hex(value) if isinstance(value, bytes) else value


def _hex(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _aligned(rows: list[dict[str, Any]], room: int | None, may_drop: bool = False) -> tuple[list[str], list[str]]:
    """The rows as lines of at most `room` characters (None: whatever they take), and the columns left out for that."""
    names = list(rows[0])
    cells = [[_shown(row[name]) for name in names] for row in rows]
    widths = [max(cell_len(text) for text in (name, *(row[at] for row in cells))) for at, name in enumerate(names)]
    kept = len(names)
    if room is not None:
        is_text = [any(isinstance(row[name], str) for row in rows) for name in names]
        least = [
            min(width, max(len(name), NARROWEST)) if text else width
            for name, width, text in zip(names, widths, is_text, strict=True)
        ]
        while may_drop and kept > 1 and sum(least[:kept]) + 2 * (kept - 1) > room:
            kept -= 1
        spaces = 2 * (kept - 1)
        others = [width if name == "message" else low for name, width, low in zip(names, widths, least, strict=True)]
        widths = _fitted(widths[:kept], others[:kept], room - spaces)  # what a message says goes before all names
        widths = _fitted(widths, least[:kept], room - spaces)
    right = [all(isinstance(row[name], (int, float)) or row[name] is None for row in rows) for name in names]
    lines = []
    for line in [names, ["-" * width for width in widths], *cells]:
        each = zip(line, widths, names, right, strict=False)
        lines.append("  ".join(_padded(_cut(cell, width, name), width, r) for cell, width, name, r in each).rstrip())
    return lines, names[kept:]


def _fitted(widths: list[int], least: list[int], room: int) -> list[int]:
    """Widths of columns that together take `room`: the widest give first, none goes below its least."""
    cap = max(widths)
    while cap > 1 and sum(max(min(width, cap), low) for width, low in zip(widths, least, strict=True)) > room:
        cap -= 1
    return [max(min(width, cap), low) for width, low in zip(widths, least, strict=True)]


def _padded(cell: str, width: int, right: bool) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


def _cut(text: str, width: int, column: str) -> str:
    """A text of at most this width on screen. A uri loses its middle, for its end tells files apart; others the end."""
    if cell_len(text) <= width:
        return text
    head, tail = "", ""
    for char in text:
        if cell_len(head + char) > ((width - 1) // 3 if column.endswith("uri") else width - 1):
            break
        head += char
    for char in reversed(text):
        if cell_len(char + tail) > width - 1 - cell_len(head):
            break
        tail = char + tail
    return f"{head}…{tail}"


def _shown(value: Any) -> str:
    """A value on one line: control characters escaped."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in _hex(value))
