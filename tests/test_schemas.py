"""The documented tables are the stored ones: names, types, units, null cases, and docs/tables.md itself."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.audit import FINDINGS
from pipeline.layout.audits import FORMAT
from pipeline.schemas import (
    CHECKS,
    EXACT_DUPLICATES,
    GROUPING_KINDS,
    KIND_ORDER,
    LEAKS,
    NEAR_DUPLICATES,
    TABLES,
    Kind,
    Status,
    Table,
)
from pipeline.table_page import KINDS, STATUSES, markdown

PAGE = Path(__file__).parent.parent / "docs" / "tables.md"
REWRITE = (
    'python -c "from pathlib import Path; from pipeline.table_page import markdown; '
    "Path('docs/tables.md').write_text(markdown(), encoding='utf-8')\""
)
each_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)

PAIR = "image_id uri split label match_id match_uri match_split match_label kind similarity semantic_similarity "
PROMISED = {
    "duplicates": PAIR + "signature_similarity correlation overlap is_mirrored is_verified group_id",
    "groups": "group_id image_id uri split label group_size is_keeper keeper_reason similarity_to_medoid is_chained",
    "leaks": PAIR + "signature_similarity group_id severity is_label_conflict is_transitive",
    "outliers": "image_id uri split label score is_outlier percentile label_percentile nearest_id nearest_uri "
    "nearest_similarity is_exact",
    "labels": "image_id uri split label score is_label_issue suggested_label suggested_confidence",
    "quality": "image_id uri width height size_bytes mean stdv min max unique contrast blur "
    + " ".join(f"{check}_score is_{check}_issue" for check in CHECKS),
    "invalid": "image_id uri status message",
    "images": "image_id uri split label status group_id representative_id",
    "feature_rows": "image_id status message format width height channels frames size_bytes content_hash pixel_hash "
    "mean stdv min max unique contrast blur blur_blue channel_difference entropy",
    "edges": "image_id match_id kind similarity semantic_similarity signature_similarity correlation overlap "
    "is_mirrored is_verified",
    "catalog_rows": "image_id source uri raw_key size_bytes etag mtime_ns",
}


def test_the_page_is_what_the_schemas_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), f"docs/tables.md is out of date; write it with\n  {REWRITE}"


@pytest.mark.parametrize("name", PROMISED)
def test_the_columns_of_the_design_are_there(name: str) -> None:
    assert set(PROMISED[name].split()) <= set(TABLES[name].schema.names)


@each_table
def test_columns_are_unique_and_documented(table: Table) -> None:
    names = [column.name for column in table.columns]

    assert len(names) == len(set(names))
    assert set(table.sort_by) <= set(names)
    for column in table.columns:
        assert column.meaning.strip(), column.name
        assert "|" not in column.meaning + column.unit + column.direction, "a bar would break the page's table"


@each_table
def test_a_number_has_a_unit_or_a_direction_and_a_flag_reads_as_one(table: Table) -> None:
    for column in table.columns:
        if pa.types.is_floating(column.type):
            assert (column.unit, column.direction) != ("-", "-"), f"{table.name}.{column.name} says neither"
        assert pa.types.is_boolean(column.type) == column.name.startswith("is_"), f"{table.name}.{column.name}"
        if column.name.endswith("similarity"):
            assert column.direction == "-1 to 1, 1 = identical", f"{table.name}.{column.name}"


@each_table
def test_one_name_has_one_type_and_one_unit(table: Table) -> None:
    for other in TABLES.values():
        for column in table.columns:
            for twin in other.columns:
                if column.name == twin.name:
                    assert (column.type, column.unit) == (twin.type, twin.unit), f"{table.name}, {other.name}"


def test_nullability_follows_the_meaning() -> None:
    schema = LEAKS.schema

    assert schema.field("match_split").nullable
    assert schema.field("kind").nullable
    assert not schema.field("severity").nullable
    assert not TABLES["duplicates"].schema.field("kind").nullable


@each_table
def test_the_arrow_schema_has_the_columns_in_their_order(table: Table) -> None:
    empty = table.empty()

    assert empty.num_rows == 0
    assert empty.schema.names == [column.name for column in table.columns]
    assert empty.schema.types == [column.type for column in table.columns]


def test_every_kind_is_ranked_and_grouping_kinds_come_first() -> None:
    assert sorted(KIND_ORDER) == sorted(Kind)
    assert set(KIND_ORDER[:2]) == EXACT_DUPLICATES
    assert set(KIND_ORDER[2:4]) == NEAR_DUPLICATES
    assert set(KIND_ORDER[:4]) == GROUPING_KINDS


def test_tables_that_change_have_another_format() -> None:
    """An audit of another format is refused with advice; one that only looks the same would be misread."""
    columns = [(name, c.name, str(c.type), c.nullable) for name in FINDINGS for c in TABLES[name].schema]
    digest = hashlib.sha256(repr(columns).encode()).hexdigest()[:12]
    assert (FORMAT, digest) == (3, "81a732abcb07"), "raise FORMAT in layout/audits.py and write the new pair here"


def test_every_status_and_kind_is_explained() -> None:
    assert set(STATUSES) == set(Status)
    assert set(KINDS) == set(Kind)
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"| `{value.value}` | " in page for value in (*Status, *Kind))
