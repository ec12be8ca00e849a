"""Whatever the bytes of a list are, it gives rows of the one schema, or one UsageError."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels.yolo_labels import parse_labels
from pipeline.sources.inventory import read_inventory, read_manifest
from pipeline.sources.list_kinds import HEAD_BYTES, kind_of, read_list
from pipeline.sources.listed import LISTED, Origin, Tally
from pipeline.sources.python_lists import listed_from
from pipeline.sources.yolo_rows import ImageSize, LabelledImage, label_rows
from pipeline.sources.yolo_yaml import read_yolo_yaml

FRAME = pd.DataFrame(
    {"filename": ["a.jpg", "b.jpg"], "label": ["x", None], "col_x": 1, "row_y": 2, "width": 3, "height": 4}
)
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 2, "bbox": [1, 2.5, 3, 4]}],
    "categories": [{"id": 2, "name": "cat"}],
}
MANIFEST = {
    "sourceBucket": "bkt", "fileFormat": "CSV", "fileSchema": "Bucket, Key, Size",
    "files": [{"key": "k", "size": 1, "MD5checksum": "x"}],
}  # fmt: skip


def said_of(read: Callable[[str, Any], Any], name: str, value: Any) -> str:
    """What the UsageError says; the name where it is read."""
    try:
        read(name, value)
    except UsageError as error:
        return str(error)
    return name


def held(name: str, value: Any) -> None:
    for batch in listed_from(value, "/data", Tally(), name):
        assert batch.schema.equals(LISTED)


def listed(name: str, data: bytes) -> None:
    for batch in read_list(io.BytesIO(data), name, "/data", Tally()):
        assert batch.schema.equals(LISTED)
        batch.validate(full=True)


def inventory(name: str, data: bytes) -> None:
    origin = Origin(name, "s3://bkt/x")
    for batch in read_inventory(read_manifest(data, origin), lambda key: io.BytesIO(data), origin, Tally()):
        assert batch.schema.equals(LISTED)


def labels(name: str, data: bytes) -> None:
    batch = label_rows(
        [LabelledImage(name, parse_labels(data), ImageSize(640, 480), Origin(name, ""))], ["cat"], Tally()
    )
    assert batch.schema.equals(LISTED)


def yolo(name: str, data: bytes) -> None:
    read_yolo_yaml(data, Origin(name, "/data"))


def parquet() -> bytes:
    stream = io.BytesIO()
    FRAME.to_parquet(stream)
    return stream.getvalue()


FILES: dict[str, tuple[Callable[[str, bytes], None], bytes]] = {
    "list.txt": (listed, b"a.jpg\r\n# note\n\n/x/b.jpg\ns3://bkt/c.jpg\n"),
    "t.csv": (listed, FRAME.to_csv(index=False).encode()),
    "t.csv.gz": (listed, gzip.compress(FRAME.to_csv(index=False).encode())),
    "t.parquet": (listed, parquet()),
    "coco.json": (listed, json.dumps(COCO).encode()),
    "manifest.json": (inventory, json.dumps(MANIFEST).encode()),
    "data.yaml": (yolo, b"path: ..\ntrain: [a, b]\nval: x.txt\nnames: {0: cat, 1: 'dog'}\nnc: 2\n"),
    "label.txt": (labels, b"0 0.5 0.5 0.1 0.1\n1 0.1 0.1 0.2 0.2 0.1 0.2\n"),
}
PIECES = st.sampled_from(
    [b"", b"\0", b"\xff", b'"', b"\n", b"\r", b",", b"{", b"[", b"]", b"nan", b"-1", b"1e999", b"&a *a", b"!!x"]
)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file(name: str, data: st.DataObject) -> None:
    """Cut, filled or overwritten at a few places."""
    read, damaged = FILES[name]
    for _ in range(data.draw(st.integers(1, 4))):
        at, until = sorted(data.draw(st.tuples(*[st.integers(0, len(damaged))] * 2)))
        until = min(until, at + data.draw(st.sampled_from([0, 1, 2, 1000])))
        damaged = damaged[:at] + data.draw(PIECES | st.binary(max_size=4)) + damaged[until:]

    assert name in said_of(read, name, damaged)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes(name: str, data: bytes) -> None:
    assert name in said_of(kind_of, name, data[:HEAD_BYTES])
    assert name in said_of(FILES[name][0], name, data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_coco_dict_of_anything(data: st.DataObject) -> None:
    """Any value in the place of any other."""
    value: Any = json.loads(json.dumps(COCO))
    where = value
    while True:
        key = data.draw(st.sampled_from(sorted(where)) if isinstance(where, dict) else st.integers(0, len(where) - 1))
        inner = where[key]
        if not inner or not isinstance(inner, (dict, list)) or data.draw(st.booleans()):
            where[key] = data.draw(VALUES)
            break
        where = inner
    assert said_of(held, "annotations", value).startswith("annotations")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(list(FRAME.columns)), VALUES, max_size=6), max_size=3))
def test_records_of_anything(records: list[dict[str, Any]]) -> None:
    assert said_of(held, "annotations", records).startswith("annotations")
