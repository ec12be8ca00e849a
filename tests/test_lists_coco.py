"""COCO files and dicts: rows of boxes and of images, what is counted, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.sources.coco import coco_of_dict, read_coco
from pipeline.sources.coco_rows import BOXLESS, CROWDS, EMPTY, NAMELESS, ORPHANS, box_rows, image_rows
from pipeline.sources.json_stream import CHUNK_BYTES, json_elements
from pipeline.sources.list_kinds import read_list
from pipeline.sources.listed import BAD, LISTED, Origin, Tally
from pipeline.sources.python_lists import listed_from

ORIGIN = Origin("coco.json", "/data/images", "annotation")
NAN = float("nan")


def image(number: object, name: object = None) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.jpg" if name is None else name, "width": 640, "height": 480}


def box(of: object, category: object, sides: object, **more: object) -> dict[str, Any]:
    return {"id": 1, "image_id": of, "category_id": category, "bbox": sides, "segmentation": [[1, 2, 3, 4]], **more}


COCO: dict[str, Any] = {
    "info": {"year": 2026},
    "licenses": [{"id": 1}],
    "images": [image(7), image(3, "b/ü.jpg"), image(5), image("x9"), image(11, "/data/images/e.jpg")],
    "annotations": [
        box(3, 1, [1, 2.5, 3, 4]),
        box(7, 2, [0.0, 0.0, 10.0, 10.0]),
        box(7, 2, [5, 5, 5, 5]),
        box(3, 2, [1, 2, 3]),
        box(3, 1, ["1", 2, 3, 4]),
        box(3, 1, [1, NAN, 3, 4]),
        box(3, 1, [1, 2, 0, 4]),
        box(3, 1, "1,2,3,4"),
        box(7, 2, [1, 2, 3, 4], iscrowd=1),
        box("x9", 4, None),
        box("x9", 4, [9, 9, 9, 9]),
        box(99, 1, [1, 2, 3, 4]),
        box(11, None, [1, 2, 3, True]),
        box(11, None, [10**400, 2, 3, 4]),
    ],
    "categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}, {"id": 4, "name": ""}],
}
BOXES = [
    ("b/ü.jpg", "cat", "xywh=1,2.5,3,4", None, 0),
    ("7.jpg", "dog", "xywh=0,0,10,10", None, 1),
    ("7.jpg", "dog", "xywh=5,5,5,5", None, 2),
    ("b/ü.jpg", "dog", "xywh=1,2,3,nan", "3 numbers, wanted 4", 3),
    ("b/ü.jpg", "cat", "xywh=nan,2,3,4", "col_x '1' is no number", 4),
    ("b/ü.jpg", "cat", "xywh=1,nan,3,4", "row_y nan", 5),
    ("b/ü.jpg", "cat", "xywh=1,2,0,4", "width 0", 6),
    ("b/ü.jpg", "cat", "xywh=nan,nan,nan,nan", "bbox '1,2,3,4'; wanted x, y, width, height", 7),
    ("x9.jpg", "4", "xywh=9,9,9,9", None, 10),
    ("e.jpg", None, "xywh=1,2,3,nan", "height True is no number", 12),
    ("e.jpg", None, "xywh=nan,2,3,4", "col_x is too large", 13),
]
IMAGES = [("7.jpg", "dog"), ("b/ü.jpg", None), ("5.jpg", None), ("x9.jpg", "4"), ("e.jpg", None)]


def read(data: bytes, tally: Tally) -> list[tuple[Any, ...]]:
    batches = list(read_list(io.BytesIO(data), "coco.json", "/data/images", tally))
    assert all(batch.schema.equals(LISTED) for batch in batches)
    names = ("address", "label", "fragment", "problem", "row")
    return [tuple(row[name] for name in names) for batch in batches for row in batch.to_pylist()]


def packed(value: Any, **options: Any) -> bytes:
    return json.dumps(value, **options).encode()


@pytest.mark.parametrize(
    "data",
    [
        packed(COCO),
        packed(COCO, indent=2, ensure_ascii=False),
        b"\xef\xbb\xbf" + packed(COCO, separators=(",", ":")),
        packed(dict(reversed(COCO.items()))),
        gzip.compress(packed(COCO), mtime=0),
    ],
)
def test_boxes(data: bytes) -> None:
    """Whatever the order of the arrays; what is no row is counted, with the first of its kind."""
    tally = Tally()

    assert read(data, tally) == BOXES
    bad = [(row, problem) for *_, problem, row in BOXES if problem]
    assert tally.counts == {CROWDS: 1, BOXLESS: 1, ORPHANS: 1, EMPTY: 1, NAMELESS: 1, BAD: len(bad)}
    assert tally.first == {
        BAD: f"coco.json annotation {bad[0][0]}: {bad[0][1]}",
        CROWDS: "coco.json, annotations[8]",
        BOXLESS: "coco.json, annotations[9]",
        ORPHANS: "coco.json, annotations[11]",
        EMPTY: "coco.json, images[2]",
        NAMELESS: "coco.json, annotations[10]",
    }


def test_a_dict_is_the_same() -> None:
    tally, again = Tally(), Tally()

    rows = [row for batch in listed_from(COCO, "/data/images", tally) for row in batch.to_pylist()]
    names = [row["address"].removeprefix("/data/images/") for row in rows]  # a whole path stays one

    assert [
        (name, row["label"], row["fragment"], row["problem"], row["row"]) for name, row in zip(names, rows, strict=True)
    ] == BOXES
    assert read(packed(COCO), again) == BOXES
    assert tally.counts == again.counts


def test_images() -> None:
    """A label where all annotations of an image agree."""
    (batch,) = image_rows(coco_of_dict(COCO, ORIGIN), ORIGIN, Tally())

    rows = batch.to_pylist()
    found = [(row["address"].removeprefix("/data/images/"), row["label"]) for row in rows]
    assert found == IMAGES
    assert {row["fragment"] for row in rows} == {None}
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4]


def test_classification_without_boxes_gives_images() -> None:
    labels = [{"image_id": 7, "category_id": 2}, {"image_id": 5, "category_id": 1, "bbox": []}]

    rows = read(packed({**COCO, "annotations": labels}), Tally())

    assert [(row[0], row[1]) for row in rows] == [
        ("7.jpg", "dog"), ("b/ü.jpg", None), ("5.jpg", "cat"), ("x9.jpg", None), ("e.jpg", None),
    ]  # fmt: skip
    assert [row[0] for row in read(packed({"images": COCO["images"]}), Tally())] == [row[0] for row in rows]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": []}, "coco.json has annotations, categories, info, licenses and no images"),
        ({"images": [image(1, 7)]}, r"coco.json, images\[0\] has the file_name 7; wanted a path"),
        ({"images": [image(7), {"id": 4}]}, r"images\[1\] has the file_name None"),
        ({"images": [image(7), {"file_name": "a"}]}, r"images\[1\] has the id None; wanted a whole number or text"),
        ({"images": [image(1.5)]}, r"images\[0\] has the id 1.5"),
        ({"images": [image(True)]}, r"images\[0\] has the id True"),
        ({"images": [image(10**30)]}, r"images\[0\] has the id 10000"),
        ({"images": [image(7, "a"), image(3), image(7, "b")]}, "two images of id 7: 'a' and 'b'"),
        ({"images": [image("q", "a"), image("q", "b")]}, "two images of id q"),
        ({"images": [image(7, "a\ud800.jpg")]}, r"images\[0\] has the file_name .*no text"),
        ({"images": [7]}, r"images\[0\] is 7; wanted an object"),
        ({"images": {"7": "a.jpg"}}, r"images\[0\] has the file_name None"),
        ({"images": 7}, r"images\[0\] is 7"),
        ({"annotations": [{"bbox": [1, 2, 3, 4]}]}, r"annotations\[0\] has the image_id None"),
        ({"annotations": [box(7, [1], None)]}, r"annotations\[0\] has the category_id \[1\]"),
        ({"annotations": [box(98, 1, [1, 2, 3, 4]), box(99, 1, None)]}, "none of its 2 annotations .* image_id 98"),
        ({"categories": [{"name": "cat"}]}, r"categories\[0\] has the id None"),
        ({"categories": [{"id": 1, "name": "\ud800"}]}, r"categories\[0\] has the name .*not UTF-8"),
        ({"images": [image(7, "http://h/1.jpg")]}, "coco.json annotation 1: .* http:// is no storage"),
    ],
)  # fmt: skip
def test_one_clear_error(change: dict[str, Any], said: str) -> None:
    value = {**COCO, **change}

    with pytest.raises(UsageError, match=said):
        read(packed(value), Tally())
    with pytest.raises(UsageError, match=said.replace("coco.json", "annotations", 1) if said[0] == "c" else said):
        list(listed_from(value, "/data/images", Tally()))


def test_an_image_listed_again_is_no_error() -> None:
    value = {"images": [image(7), image(7)], "annotations": [box(7, 1, [1, 2, 3, 4])]}

    assert read(packed(value), Tally()) == [("7.jpg", "1", "xywh=1,2,3,4", None, 0)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "coco.json character 0: 'the end of the file'; wanted a JSON object"),
        (b"[1]", "character 0: .*wanted a JSON object"),
        (b"{", "wanted a JSON value"),
        (b'{"images": [{"id": 1, "file_name": "a"}', "the end of the file'; wanted `,` or `]`"),
        (b'{"images": [{"id": 1, "file_name": "a"}}', "'}'; wanted `,` or `]`"),
        (b'{"images": [{"id": 1, "file_na', "Unterminated string"),
        (b'{"info": [1 2]}', r"'2\]}'; wanted `,` or `]`"),
        (b'{"images" [1]}', "wanted `:` after a name"),
        (b"{1: 2}", "wanted a name in quotes"),
        (b'{"images": []} x', "wanted nothing after"),
        (b'{"images": ' + b"[" * 100_000, "wanted a plain JSON value"),
        (b'{"info": ' + b'{"a":' * 100_000, "wanted a plain JSON value"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "wanted a plain JSON value"),
        (b"\xff\xfe{\0", "wanted a JSON object"),
        (gzip.compress(packed(COCO), mtime=0)[:-20], "coco.json: a damaged gzip file"),
    ],
)  # fmt: skip
def test_what_is_no_json(data: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(data, Tally())


def test_the_place_of_an_error_is_counted_over_blocks() -> None:
    data = b'{"images": [' + b'{"id": 1, "file_name": "a"},' * 100_000
    wrong = len(data)
    assert wrong > 2 * CHUNK_BYTES

    with pytest.raises(UsageError, match=f"character {wrong:,}: 'oops'"):
        read(data + b"oops", Tally())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


class Trickle(io.BytesIO):
    """Gives a byte or a few at a time, whatever is asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(3)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_elements_are_those_of_json(value: dict[str, Any], indent: int | None, is_ascii: bool) -> None:
    """Cut anywhere, also inside of a number or a letter of several bytes."""
    data = json.dumps(value, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    wanted: list[tuple[str, Any]] = []
    for name, elements in json.loads(data).items():
        wanted += [(name, element) for element in elements] if isinstance(elements, list) else [(name, elements)]

    assert list(json_elements(Trickle(data), "x")) == wanted


class Generated(io.RawIOBase):
    """A COCO file of many images and annotations, made while it is read."""

    def __init__(self, images: int, annotations: int) -> None:
        self.pieces = self._pieces(images, annotations)
        self.held = b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def read(self, size: int = -1) -> bytes:
        while len(self.held) < size and (piece := next(self.pieces, b"")):
            self.held += piece
        found, self.held = self.held[:size], self.held[size:]
        return found

    @staticmethod
    def _pieces(images: int, annotations: int) -> Iterator[bytes]:
        polygon = b",".join(b"%d.25" % number for number in range(200))
        yield b'  {"images":['
        for number in range(images):
            yield b'%s{"id":%d,"file_name":"%012d.jpg"}' % (b","[: number > 0], number, number)
        yield b'],"annotations":['
        for number in range(annotations):
            yield b'%s{"image_id":%d,"category_id":1,"bbox":[1.5,2.5,3.5,4.5],"segmentation":[[%s]]}' % (
                b","[: number > 0], number % images, polygon,
            )  # fmt: skip
        yield b"]}"


def test_polygons_are_not_held() -> None:
    """12 MB of text become 0.5 MB of columns."""
    coco = read_coco(Generated(1000, 10_000), ORIGIN)  # type: ignore[arg-type]

    columns = (coco.of_image, coco.of_category, coco.boxes, coco.kinds)
    assert sum(len(column) * column.itemsize for column in columns) == 10_000 * 49
    rows = [row for batch in box_rows(coco, ORIGIN, Tally()) for row in batch.to_pylist()]
    assert len(rows) == 10_000
    assert rows[-1]["address"] == f"{999:012d}.jpg"
    assert np.unique([row["fragment"] for row in rows]).tolist() == ["xywh=1.5,2.5,3.5,4.5"]
