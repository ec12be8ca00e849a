"""CSV and Parquet tables and what Python holds: columns, boxes, and one clear error for each damage."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.sources.box_columns import problem_of_box, spell
from pipeline.sources.list_kinds import read_list
from pipeline.sources.listed import LISTED, Tally, addresses_of
from pipeline.sources.python_lists import listed_from
from pipeline.sources.repeats import CONFLICTS, Repeats, first_rows

BASE = "/data"
BOX = ("col_x", "row_y", "width", "height")
CORNERS = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")


def rows_of(batches: Any) -> list[dict[str, Any]]:
    """Rows without the columns that say nothing."""
    held = list(batches)
    assert all(batch.schema.equals(LISTED) for batch in held)
    rows = [row for batch in held for row in batch.to_pylist()]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def read(data: bytes, name: str = "t.csv", base: str = BASE, tally: Tally | None = None) -> list[dict[str, Any]]:
    return rows_of(read_list(io.BytesIO(data), name, base, tally or Tally()))


def parquet(table: pa.Table | pd.DataFrame, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.Table.from_pandas(table), stream, **options)
    return stream.getvalue()


FRAME = pd.DataFrame(
    {
        "filename": ["a.jpg", 'b "1",\n2.jpg', "/data/c.jpg", "/x/d.jpg", "é.jpg"],
        "label": ["cat", None, "007", "no", "ä, b"],
        "split": ["Training", "val", None, "holdout", "mine"],
        "col_x": [1, None, 0.5, None, 10],
        "row_y": [2, None, -3, None, 20],
        "width": [3, None, 4.25, None, 1e6],
        "height": [4, None, 5, None, 0.1],
        "other": [object.__name__] * 5,
    }
)
FRAME_ROWS = [
    {"address": "a.jpg", "label": "cat", "split": "train", "fragment": "xywh=1,2,3,4"},
    {"address": 'b "1",\n2.jpg', "split": "val"},
    {"address": "c.jpg", "label": "007", "fragment": "xywh=0.5,-3,4.25,5"},
    {"address": "/x/d.jpg", "label": "no", "split": "holdout"},
    {"address": "é.jpg", "label": "ä, b", "split": "mine", "fragment": "xywh=10,20,1000000,0.1"},
]


def numbered(numbers: list[int]) -> list[dict[str, Any]]:
    return [{**row, "row": number} for row, number in zip(FRAME_ROWS, numbers, strict=True)]


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_of_pandas(mark: str, end: str) -> None:
    data = FRAME.to_csv(index=False, lineterminator=end).encode(mark)

    assert read(data) == numbered([2, 3, 5, 6, 7])
    assert read(gzip.compress(data, mtime=0), "t.csv.gz") == numbered([2, 3, 5, 6, 7])
    assert read(FRAME.to_csv(index=False, quoting=csv.QUOTE_ALL).encode()) == numbered([2, 3, 5, 6, 7])


@pytest.mark.parametrize("options", [{}, {"row_group_size": 2}, {"compression": "gzip", "use_dictionary": False}])
def test_parquet_of_pandas(options: dict[str, Any]) -> None:
    assert read(parquet(FRAME, **options), "t.parquet") == numbered(list(range(5)))


@pytest.mark.parametrize(
    "value",
    [
        FRAME,
        FRAME.astype({"label": "category", "split": "category"}),
        FRAME.set_index("filename"),
        pa.Table.from_pandas(FRAME),
        pa.Table.from_pandas(FRAME).to_batches()[0],
        pa.Table.from_pandas(FRAME).to_reader(2),
        pa.Table.from_pandas(FRAME).to_pydict(),
        pa.Table.from_pandas(FRAME).to_pylist(),
    ],
    ids=["frame", "categories", "index", "table", "batch", "reader", "columns", "records"],
)
def test_what_python_holds(value: Any) -> None:
    """As a list has it, but that a whole path stays one."""
    wanted = numbered(list(range(5)))
    wanted[2]["address"] = "/data/c.jpg"
    assert rows_of(listed_from(value, BASE, Tally())) == wanted


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (pd.DataFrame({"filename": [Path("a")]}), "annotations: a column has values of several types.*astype"),
        (pd.DataFrame({"filename": ["a", 1]}), "a column has values of several types"),
        (pd.DataFrame({"filename": [1, 2]}), "annotations: column filename is int64; wanted text"),
        (pd.DataFrame({"label": ["a"]}), "annotations has the columns label; wanted one of filename"),
        ({"filename": ["a"], "label": ["x", "y"]}, "annotations: a column"),
        ({"filename": ["\udc80"]}, "annotations: a column"),
        (["a.jpg"], "annotations is list .*wanted a DataFrame"),
        ([], "annotations is list"),
        ("a.csv", "annotations is str 'a.csv'"),
        (7, "annotations is int 7"),
        (None, "annotations is NoneType"),
        ({"foo": 1}, "annotations: column foo is int 1; wanted a list with a value for each image"),
        ({"filename": "x.jpg", "label": "a"}, "annotations: column filename is str 'x.jpg'; wanted a list"),
        ({"filename": ["x.jpg"], "label": None}, "annotations: column label is NoneType None; wanted a list"),
        ({7: ["x.jpg"]}, "annotations: 7 is no name of a column; wanted text"),
        ([{7: "x.jpg"}], "annotations: 7 is no name of a column; wanted text"),
    ],
)
def test_what_python_must_not_hold(value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        list(listed_from(value, BASE, Tally()))


def line(**values: object) -> bytes:
    """A CSV of one row."""
    return f"{','.join(values)}\n{','.join(map(str, values.values()))}\n".encode()


@pytest.mark.parametrize(
    ("box", "fragment", "problem"),
    [
        ((1, 2, 3, 4), "xywh=1,2,3,4", None),
        ((" 1", "2.0 ", "3e2", "4.50"), "xywh=1,2,300,4.5", None),
        (("", "", "", ""), None, None),
        (("", " ", "", ""), None, None),
        ((0.1, 1 / 3, 3, 1e17), f"xywh=0.1,{1 / 3!r},3,1e+17", None),
        (("-0", "-1", 3, 4), "xywh=0,-1,3,4", None),
        ((1, 2, -3, 4), "xywh=1,2,-3,4", "width -3"),
        ((1, 2, 0, 4), "xywh=1,2,0,4", "width 0"),
        ((1, 2, 3, 0), "xywh=1,2,3,0", "height 0"),
        ((1, 2, 3, "-0.5"), "xywh=1,2,3,-0.5", "height -0.5"),
        (("nan", 2, 3, 4), "xywh=nan,2,3,4", "col_x nan"),
        (("NaN", "nan", "nan", "nan"), "xywh=nan,nan,nan,nan", "col_x nan"),
        ((1, "inf", 3, 4), "xywh=1,inf,3,4", "row_y inf"),
        ((1, 2, "1e999", 4), "xywh=1,2,inf,4", "width inf"),
        ((1, 2, "wide", 4), "xywh=1,2,nan,4", "width 'wide' is no number"),
        ((1, 2, "1_000", 4), "xywh=1,2,nan,4", "width '1_000' is no number"),
        ((1, "", 3, 4), "xywh=1,nan,3,4", "row_y is missing"),
    ],
)
def test_boxes(box: tuple[object, ...], fragment: str | None, problem: str | None) -> None:
    """A bad box keeps its row; the good one behind it is not touched."""
    data = line(filename="a.jpg", **dict(zip(BOX, box, strict=True))) + b"b.jpg,5,6,7,8\n"

    first, second = read(data)

    assert (first.get("fragment"), first.get("problem")) == (fragment, problem)
    assert second == {"address": "b.jpg", "fragment": "xywh=5,6,7,8", "row": 3}


@pytest.mark.parametrize(
    ("box", "fragment", "problem"),
    [
        ((0, 0, 10, 0, 10, 5, 0, 5), "corners=0,0,10,0,10,5,0,5", None),
        ((0, 5, 5, 0, 10, 5.5, 5, 10), "corners=0,5,5,0,10,5.5,5,10", None),
        ((1, 1, 2, 2, 3, 3, 4, 4), "corners=1,1,2,2,3,3,4,4", "corners without an area"),
        ((0, 0, 10, 0, "nan", 5, 0, 5), "corners=0,0,10,0,nan,5,0,5", "x3 nan"),
        ((0, 0, 10, 0, "", 5, 0, 5), "corners=0,0,10,0,nan,5,0,5", "x3 is missing"),
    ],
)
def test_rotated_boxes(box: tuple[object, ...], fragment: str, problem: str | None) -> None:
    (row,) = read(line(filename="a.jpg", **dict(zip(CORNERS, box, strict=True))))

    assert row["fragment"] == fragment
    assert row.get("problem") == problem


def test_a_table_may_have_both_kinds_of_box() -> None:
    data = ",".join(("filename", *BOX, *CORNERS)).encode() + b"\n"
    data += b"a,1,2,3,4,,,,,,,,\nb,,,,,0,0,9,0,9,9,0,9\nc,1,2,3,4,0,0,9,0,9,9,0,9\nd" + b"," * 12 + b"\n"

    rows = read(data)

    assert [row.get("fragment") for row in rows] == ["xywh=1,2,3,4", "corners=0,0,9,0,9,9,0,9", "xywh=1,2,3,4", None]
    assert [row.get("problem") for row in rows] == [None, None, "two boxes: one by sides, one by corners", None]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.floats(width=64)] * 4), min_size=1, max_size=6))
def test_spelled_numbers_are_the_same_numbers(boxes: list[tuple[float, ...]]) -> None:
    """From Parquet, any floats: a fragment reads back as the box, and has a problem just where it is none."""
    table = pa.table(
        {"filename": ["a"] * len(boxes), **dict(zip(BOX, map(list, zip(*boxes, strict=True)), strict=True))}
    )

    rows = read(parquet(table), "t.parquet")

    for box, row in zip(boxes, rows, strict=True):
        kind, _, numbers = row["fragment"].partition("=")
        assert kind == "xywh"
        assert numbers.split(",") == [spell(value) for value in box]
        assert np.array_equal([float(number) for number in numbers.split(",")], box, equal_nan=True)
        is_box = all(map(math.isfinite, box)) and box[2] > 0 and box[3] > 0
        assert ("problem" not in row) == is_box
        assert row.get("problem") == problem_of_box("xywh", box)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "t.csv is empty; wanted a header"),
        (b"\xef\xbb\xbf", "t.csv is empty"),
        (b"a;b\n1;2\n", "t.csv has the columns a;b; wanted one of filename, .* separate them by commas"),
        (b"a," * 99 + b"b\n", r"\(\+60 more\); wanted"),
        (b"filename,label,label\nx,y,z\n", "t.csv has the column label more than once"),
        (b"filename,col_x,row_y,width\na,1,2,3\n", "the columns col_x, row_y, width of a box, but not height"),
        (b"filename,x1,y1,x2,y2\na,1,2,3,4\n", "of a box, but not x3, y3, x4, y4"),
        (b"filename,label\na,b\n\nc\n", "t.csv line 4 has 1 values; wanted 2"),
        (b"filename,label\na,b,c\n", "t.csv line 2 has 3 values; wanted 2"),
        (b'filename,label\na,"b\nc,d\ne,f\n', "t.csv line 2: .*a quote too many"),
        (b'filename,label\nx,y\na,"b\nc",d"\ne,f\n', "t.csv line 3 has 3 values; wanted 2"),
        (b'filename,label\nx,y\n"a"b,c\n', "t.csv line 3: .*a quote too many"),
        (b'filename,label\nx,y\n"' + b"a,b\n" * 99_999, "t.csv line 3: field larger than field limit"),
        (b"filename,label\n,b\n", "t.csv line 2 has no filename"),
        (b"filename,label\na\n", "t.csv line 2 has 1 values"),
        (b"filename,label\na,b\na,\xff\n", "t.csv line 3: label '%FF' is not UTF-8"),
        (b"filename,label\na\rb,c\n", "t.csv line 2: new-line character"),
        (b"key,size\na,-1\n", "t.csv line 2: size '-1'; wanted a whole number"),
        (b"key,size\na,1\nb,1.5\n", "t.csv line 3: size '1.5'"),
        (b"key,etag,size_bytes\na,x,many\n", "t.csv line 2: size_bytes 'many'"),
        (b"filename,label\nhttp://h/a,b\n", "t.csv line 2: .* http:// is no storage"),
        (b"filename," + b"x" * 70_000, "t.csv line 1 has over 65,536 bytes"),
        (b"PAR1 and then nothing", "t.csv: a Parquet file that cannot be read"),
        (parquet(FRAME)[:-20], "t.csv: a Parquet file that cannot be read"),
        (parquet(pa.table({"filename": [["a"]]})), "column filename is list.*; wanted text"),
        (parquet(pa.table({"filename": [b"a"]})), "column filename is binary; wanted text"),
        (parquet(pa.table({"filename": ["a"], "label": [{"x": 1}]})), "column label is struct.*; wanted text or"),
        (parquet(pa.table({"filename": ["a"], **{name: [[1.0]] for name in BOX}})), "col_x is list.*wanted numbers"),
        (parquet(pa.table({"filename": ["a", None]})), "t.csv row 1 has no filename"),
        (parquet(pa.table({"filename": pa.array([], pa.int64())})), "column filename is int64"),
    ],
)  # fmt: skip
def test_one_clear_error(data: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(data)


def test_a_parquet_whose_text_is_no_utf8() -> None:
    column = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())

    with pytest.raises(UsageError, match="column filename has text that is not UTF-8"):
        read(parquet(pa.table({"filename": column})))


def test_damaged_parquet_is_one_error() -> None:
    """Every flipped byte gives rows or a UsageError, and nothing else."""
    data = bytearray(parquet(FRAME))
    refused = 0
    for at in range(0, len(data), 7):
        flipped = bytes(data[:at]) + bytes([data[at] ^ 0xFF]) + bytes(data[at + 1 :])
        try:
            read(flipped, "t.parquet")
        except UsageError:
            refused += 1
    assert refused > 20


def test_names_of_other_bytes_in_a_csv() -> None:
    (batch,) = read_list(io.BytesIO(b"filename,label\nb\xff.jpg,c\n"), "t.csv", BASE, Tally())

    assert addresses_of(batch) == ["b\udcff.jpg"]
    assert batch["label"].to_pylist() == ["c"]


@pytest.mark.parametrize("name", ["filename", "file_name", "path", "image_path", "image", "uri", "key"])
def test_names_of_the_column_of_addresses(name: str) -> None:
    assert read(f"{name},x\na.jpg,1\n".encode()) == [{"address": "a.jpg", "row": 2}]
    assert read(f"{name}\na.jpg\n".encode()) == [{"address": "a.jpg", "row": 2}]


def test_the_first_name_wins_and_sizes_of_images_are_no_boxes() -> None:
    data = b"uri,filename,width,height,size,label\nx,a.jpg,640,480,big,\n"

    assert read(data) == [{"address": "a.jpg", "row": 2}]


LISTING: Mapping[str, list[Any]] = {
    "size": [5, None],
    "etag": ['"e"', '""'],
    "mtime_ns": [1_700_000_000_123_456_789, None],
}


@pytest.mark.parametrize(
    ("base", "columns", "wanted"),
    [
        ("s3://bkt/lists", {"key": ["p/a.jpg", "/b"]}, ["s3://bkt/p/a.jpg", "s3://bkt//b"]),
        ("s3://bkt/p", {"key": ["p/a.jpg", "q/b"]}, ["a.jpg", "s3://bkt/q/b"]),
        ("s3://bkt", {"key": ["p/a.jpg", "q/b"]}, ["p/a.jpg", "q/b"]),
        ("minio://h:1/bkt/p", {"key": ["p/a", "q/b"]}, ["a", "minio://h:1/bkt/q/b"]),
        ("s3://bkt/p", {"bucket": ["cc", "bkt"], "key": ["p/a", "p/b"]}, ["s3://cc/p/a", "b"]),
        ("minio://h:1/bkt", {"bucket": ["cc", "bkt"], "key": ["a", "b"]}, ["minio://h:1/cc/a", "b"]),
        ("/data", {"bucket": ["cc", "bkt"], "key": ["a", "b"]}, ["s3://cc/a", "s3://bkt/b"]),
        ("/data", {"key": ["p/a.jpg", "q/b"]}, ["p/a.jpg", "q/b"]),
    ],
)
def test_ready_listings(base: str, columns: dict[str, list[str]], wanted: list[str]) -> None:
    """Keys count from the root of their bucket, whatever the folder of the list."""
    table = pa.table({**columns, **LISTING})
    text = table.to_pandas(types_mapper=pd.ArrowDtype).to_csv(index=False).encode()

    for data, numbers in ((parquet(table), (0, 1)), (text, (2, 3))):
        first, second = read(data, base=base)
        assert first == {
            "address": wanted[0], "size": 5, "etag": "e", "mtime_ns": 1_700_000_000_123_456_789, "row": numbers[0],
        }  # fmt: skip
        assert second == {"address": wanted[1], "row": numbers[1]}


def test_repeats() -> None:
    """Sorted rows: the first stays, the same is counted, another label or split is a conflict; over batches too."""
    said = [
        ("a", None, "train", "cat"),
        ("a", None, "train", "cat"),
        ("a", None, "train", "dog"),
        ("a", "xywh=1", None, "cat"),
        ("a", "xywh=1", None, None),
        ("b", None, None, None),
        ("b", None, None, None),
        ("c", None, "val", "x"),
        ("c", None, "test", "x"),
        ("c", None, "val", "x"),
    ]
    columns = list(zip(*said, strict=True))
    nothing = [None] * len(said)
    table = pa.table(
        [columns[0], nothing, columns[2], columns[3], columns[1], nothing, nothing, nothing, nothing, range(10)], LISTED
    )
    for step in (1, 2, 3, 10):
        repeats = Repeats()
        batches = [table.slice(at, step).combine_chunks().to_batches()[0] for at in range(0, 10, step)]

        kept = list(first_rows(batches, repeats))

        assert [row["row"] for batch in kept for row in batch.to_pylist()] == [0, 3, 5, 7]
        assert repeats.same == 3
        conflicts = pa.Table.from_batches(repeats.conflicts, CONFLICTS)
        assert list(zip(conflicts["row"].to_pylist(), conflicts["kept_row"].to_pylist(), strict=True)) == [
            (2, 0), (4, 3), (8, 7),
        ]  # fmt: skip


def test_a_name_that_spells_a_byte_is_another_name() -> None:
    columns = [["b%FF", "b%FF"], pa.array([None, b"b\xff"], pa.binary()), *[[None, None]] * 7, [1, 2]]
    repeats = Repeats()

    (kept,) = first_rows(pa.table(columns, LISTED).to_batches(), repeats)

    assert kept["row"].to_pylist() == [1, 2]
    assert repeats == Repeats()


def test_memory_is_flat() -> None:
    """Arrow holds some batches of a table of one row group, however long it is."""
    count = 300_000
    frame = pa.table({"filename": [f"train/{n % 500:03d}/{n:09d}.jpg" for n in range(count)], "label": ["x"] * count})
    files = (parquet(frame, row_group_size=count), frame.to_pandas().to_csv(index=False).encode())
    del frame
    for data in files:
        before, most, rows = pa.total_allocated_bytes(), 0, 0
        for batch in read_list(io.BytesIO(data), "t.csv", BASE, Tally()):
            rows += batch.num_rows
            most = max(most, pa.total_allocated_bytes() - before)
        assert rows == count
        assert most < 3 * 2**24
