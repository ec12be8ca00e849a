"""How a stored table is described: its columns, their types, units and meaning."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa


@dataclass(frozen=True)
class Column:
    """One column: name, Arrow type, meaning (which says when it is null), unit, and which way its values point."""

    name: str
    type: pa.DataType
    meaning: str
    unit: str = "-"
    direction: str = "-"

    @property
    def nullable(self) -> bool:
        """Whether the meaning names a case in which the value is null."""
        return "; null " in self.meaning


@dataclass(frozen=True)
class Table:
    """One stored table: what a row is, its columns, the columns it is sorted by, and how its values are decided."""

    name: str
    row: str
    columns: tuple[Column, ...]
    sort_by: tuple[str, ...]
    notes: str = ""

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of every part of the table."""
        return pa.schema([pa.field(column.name, column.type, column.nullable) for column in self.columns])

    def empty(self) -> pa.Table:
        """An Arrow table of this schema without rows."""
        return self.schema.empty_table()


def but_null(case: str, *columns: Column) -> tuple[Column, ...]:
    """The same columns, null in `case`."""
    return tuple(replace(column, meaning=f"{column.meaning}; null {case}") for column in columns)
