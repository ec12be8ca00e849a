"""Boxes: their names, what is cut out of an image and what cannot be, and fastdup's table of them."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage import transform

from pipeline.errors import UsageError
from pipeline.kernels.boxes import (
    Box,
    BoxesFrom,
    RotatedBox,
    UprightBox,
    box_name,
    parse_bounding_box,
    parse_box,
    split_box,
)
from pipeline.kernels.crop import BoxParams, crop
from pipeline.kernels.crop_list import rotated_crops, upright_crops
from pipeline.kernels.header import Header, ImageError
from pipeline.kernels.pillow_decode import Decoded

BARE = BoxParams(horizontal=0, vertical=0, min_width=1, min_height=1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
sides = st.integers(-200, 800).map(lambda quarters: quarters / 4)
boxes = st.one_of(st.builds(UprightBox, *[numbers] * 4), st.builds(RotatedBox, *[numbers] * 8))


def decoded(pixels: NDArray[Any], space: str = "RGB") -> Decoded:
    return Decoded(Header("png", pixels.shape[1], pixels.shape[0]), np.ascontiguousarray(pixels), space)


def noise(height: int, width: int, channels: int = 3, dtype: Any = np.uint8) -> Decoded:
    shape = (height, width) if channels == 1 else (height, width, channels)
    pixels = np.random.default_rng(5).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    return decoded(pixels, {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels])


def corners_of(box: UprightBox, first: int = 0) -> RotatedBox:
    x, y, right, bottom = box.x, box.y, box.x + box.width, box.y + box.height
    corners = [(x, y), (right, y), (right, bottom), (x, bottom)]
    return RotatedBox(*np.roll(corners, -first, axis=0).ravel().tolist())


def refusal(parent: Decoded, box: Box, params: BoxParams = BARE) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        crop(parent, box, params)
    return caught.value.status.value, str(caught.value)


def outcome(parent: Decoded, box: Box, params: BoxParams = BARE) -> NDArray[Any] | str:
    """The pixels of a box, or the status that it has."""
    try:
        return crop(parent, box, params).native
    except ImageError as error:
        return error.status.value


# Names


@given(boxes)
def test_a_name_is_read_back_to_its_box(box: Box) -> None:
    assert parse_box(box_name(box)) == box
    assert split_box(f"a#b/c.jpg#{box_name(box)}") == ("a#b/c.jpg", box)


@pytest.mark.parametrize(
    ("box", "name"),
    [
        (UprightBox(10, 20.0, 100, 50), "xywh=10,20,100,50"),
        (UprightBox(-0.0, 0.1, 1e-7, 12345678.25), "xywh=0,0.1,1e-07,12345678.25"),
        (UprightBox(1e22, -3, np.float32(0.5), np.int64(7)), "xywh=1e+22,-3,0.5,7"),
        (UprightBox(math.nan, -math.inf, 1, 2), "xywh=nan,-inf,1,2"),
        (RotatedBox(1, 2, 3, 4, 5.5, 6, 7, 8), "corners=1,2,3,4,5.5,6,7,8"),
    ],
)
def test_numbers_have_their_shortest_spelling(box: Box, name: str) -> None:
    assert box_name(box) == name
    assert box_name(parse_box(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "xywh=", "xywh=1,2,3", "xywh=1,2,3,4,5", "xywh=1,2,3,x", "xywh=1,,3,4", "corners=1,2,3,4", "t=12.500"),
        *("xywh=1,2,3,4 ", "xywh=percent:1,2,3,4", "xywh=1_0,2,3,4", "XYWH=1,2,3,4", "xywh=0x1,2,3,4", "xywh=١,2,3,4"),
    ],
)
def test_other_fragments_name_no_box(name: str) -> None:
    with pytest.raises(UsageError, match="names no box"):
        parse_box(name)


def test_a_uri_without_a_box_is_a_parent() -> None:
    for uri in ("a.jpg", "a.tar#cat/1.jpg", "v.mp4#t=12.500"):
        assert split_box(uri) == (uri, None)


def test_the_global_box_is_read_in_any_order() -> None:
    assert parse_bounding_box("row_y=20,col_x=30,height=60,width=100") == UprightBox(30, 20, 100, 60)
    assert parse_bounding_box(" width=100.5, height=60 ,row_y=0, col_x=3") == UprightBox(3, 0, 100.5, 60)


def test_fastdups_words_say_where_boxes_come_from() -> None:
    words = {"xywh_bbox": "table", "rotated": "table", "face": "face", "ocr": "ocr", "yolov5s": "object"}
    assert {word: parse_bounding_box(word) for word in words} == {
        word: BoxesFrom(place) for word, place in words.items()
    }


@pytest.mark.parametrize(
    "text",
    [
        *("", "faces", "10,20,30,40", "row_y=1,col_x=2,height=3", "row_y=1,col_x=2,height=3,width=4,width=4"),
        *("row_y=1,col_x=2,height=0,width=4", "row_y=-1,col_x=2,height=3,width=4", "row_y=1,col_x=2,height=3,width=x"),
        *(
            "row_y=nan,col_x=2,height=3,width=4",
            "row_y=1,col_x=2,height=inf,width=4",
            "row_y=1=1,col_x=2,height=3,width=4",
        ),
        *("quick_face", "x=1,col_x=2,height=3,width=4"),
    ],
)
def test_other_bounding_boxes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="bounding_box"):
        parse_bounding_box(text)


# Upright crops


@given(sides, sides, sides, sides)
def test_a_pixel_is_cut_out_when_its_centre_is_in_the_box(x: float, y: float, width: float, height: float) -> None:
    parent = noise(60, 90)
    column, row = np.arange(90) + 0.5, np.arange(60) + 0.5
    inside = np.ix_((row > y) & (row <= y + height), (column > x) & (column <= x + width))
    wanted = parent.native[inside]
    if wanted.size:
        found = crop(parent, UprightBox(x, y, width, height), BARE)
        assert np.array_equal(found.native, wanted)
        assert (found.header.width, found.header.height) == wanted.shape[1::-1]
    else:
        refusal(parent, UprightBox(x, y, width, height))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_channel_is_kept_at_its_depth(channels: int, dtype: Any) -> None:
    parent = noise(50, 70, channels, dtype)
    before = parent.native.copy()
    box = UprightBox(11, 7, 40, 30)
    for cut in (crop(parent, box, BARE), crop(parent, corners_of(box), BARE)):
        assert cut.native.dtype == dtype
        assert cut.space == parent.space
        assert cut.native.flags.c_contiguous
        assert np.array_equal(cut.native, before[7:37, 11:51])
        assert not np.shares_memory(cut.native, parent.native)
    whole = crop(parent, UprightBox(0, 0, 70, 50), BARE)
    whole.native[:] = 0
    assert np.array_equal(parent.native, before)


@pytest.mark.parametrize(
    ("image", "box", "wanted"),
    [
        ((640, 480), (100, 50, 200, 100), (280, 140)),
        ((640, 480), (10, 20, 101, 51), (131, 71)),
        ((640, 480), (0, 0, 300, 200), (360, 240)),
        ((640, 480), (333, 222, 77, 33), (107, 45)),
        ((301, 203), (100, 100, 50, 30), (70, 42)),
        ((301, 203), (5, 5, 295, 197), (301, 203)),
        ((301, 203), (10, 10, 11, 11), (15, 15)),
    ],
)
def test_margins_are_those_of_fastdup(image: tuple[int, int], box: tuple[int, ...], wanted: tuple[int, int]) -> None:
    """Sizes of the files that fastdup 2.54 wrote with augmentation_horiz=0.2, augmentation_vert=0.2, its default."""
    assert crop(noise(image[1], image[0]), UprightBox(*box), BoxParams()).native.shape[1::-1] == wanted


def test_the_margin_in_pixels_comes_first_and_on_every_side() -> None:
    parent = noise(200, 200)
    params = BoxParams(horizontal=0.5, vertical=0.25, margin=10)
    found = crop(parent, UprightBox(80, 80, 20, 20), params).native  # 40 x 40, then 20 left and right, 10 up and down
    assert np.array_equal(found, parent.native[60:120, 50:130])
    assert np.array_equal(crop(parent, corners_of(UprightBox(80, 80, 20, 20)), params).native, found)


# Rotated crops


@pytest.mark.parametrize("first", range(4))
def test_the_first_corner_is_the_top_left_of_the_crop(first: int) -> None:
    parent = noise(80, 100)
    box = UprightBox(20, 10, 60, 40)
    wanted = np.rot90(parent.native[10:50, 20:80], first)
    turned = corners_of(box, first)
    assert np.array_equal(crop(parent, turned, BARE).native, wanted)
    x1, y1, x2, y2, x3, y3, x4, y4 = astuple(turned)
    other_way = RotatedBox(x1, y1, x4, y4, x3, y3, x2, y2)
    assert np.array_equal(crop(parent, other_way, BARE).native, wanted), "the content is mirrored"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("box", [(90, 30, 150, 70, 120, 115, 60, 75), (40, 30, 150, 45, 140, 120, 55, 100)])
def test_a_rotated_crop_is_what_scikit_image_gives(box: tuple[float, ...], dtype: Any) -> None:
    most = np.iinfo(dtype).max
    y, x = np.mgrid[:160, :200]
    smooth = np.dstack([np.sin(x / 17) + np.cos(y / 11), np.sin((x + y) / 23), np.cos((x - y) / 13)])
    parent = decoded(((smooth / 4 + 0.5) * most).astype(dtype))
    found = crop(parent, RotatedBox(*box), BARE).native
    height, width = found.shape[:2]
    own = np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5
    there = np.array(box).reshape(4, 2) - 0.5
    by = transform.ProjectiveTransform(cv2.getPerspectiveTransform(own.astype(np.float32), there.astype(np.float32)))
    wanted = transform.warp(parent.native, by, output_shape=(height, width), order=1, mode="edge", preserve_range=True)
    lengths = np.linalg.norm(np.roll(np.array(box).reshape(4, 2), -1, 0) - np.array(box).reshape(4, 2), axis=1)
    assert (width, height) == (round((lengths[0] + lengths[2]) / 2), round((lengths[1] + lengths[3]) / 2))
    assert (
        np.abs(found.astype(float) - wanted).max() <= 0.012 * most
    )  # sides are not whole: up to half a pixel of shift


@pytest.mark.parametrize("place", [0, 25])
@pytest.mark.parametrize(
    "box", [(30, 0, 70, 30, 40, 70, 0, 40), (30, 0, 50, 0, 75, 40, 5, 40), (5, 0, 75, 0, 50, 40, 30, 40)]
)
def test_noise_is_turned_as_scikit_image_turns_it(box: tuple[float, ...], place: int) -> None:
    """At 3:4 and in perspective, at the image's edge and inside. OpenCV's weights have 5 bits: 1/32 along each axis."""
    corners = np.array(box, np.float32).reshape(4, 2) + place
    parent = noise(101, 101, 1)
    found = crop(parent, RotatedBox(*corners.ravel().tolist()), BARE).native
    lengths = np.linalg.norm(np.roll(corners, -1, 0) - corners, axis=1)
    width, height = (lengths[0] + lengths[2]) / 2, (lengths[1] + lengths[3]) / 2
    own = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32) - 0.5
    by = cv2.getPerspectiveTransform(own.astype(np.float32), corners - np.float32(0.5))
    wanted = transform.warp(parent.native, by, output_shape=found.shape, order=1, mode="edge", preserve_range=True)
    assert np.abs(found - wanted).max() < 17


@given(*[st.integers(-50, 150)] * 4)
def test_corners_of_an_upright_box_are_cut_like_the_box(x: int, y: int, w: int, h: int) -> None:
    box = UprightBox(x, y, abs(w), abs(h))
    parent = noise(60, 90)
    assert np.array_equal(outcome(parent, corners_of(box), BoxParams()), outcome(parent, box, BoxParams()))


def test_outside_of_the_image_its_edge_is_repeated() -> None:
    parent = decoded(np.dstack([np.full((60, 60), 200, np.uint8), np.full((60, 60), 90, np.uint8)]), "LA")
    cut = crop(parent, RotatedBox(30, -20, 80, 30, 30, 80, -20, 30), BARE)
    assert (cut.native == [200, 90]).all()


def test_a_rotated_box_is_cut_beyond_the_32767th_pixel() -> None:
    parent = noise(24, 40_000, 1)
    cut = crop(parent, corners_of(UprightBox(39_950, 2, 30, 20)), BARE)
    assert np.array_equal(cut.native, parent.native[2:22, 39_950:39_980])
    status, said = refusal(parent, RotatedBox(0, 2, 40_000, 4, 40_000, 22, 0, 20))
    assert (status, "sides of at most 32766" in said) == ("too_large", True)


# Boxes that cannot be


@pytest.mark.parametrize(
    ("box", "status", "said"),
    [
        (UprightBox(700, 500, 50, 50), "unreadable", "box xywh=700,500,50,50 lies outside the 640x480 image"),
        (UprightBox(640, 0, 50, 50), "unreadable", "outside"),
        (UprightBox(-50, 0, 50, 50), "unreadable", "outside"),
        (UprightBox(10, 10, 0, 50), "unreadable", "no area"),
        (UprightBox(10, 10, 50, -1), "unreadable", "no area"),
        (UprightBox(math.nan, 10, 50, 50), "unreadable", "xywh=nan,10,50,50 holds a number that is not finite"),
        (UprightBox(10, 10, math.inf, 50), "unreadable", "not finite"),
        (UprightBox(1e308, 1e308, 1e308, 1e308), "unreadable", "outside"),
        (UprightBox(10, 10, 9, 50), "too_small", "has 9x50 pixels inside the image, at least 10x10 are wanted"),
        (UprightBox(-95, 10, 100, 50), "too_small", "has 5x50 pixels"),
        (RotatedBox(700, 500, 800, 500, 800, 600, 700, 600), "unreadable", "outside"),
        (RotatedBox(650, 200, 900, 450, 650, 700, 645, 450), "unreadable", "outside"),
        (RotatedBox(0, 0, 0, 0, 0, 0, 0, 0), "unreadable", "do not go round"),
        (RotatedBox(0, 0, 50, 0, 0, 50, 50, 50), "unreadable", "do not go round"),
        (RotatedBox(0, 0, 50, 0, 15, 15, 0, 50), "unreadable", "do not go round"),
        (RotatedBox(0, 0, 100, 0, 200, 1e-12, 100, 1e-12), "unreadable", "do not go round"),
        (RotatedBox(0, 0, 100, 0, 100, math.nan, 0, 100), "unreadable", "not finite"),
        (RotatedBox(1e9, 0, 1e10, 0, 1e10, 1e9, 1e9, 1e9), "unreadable", "pixels away"),
        (RotatedBox(10, 10, 16, 16, 10, 22, 4, 16), "too_small", "has 8x8 pixels"),
        (RotatedBox(240, 120, 260, 120, 300, 160, 200, 160), "unreadable", "too far from a rectangle for its margins"),
    ],
)
def test_a_box_that_cannot_be_cut_has_a_status(box: Box, status: str, said: str) -> None:
    found = refusal(noise(480, 640), box, BoxParams(margin=20))
    assert found[0] == status
    assert said in found[1]
    assert box_name(box) in found[1]


def test_a_rotated_crop_has_no_more_than_four_times_the_pixels_of_its_parent() -> None:
    parent = decoded(np.zeros((20, 4000), np.uint8), "L")
    status, said = refusal(parent, RotatedBox(2000, -3000, 5000, 0, 2000, 3000, -1000, 0))
    assert (status, "at most 4 times the image's pixels" in said) == ("too_large", True)


wild = st.one_of(st.floats(), st.floats(-300, 300), st.sampled_from([0.0, 1.0, 60.0, 90.0, 1e6, 1e-300]))


@given(st.one_of(st.builds(UprightBox, *[wild] * 4), st.builds(RotatedBox, *[wild] * 8)), st.booleans())
@settings(max_examples=300)
def test_any_box_gives_pixels_or_a_status(box: Box, is_bare: bool) -> None:
    found = outcome(noise(60, 90, 1), box, BARE if is_bare else BoxParams(margin=3))
    assert found in ("unreadable", "too_small", "too_large") if isinstance(found, str) else 1 <= found.size <= 21_600


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"horizontal": -0.1}, "horizontal is -0.1"),
        ({"vertical": 1.5}, "vertical is 1.5"),
        ({"horizontal": math.nan}, "horizontal is nan"),
        ({"margin": 1.5}, "margin is 1.5"),
        ({"margin": -1, "min_width": 0}, "min_width is 0"),
        ({"min_height": True}, "min_height is True"),
    ],
)
def test_wrong_margins_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        BoxParams(**wrong)


# The table of crops


def test_the_crops_are_listed_as_fastdup_lists_them() -> None:
    uris = ["a.jpg", "a.jpg#xywh=1,2,30.5,40", "t.tar#b.jpg#xywh=0,0,10,10", "a.jpg#corners=1,2,3,4,5,6,7,8"]
    rows = pa.table({"image_id": [4, 5, 6, 7], "uri": uris, "label": ["x", "y", None, "z"]})
    assert upright_crops(rows).to_pylist() == [
        {"index": 5, "filename": "a.jpg", "crop_filename": uris[1]}
        | {"col_x": 1.0, "row_y": 2.0, "width": 30.5, "height": 40.0, "label": "y"},
        {"index": 6, "filename": "t.tar#b.jpg", "crop_filename": uris[2]}
        | {"col_x": 0.0, "row_y": 0.0, "width": 10.0, "height": 10.0, "label": None},
    ]
    found = rotated_crops(rows.append_column("confidence", pa.array([None, 0.5, 0.25, 0.75])))
    header = "index,filename,crop_filename,x1,y1,x2,y2,x3,y3,x4,y4,confidence,label"
    assert ",".join(found.column_names) == header
    assert found.to_pylist()[0]["x4"] == 7.0
    assert (found["confidence"].to_pylist(), found["label"].to_pylist()) == ([0.75], ["z"])
    assert upright_crops(rows.slice(0, 1)).num_rows == 0
