"""Showing tables: readable text, JSON lines, CSV and Parquet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit import FINDINGS, Audit, summary_lines
from pipeline.errors import UsageError
from pipeline.kernels.leaks import LEAKING
from pipeline.printing import aligned, as_csv, as_json, as_parquet, is_terminal, write
from pipeline.schemas import CHECKS, GROUPING_KINDS

NAMES = FINDINGS
CROPS = {"crops": False, "rotated_crops": True}
"""Boxes as fastdup lists them, and whether these are rotated: what else can be shown."""
TOP = 20
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
    "videos": [("share", "descending"), ("shared_frames", "descending")],
}
READABLE: dict[str, list[str]] = {
    "leaks": ["severity", "kind", "similarity", "uri", "match_uri", "split", "match_split", "label", "match_label"],
    "duplicates": ["kind", "similarity", "uri", "match_uri", "split", "match_split", "group_id"],
    "groups": ["group_id", "group_size", "is_keeper", "uri", "split", "label", "similarity_to_medoid", "keeper_reason"],
    "outliers": ["score", "is_outlier", "percentile", "uri", "label", "nearest_uri", "nearest_similarity"],
    "labels": ["score", "is_label_issue", "uri", "label", "suggested_label", "suggested_confidence"],
    "label_conflicts": ["group_id", "is_certain", "uri", "label", "conflict_uri", "conflict_label", "majority_label"],
    "quality": [WORST, ISSUES, "uri", SIZE, "split"],
    "videos": ["share", "shared_frames", "frame_count", "video", "match_video", "offset", "split", "match_split"],
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
        write(request.output, iter([text.encode() + b"\n"]), audit.root.storage)
        return
    columns = request.columns.split(",") if request.columns else None
    if request.table in CROPS:
        write(request.output, _crops(audit, request, columns), audit.root.storage)
        return
    audit.table(request.table, columns, limit=0)  # raises for a column that is not there or only made here
    write(request.output, _pieces(audit, request, columns), audit.root.storage)


def _pieces(audit: Audit, request: Request, columns: list[str] | None) -> Iterator[bytes]:
    return (
        _text(audit, request, columns) if request.format == "text" else _coded(_rows(audit, request, columns), request)
    )


def _coded(parts: Iterator[pa.Table], request: Request) -> Iterator[bytes]:
    if request.format == "parquet":
        return as_parquet(parts, request.output)
    return as_json(parts) if request.format == "json" else as_csv(parts)


def _crops(audit: Audit, request: Request, columns: list[str] | None) -> Iterator[bytes]:
    """The boxes in the order of their images. Raises UsageError for a column that there is not."""
    batches = audit.crop_batches(CROPS[request.table])
    head = audit_columns(empty := next(batches), columns or empty.column_names, request.table)
    parts = chain([head], (part.select(head.column_names) for part in batches))
    if request.top is None and request.format != "text":
        return _coded(parts, request)
    top, first, count = request.top or TOP, head, 0
    for part in parts:
        first = pa.concat_tables([first, part.slice(0, top - first.num_rows)])
        count += part.num_rows
    if request.format != "text":
        return _coded(iter([first]), request)
    return _lines(request, _Worst(first, count, 0), ": no image has a box of that kind", columns is None)


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
    return "\n".join(aligned(shown, None)[0])


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
    listed = columns or READABLE.get(request.table) or audit.table(request.table, limit=0).column_names
    shown = _Worst(audit_columns(worst.table, listed, request.table), worst.rows, worst.flagged)
    return _lines(request, shown, "" if worst.rows else _why_none(audit, request.table), columns is None)


def _lines(request: Request, worst: _Worst, why_none: str, may_drop: bool) -> Iterator[bytes]:
    """Rows as text, and what they are of; `why_none` where there are none."""
    if not worst.rows:
        yield f"no rows in {request.table}{why_none}\n".encode()
        return
    rows = [_said_once(row) for row in worst.table.to_pylist()]
    room = shutil.get_terminal_size().columns if request.output is None and is_terminal() else None
    lines, left_out = aligned(rows, room, may_drop=may_drop)
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
