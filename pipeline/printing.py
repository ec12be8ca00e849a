"""Printing: tables as readable text, JSON lines, CSV and Parquet, to standard output or a file."""

from __future__ import annotations

import csv
import errno
import io
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.cells import cell_len

from pipeline.errors import StorageError, StorageFull, UsageError
from pipeline.storage import StorageConfig, open_store

SUFFIXES = {"json": "json", "jsonl": "json", "ndjson": "json", "csv": "csv", "parquet": "parquet", "txt": "text"}
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
NARROWEST = 16
"""Characters that a cut text keeps at least; a terminal too narrow for that loses columns instead."""


def format_of(output: str | None) -> str:
    """What a file is written as where no flag says it: by the suffix of its name. Raises UsageError for another one:
    it may be that of a file which nobody wants to be written over.
    """
    name, _, suffix = (output or "").rpartition("/")[2].rpartition(".")
    if name and suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--output {output}: want a name that ends in .csv, .json, .parquet or .txt, or one of --csv, --json and "
            "--parquet beside it"
        )
    return SUFFIXES[suffix.lower()] if name else "text"


def as_json(parts: Iterator[pa.Table]) -> Iterator[bytes]:
    """One object per line."""
    for part in parts:
        for row in part.to_pylist():
            yield (json.dumps(row, ensure_ascii=False, default=_hex) + "\n").encode()


def as_csv(parts: Iterator[pa.Table]) -> Iterator[bytes]:
    """CSV with a header, each part as it comes."""
    header = False
    for part in parts:
        text = io.StringIO()
        writer = csv.writer(text)
        if not header:
            writer.writerow(part.column_names)
            header = True
        for row in part.to_pylist():
            writer.writerow([_cell(value) for value in row.values()])
        yield text.getvalue().encode()


def as_parquet(parts: Iterator[pa.Table], output: str | None) -> Iterator[bytes]:
    """One Parquet file of at least one part. Raises UsageError where it would go to a terminal."""
    if output is None and is_terminal():
        raise UsageError("--parquet writes binary data: add --output FILE or redirect standard output")
    sink = _Drain()
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


def write(output: str | None, pieces: Iterator[bytes], storage: StorageConfig) -> None:
    """Writes to a file on any store, or to standard output."""
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


def is_terminal() -> bool:
    """Whether somebody reads standard output as it comes."""
    return sys.stdout is not None and sys.stdout.isatty()


def aligned(rows: list[dict[str, Any]], room: int | None, may_drop: bool = False) -> tuple[list[str], list[str]]:
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
