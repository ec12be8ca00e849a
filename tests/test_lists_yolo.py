"""YOLO: the YAML of a data set, and label files in pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels.yolo_labels import parse_labels, pixel_corners, pixel_sides
from pipeline.sources.listed import BAD, LISTED, Origin, Tally
from pipeline.sources.yolo_rows import BEYOND, ImageSize, LabelledImage, label_rows
from pipeline.sources.yolo_yaml import MAX_BYTES, label_address, read_yolo_yaml

HERE = Origin("data.yaml", "/sets/coco")


def dumped(**value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True).encode()


@pytest.mark.parametrize(
    ("data", "base", "places", "names"),
    [
        (
            dumped(path="../images", train="train", val=["val", "/more/v.txt"], nc=2, names=["cat", "ü"]),
            "/sets/coco",
            [("train", "/sets/images/train", False), ("val", "/sets/images/val", False), ("val", "/more/v.txt", True)],
            ("cat", "ü"),
        ),
        (
            dumped(train="../train/images", val="../valid/images", test=None, names={0: "a", 2: "c", 1: "b"}),
            "s3://bkt/set",
            [("train", "s3://bkt/train/images", False), ("val", "s3://bkt/valid/images", False)],
            ("a", "b", "c"),
        ),
        (b"train: s3://bb/x/\nvalid: l.TXT\n", "/d", [("train", "s3://bb/x", False), ("val", "/d/l.TXT", True)], ()),
        (b"test: .\nnc: 3\nnames: [no, 1, 0x10]\n", "/d", [("test", "/d", False)], ("no", "1", "0x10")),
        (b"\xef\xbb\xbftest: [a, b, a]\n", "/d", [("test", "/d/a", False), ("test", "/d/b", False)], ()),
    ],
)  # fmt: skip
def test_splits_and_names(data: bytes, base: str, places: list[tuple[str, str, bool]], names: tuple[str, ...]) -> None:
    found = read_yolo_yaml(data, Origin("data.yaml", base))

    assert [tuple(place) for place in found.places] == places
    assert found.names == names


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "data.yaml is str; wanted keys|data.yaml is NoneType"),
        (b"- a\n", "data.yaml is list; wanted keys: path, train"),
        (b"names: [a]\n", "data.yaml has the keys names; wanted train, val or test"),
        (b"train:\nval: ''\n", "wanted train, val or test"),
        (b"train: {a: b}\n", "train has {'a': 'b'}; wanted text"),
        (b"train: [[a]]\n", "train has .*wanted text"),
        (b"train: a\nnc: 3\nnames: [x, y]\n", "nc '3' and 2 names"),
        (b"train: a\nnames: {1: x}\n", "names is .*wanted a list, or numbers from 0 on"),
        (b"train: a\nnames: 7\n", "names is '7'"),
        (b"train: a\nnames: [x, [y]]\n", "names has"),
        (b"train: http://x/y\n", "data.yaml: http://x/y: http:// is no storage"),
        (b"train: 'C:\\x'\n", "data.yaml: .*no path of this machine"),
        (b"train: !!python/object/apply:os.system ['touch owned']\n", "line 1 has the tag .*python/object/apply"),
        (b"a: 1\ntrain: !ruby/object:X {}\n", "data.yaml line 2 has the tag '!ruby/object:X'"),
        (LAUGHS.encode(), r"data.yaml line 2 has the alias \*a"),
        (b"a: &a {x: 1}\ntrain: {<<: *a}\n", r"line 2 has the alias \*a"),
        (b"train: " + b"[" * 100_000, "data.yaml line 1 has over 20 levels"),
        (b"train: [a\n", "data.yaml is no YAML: .*line 2"),
        (b"train: \xff\n", "data.yaml is no YAML: 'utf-8'"),
        (b"train: a\0b\n", "data.yaml is no YAML"),
        (b"\ttrain: a\n", "data.yaml is no YAML"),
        (b"train: " + b"x" * MAX_BYTES, "wanted a data YAML of at most"),
    ],
)  # fmt: skip
def test_one_clear_error(data: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_yolo_yaml(data, HERE)


def test_nothing_leads_out_of_a_bucket() -> None:
    with pytest.raises(UsageError, match=r"data\.yaml: '../../x' leads out of the bucket s3://bkt"):
        read_yolo_yaml(b"train: ../../x\n", Origin("data.yaml", "s3://bkt/a"))


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("/d/images/train/1.jpg", "/d/labels/train/1.txt"),
        ("images/1.a.jpg", "labels/1.a.txt"),
        ("images/x/images/1.jpg", "images/x/labels/1.txt"),
        ("my_images/1.jpg", "my_images/1.txt"),
        ("s3://bkt/images/images", "s3://bkt/labels/images.txt"),
        ("1.jpg", "1.txt"),
    ],
)
def test_label_files(image: str, labels: str) -> None:
    assert label_address(image) == labels


SIZE = ImageSize(200, 100)


@pytest.mark.parametrize(
    ("line", "label", "fragment", "problem"),
    [
        (b"0 0.5 0.5 0.1 0.2", "cat", "xywh=90,40,20,20", None),
        (b" 1\t0.500000 0.5 1 1 \r", "dog", "xywh=0,0,200,100", None),
        (b"7 0.333333 0.5 0.333333 0.5", "7", "xywh=33.333,25,66.667,50", None),
        (b"0 0.5 0.5 0.1 0.2 98.7", "cat", "xywh=90,40,20,20", None),
        (b"0 0.1 0.1 0.9 0.1 0.9 0.5 0.1 0.5", "cat", "corners=20,10,180,10,180,50,20,50", None),
        (b"1 0.5 0.1 0.9 0.5 0.1 0.7", "dog", "xywh=20,10,160,60", None),
        (b"1 0.5 0.1 0.9 0.5 0.1 0.7 0.2 0.2 0.25 0.25", "dog", "xywh=20,10,160,60", None),
        (b"0 0 0 0.02 0.02", "cat", "xywh=-2,-1,4,2", None),
        (b"0 0.5 0.5 0 0.2", "cat", "xywh=100,40,0,20", "width 0.0, height 0.2"),
        (b"0 0.5 0.5 -0.001 0.2", "cat", "xywh=99.9,40,0.2,20", "width -0.001, height 0.2"),
        (b"0 320 240 50 60", "cat", "xywh=59000,21000,10000,6000", "320.0 is no share of the width or height"),
        (b"0 0.5 0.5", "cat", "xywh=nan,nan,nan,nan", "3 numbers; wanted 5"),
        (b"0 0.5 0.5 1 1 1 1 1", "cat", "xywh=nan,nan,nan,nan", "8 numbers; wanted 5"),
        (b"cat 0.5 0.5 1 1", None, "xywh=nan,nan,nan,nan", "'cat 0.5 0.5 1 1' are not all numbers"),
        (b"\xff\0 0.5 0.5 1 1", None, "xywh=nan,nan,nan,nan", "are not all numbers"),
        (b"0 nan 0.5 1 1", "cat", "xywh=nan,nan,nan,nan", "are not all finite"),
        (b"0 1e999 0.5 1 1", "cat", "xywh=nan,nan,nan,nan", "are not all finite"),
        (b"-1 0.5 0.5 1 1", None, "xywh=nan,nan,nan,nan", "class -1; wanted a whole number"),
        (b"1.5 0.5 0.5 1 1", None, "xywh=nan,nan,nan,nan", "class 1.5"),
        (b"1e300 0.5 0.5 1 1", None, "xywh=nan,nan,nan,nan", "class 1e300"),
    ],
)
def test_lines(line: bytes, label: str | None, fragment: str, problem: str | None) -> None:
    """Each in pixels; a bad one keeps its row, and those around it are not touched."""
    good = b"0 0.5 0.5 0.5 0.5"
    boxes = parse_labels(b"\xef\xbb\xbf" + good + b"\n\n" + line + b"\n" + good)

    batch = label_rows([LabelledImage("a.jpg", boxes, SIZE, HERE)], ["cat", "dog"], Tally())

    assert batch.schema.equals(LISTED)
    first, row, last = batch.to_pylist()
    assert (row["label"], row["fragment"], row["row"]) == (label, fragment, 3)
    assert (problem or "") in (row["problem"] or "")
    assert (row["problem"] is None) == (problem is None)
    for other, number in ((first, 1), (last, 4)):
        found = (other["address"], other["label"], other["fragment"], other["problem"], other["row"])
        assert found == ("a.jpg", "cat", "xywh=50,25,100,50", None, number)


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_boxes_is_a_picture_of_none(data: bytes) -> None:
    assert label_rows([LabelledImage("a.jpg", parse_labels(data), SIZE, HERE)], [], Tally()).num_rows == 0


def test_rows_of_many_are_those_of_each() -> None:
    """Empty files among them; the first bad line and the first class beyond the names are told by their own files."""
    files = [b"", b"1 .5 .5 .5 .5\n0 0 0 1 0 1 1 0 1", b"0 .5 .5 .5 .5\n0 nan .5 .5 .5\n7 .5 .5 .2 .2", b"", b"x y"]
    images = [
        LabelledImage(f"{at}.jpg", parse_labels(data), ImageSize(100 + at, 50), Origin(f"{at}.txt", ""))
        for at, data in enumerate(files)
    ]
    tally, alone = Tally(), Tally()
    together = label_rows(images, ["cat", "dog"], tally).to_pylist()
    assert together == [row for image in images for row in label_rows([image], ["cat", "dog"], alone).to_pylist()]
    assert [(row["address"], row["row"], row["problem"] is None) for row in together] == [
        ("1.jpg", 1, True), ("1.jpg", 2, True), ("2.jpg", 1, True), ("2.jpg", 2, False), ("2.jpg", 3, True),
        ("4.jpg", 1, False),
    ]  # fmt: skip
    assert str(tally) == str(alone)
    assert "2.txt" in tally.first[BEYOND]
    assert "2.txt" in tally.first[BAD]
    assert label_rows([], ["cat"], Tally()).num_rows == 0


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(*[st.integers(1, 5000)] * 2),
    st.lists(st.tuples(*[st.floats(0, 1)] * 4).filter(lambda box: box[2] - box[0] > 0.01 and box[3] - box[1] > 0.01)),
)
def test_boxes_come_back_to_the_pixel(size: tuple[int, int], sides: list[tuple[float, ...]]) -> None:
    """Written with six digits, as YOLO's tools do, and read back."""
    width, height = size
    text = "".join(
        f"3 {(left + right) / 2:.6f} {(top + bottom) / 2:.6f} {right - left:.6f} {bottom - top:.6f}\n"
        for left, top, right, bottom in sides
    )

    boxes = parse_labels(text.encode())

    wanted = [(x * width, y * height, (r - x) * width, (b - y) * height) for x, y, r, b in sides]
    assert not boxes.problems
    assert np.allclose(pixel_sides(boxes, width, height), np.reshape(wanted, (-1, 4)), atol=0.02)
    corners = pixel_corners(boxes, width, height).reshape(-1, 4, 2)
    assert np.allclose(corners[:, 0], np.reshape(wanted, (-1, 4))[:, :2], atol=0.02)
