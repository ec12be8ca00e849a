"""The page docs/tables.md, rendered from the schemas."""

from __future__ import annotations

from pipeline.columns import Table
from pipeline.schemas import TABLES

_INTRODUCTION = """# Tables

Rendered from `pipeline/schemas.py`; a test compares this page with it and says how to write it anew.

Tables are Parquet files under `audits/<audit_id>/tables/`; `feature_rows`, `edges` and `catalog_rows` are working
artifacts. Similarities are cosines, computed per pair from the stored features and rounded to 1e-6; larger is closer.
A column can be null only where its meaning says so. Rows are sorted by the columns named under each table.

`image-audit show` lists the worst first, what is flagged before the rest (leaks of severity 1 and 2 are listed and are
no leaks), and counts both in its last line. As text it has some columns, `quality` the issues by name; other formats
have all. In `--csv` a text that begins with `=`, `+`, `-`, `@`, a tab or a line break gets a leading `'`: a spreadsheet
would run it as a formula. Take `--json` or `--parquet` where a program reads the names.
"""


def markdown() -> str:
    """The text of docs/tables.md: every table with the meaning, unit and direction of each column."""
    return _INTRODUCTION + "".join(_section(table) for table in TABLES.values())


def _section(table: Table) -> str:
    order = ", ".join(f"`{name}`" for name in table.sort_by)
    notes = f"\n{table.notes}\n" if table.notes else ""
    lines = "".join(
        f"| `{column.name}` | {column.type} | {column.meaning} | {column.unit} | {column.direction} |\n"
        for column in table.columns
    )
    head = f"\n## {table.name}\n\nOne row is {table.row}. Sorted by {order}.\n{notes}\n"
    return head + "| column | type | meaning | unit | direction |\n|---|---|---|---|---|\n" + lines
