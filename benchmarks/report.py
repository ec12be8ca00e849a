"""Owed against measured: one table for the reader, one JSON for the record."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import about_machine, about_versions


@dataclass(frozen=True)
class Owed:
    """One line of the table: what is owed, what was measured; `ok` None where this run could not tell."""

    what: str
    owed: str
    measured: str
    ok: bool | None


def at_most(what: str, limit: float, value: float | None, text: str = "{:.3g}") -> Owed:
    """A line that holds where the value is at most the limit; None = not measured."""
    return _against(what, "at most", limit, value, text, value is not None and value <= limit)


def at_least(what: str, limit: float, value: float | None, text: str = "{:.3f}") -> Owed:
    """A line that holds where the value is at least the limit; None = not measured."""
    return _against(what, "at least", limit, value, text, value is not None and value >= limit)


def _against(what: str, how: str, limit: float, value: float | None, text: str, holds: bool) -> Owed:
    if value is None:
        return Owed(what, f"{how} {text.format(limit)}", "not measured", None)
    return Owed(what, f"{how} {text.format(limit)}", text.format(value), bool(holds))


def owed_table(rows: Sequence[Owed]) -> str:
    """The lines as an aligned table."""
    words = {True: "yes", False: "NO", None: "-"}
    cells = [("what", "owed", "measured", "ok"), *((r.what, r.owed, r.measured, words[r.ok]) for r in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def begin(benchmark: str) -> dict[str, Any]:
    """The head of a document: which benchmark, when, how it was called, on what."""
    return {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", f"benchmarks/{benchmark}.py", *map(_without_place, sys.argv[1:])]),
        "machine": about_machine(),
        "versions": about_versions(),
    }


def _without_place(word: str) -> str:
    """A path by its name alone: where it lies on this machine says nothing to another."""
    return Path(word).name if "/" in word else word


def finish(document: dict[str, Any], rows: Sequence[Owed], path: Path | None) -> None:
    """Prints the table and writes the document with it."""
    document["owed"] = [asdict(row) for row in rows]
    sys.stdout.write(f"\n{owed_table(rows)}\n")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, default=float) + "\n")
        sys.stdout.write(f"\nwritten to {path}\n")


def say(text: str) -> None:
    """One line of progress on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
