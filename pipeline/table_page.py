"""The page docs/tables.md, rendered from the schemas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.columns import Table
from pipeline.schemas import TABLES, Kind, Status

_INTRODUCTION = """# Tables

Rendered from `pipeline/schemas.py`; a test compares this page with it and says how to write it anew.

Tables are Parquet files under `audits/<audit_id>/tables/`; `feature_rows`, `edges` and `catalog_rows` are working
artifacts. Similarities are cosines, computed per pair from the stored features and rounded to 1e-6; larger is closer.
A column can be null only where its meaning says so. Rows are sorted by the columns named under each table.

`image-audit show` lists the worst first, what is flagged before the rest (leaks of severity 1 and 2 are listed and are
no leaks), and counts both in its last line. As text it has some columns, `quality` the issues by name; other formats
have all, and without `--top` every row in the order of the table. In `--csv` a text that begins with `=`, `+`, `-`,
`@`, a tab or a line break gets a leading `'`: a spreadsheet would run it as a formula. Take `--json` or `--parquet`
where a program reads the names.
"""

STATUSES = {
    Status.OK: "decoded and measured; only such images are compared",
    Status.EMPTY: "a file or video without a byte, or an archive without a file in it",
    Status.UNSUPPORTED: "its first bytes are of no format that is decoded here, whatever its name says, such as text, "
    "HTML or zeros; or a variant that is not decoded, or only with an extra that the message names",
    Status.UNREADABLE: "it begins as a format that is decoded here, and what follows is damaged; an archive that is "
    "none or is damaged; or a box outside of its image or without area",
    Status.TRUNCATED: "its bytes end before the image, archive or video does",
    Status.TOO_SMALL: "fewer pixels a side than `measure.min_width` and `min_height`, or `boxes.min_*` of a box",
    Status.TOO_LARGE: "more bytes, pixels or memory to decode than `measure` allows, never decoded; a tar.gz that "
    "unpacks to far more than images do",
    Status.MISSING: "listed and not there when it was read; tried again by the next run",
    Status.CHANGED: "another size, time or etag than listed, or damaged on the way; tried again by the next run",
    Status.DENIED: "the store or file system refuses to let it be read; tried again by the next run",
    Status.TIMEOUT: "its decoding hung and was ended; tried again by the next run",
    Status.CRASHED: "its decoding killed the process; tried again by the next run",
}
KINDS = {
    Kind.SAME_BYTES: "exact duplicate: the files are equal byte by byte",
    Kind.SAME_PIXELS: "exact duplicate: other bytes with the same decoded pixels",
    Kind.NEAR_IDENTICAL: "near-duplicate: re-encoded or resized; or, where no pixels were compared, similar enough",
    Kind.EDITED: "near-duplicate: recoloured, cropped, mirrored, turned, or with something laid over it",
    Kind.SAME_SCENE: "another picture of the same scene, such as the next frame of a camera; joins no group",
    Kind.LOOK_ALIKE: "only looks alike, the pixels do not agree; joins no group",
    Kind.SAME_PARENT: "frames of one video or boxes of one image, whatever they show; joins no group",
}


def markdown() -> str:
    """The text of docs/tables.md: every table with the meaning, unit and direction of each column."""
    values = _values("Status", Status, STATUSES) + _values("Kind", Kind, KINDS)
    return _INTRODUCTION + values + "".join(_section(table) for table in TABLES.values())


def _values(name: str, values: Iterable[Status | Kind], meanings: Mapping[Any, str]) -> str:
    lines = "".join(f"| `{value.value}` | {meanings[value]} |\n" for value in values)
    return f"\n## {name}\n\n| value | meaning |\n|---|---|\n{lines}"


def _section(table: Table) -> str:
    order = ", ".join(f"`{name}`" for name in table.sort_by)
    notes = f"\n{table.notes}\n" if table.notes else ""
    lines = "".join(
        f"| `{column.name}` | {column.type} | {column.meaning} | {column.unit} | {column.direction} |\n"
        for column in table.columns
    )
    head = f"\n## {table.name}\n\nOne row is {table.row}. Sorted by {order}.\n{notes}\n"
    return head + "| column | type | meaning | unit | direction |\n|---|---|---|---|---|\n" + lines
