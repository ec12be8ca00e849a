"""Boxes inside an image: their geometry, the fragment that names one, and fastdup's words for where boxes come from.

Pixels are unit squares: pixel (0, 0) reaches from 0 to 1 along both axes, so `xywh=10,20,100,50` is 100 x 50 pixels.
"""

from __future__ import annotations

import math
import re
from dataclasses import astuple, dataclass
from enum import Enum

from pipeline.errors import UsageError


@dataclass(frozen=True)
class UprightBox:
    """An axis-aligned box in pixels of the upright image: left edge, top edge, width, height. May be impossible."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class RotatedBox:
    """Four corners in pixels of the upright image, in order around the box; the first is the top left of its content.

    A rectangle at any angle, or any other convex shape of four corners. May be impossible.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    x3: float
    y3: float
    x4: float
    y4: float


Box = UprightBox | RotatedBox

_KINDS: dict[str, tuple[type[UprightBox] | type[RotatedBox], int]] = {
    "xywh": (UprightBox, 4),
    "corners": (RotatedBox, 8),
}
_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|nan|-?inf"
_NAME = re.compile(rf"(xywh|corners)=((?:{_NUMBER})(?:,(?:{_NUMBER}))*)")


def box_name(box: Box) -> str:
    """Fragment that names a box, such as `xywh=10,20,100,50` or `corners=x1,y1,...,x4,y4`; equal boxes share it.

    Numbers have their shortest spelling, whole ones no point. NaN and infinity are spelt too: a box that no image can
    have still is a row with a status.
    """
    kind = "xywh" if isinstance(box, UprightBox) else "corners"
    return f"{kind}={','.join(map(_spelt, astuple(box)))}"


def _spelt(number: float) -> str:
    value = float(number)
    if value.is_integer() and abs(value) < 1e16:
        return str(int(value))  # and -0.0 is 0
    return repr(value)


def parse_box(name: str) -> Box:
    """The box that a fragment names: `parse_box(box_name(box)) == box`, unless it holds NaN.

    UsageError for any other text.
    """
    match = _NAME.fullmatch(name)
    numbers = [float(number) for number in match[2].split(",")] if match else []
    if match is None or len(numbers) != _KINDS[match[1]][1]:
        raise UsageError(
            f"{name!r} names no box; want xywh=x,y,width,height or corners=x1,y1,x2,y2,x3,y3,x4,y4, in pixels"
        )
    return _KINDS[match[1]][0](*numbers)


def split_box(uri: str) -> tuple[str, Box | None]:
    """A uri without its box, and the box that its fragment names; None where it names none."""
    parent, mark, fragment = uri.rpartition("#")
    if not mark or not fragment.startswith(("xywh=", "corners=")):
        return uri, None
    return parent, parse_box(fragment)


class BoxesFrom(str, Enum):
    """Where the boxes of an image come from."""

    TABLE = "table"
    FACE = "face"
    OCR = "ocr"
    OBJECT = "object"


_WORDS = {
    "xywh_bbox": BoxesFrom.TABLE,
    "rotated": BoxesFrom.TABLE,
    "face": BoxesFrom.FACE,
    "ocr": BoxesFrom.OCR,
    "object": BoxesFrom.OBJECT,
    "yolov5s": BoxesFrom.OBJECT,
}
_QUICK = {"quick_face": "face", "quick_ocr": "ocr", "quick_yolov5s": "object"}
_GLOBAL_KEYS = ("row_y", "col_x", "height", "width")


def parse_bounding_box(text: str) -> UprightBox | BoxesFrom:
    """What `bounding_box` asks for: one box for every image, or where each image's boxes come from.

    `row_y=20,col_x=30,height=60,width=100`, in any order, is a box; `xywh_bbox` and `rotated` are the boxes of the
    annotations; `face`, `ocr` and `object` (`yolov5s`) are found in the image. UsageError for anything else.
    """
    word = text.strip()
    if word in _WORDS:
        return _WORDS[word]
    if word in _QUICK:
        raise UsageError(
            f"bounding_box={word} lists crops without an audit, which is not offered; use bounding_box={_QUICK[word]} "
            "and read the crops table"
        )
    pairs = [part.split("=") for part in word.split(",")]
    if sorted(pair[0].strip() for pair in pairs) != sorted(_GLOBAL_KEYS) or any(len(pair) != 2 for pair in pairs):
        raise UsageError(
            f"bounding_box is {text!r}; want row_y=..,col_x=..,height=..,width=.., or one of {', '.join(_WORDS)}"
        )
    numbers = {key.strip(): _global_number(key.strip(), value) for key, value in pairs}
    return UprightBox(numbers["col_x"], numbers["row_y"], numbers["width"], numbers["height"])


def _global_number(key: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    is_side = key in ("width", "height")
    if not math.isfinite(number) or number < 0 or (is_side and number == 0):
        wanted = "a number over 0" if is_side else "a number of 0 or more"
        raise UsageError(f"bounding_box: {key} is {text.strip()!r}, want {wanted}, in pixels")
    return number
