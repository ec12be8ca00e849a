"""The label files of YOLO: boxes as shares of an image's width and height, and the pixels that they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIDES, SCORED, CORNERS = 5, 6, 9
"""Words in a line: class and box; those and a confidence; class and four corners. An odd number from 7 on but 9 is a
polygon."""
LEAST_POLYGON = 7
SLACK = 0.01
"""A share may be this far outside of 0 to 1: tools round, and objects are cut by the edge."""
DECIMALS = 3
"""Of a pixel: files have six digits, so an image of 2,000 pixels is known to 0.001: more would be noise in a name."""
SHOWN = 40
CLASSES = 2**31


@dataclass(frozen=True)
class YoloBoxes:
    """The n boxes of a label file, one per line.

    classes: int64, -1 where it is none. lines: int64, from 1. is_corners: bool. shares: float64 (n, 8), the corners'
    x and y in turn; of a box or polygon, those of its sides. problems: by place, why a line is no box.
    """

    classes: NDArray[np.int64]
    lines: NDArray[np.int64]
    is_corners: NDArray[np.bool_]
    shares: NDArray[np.float64]
    problems: dict[int, str]


def parse_labels(data: bytes) -> YoloBoxes:
    """The boxes of a label file, a line each, in shares of width and height.

    `class cx cy w h`, a polygon `class x y x y x y ...` (its bounding box), or four corners `class x1 y1 ... x4 y4`. A
    bad line keeps its place, with a problem.
    """
    classes: list[int] = []
    lines: list[int] = []
    is_corners: list[bool] = []
    shares: list[list[float]] = []
    problems: dict[int, str] = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        words = line.split()
        if not words:
            continue
        numbers, problem = _numbers(words)
        corners = _corners(numbers, len(words)) if problem is None else [np.nan] * 8
        if problem is None:
            problem = _outside(numbers, len(words))
        if problem is not None:
            problems[len(lines)] = problem
        classes.append(_class(words[0]))
        lines.append(number)
        is_corners.append(len(words) == CORNERS)
        shares.append(corners)
    return YoloBoxes(
        np.array(classes, np.int64),
        np.array(lines, np.int64),
        np.array(is_corners, np.bool_),
        np.array(shares, np.float64).reshape(-1, 8),
        problems,
    )


def pixel_corners(boxes: YoloBoxes, width: int, height: int) -> NDArray[np.float64]:
    """Corners x1, y1, ..., x4, y4 in pixels of an upright image, float64 (n, 8), to three decimals."""
    corners: NDArray[np.float64] = np.round(_in_pixels(boxes, width, height), DECIMALS)
    return corners


def pixel_sides(boxes: YoloBoxes, width: int, height: int) -> NDArray[np.float64]:
    """x, y, width, height in pixels of an upright image, float64 (n, 4), to three decimals, around the corners."""
    corners = _in_pixels(boxes, width, height)
    low = np.stack([corners[:, ::2].min(axis=1), corners[:, 1::2].min(axis=1)], axis=1)
    high = np.stack([corners[:, ::2].max(axis=1), corners[:, 1::2].max(axis=1)], axis=1)
    return np.round(np.concatenate([low, high - low], axis=1), DECIMALS)


def _in_pixels(boxes: YoloBoxes, width: int, height: int) -> NDArray[np.float64]:
    return boxes.shares * np.tile(np.array([width, height], np.float64), 4)


def _numbers(words: list[bytes]) -> tuple[list[float], str | None]:
    count = len(words)
    if count not in (SIDES, SCORED) and (count < LEAST_POLYGON or count % 2 == 0):
        return [], f"{count} numbers; wanted {SIDES}: class, centre x, y, width, height; or a class and corners"
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return [], f"{_shown(words)} are not all numbers"
    if not np.isfinite(numbers).all():
        return numbers, f"{_shown(words)} are not all finite"
    if _class(words[0]) < 0:
        return numbers, f"class {words[0].decode('ascii', 'replace')[:SHOWN]}; wanted a whole number from 0 on"
    return numbers, None


def _class(word: bytes) -> int:
    """The class of a line, whatever its box is; -1 where it is none."""
    try:
        number = float(word)
    except ValueError:
        return -1
    return int(number) if 0 <= number < CLASSES and number == int(number) else -1


def _shown(words: list[bytes]) -> str:
    return repr(b" ".join(words).decode("ascii", "replace")[:SHOWN])


def _corners(numbers: list[float], count: int) -> list[float]:
    if count == CORNERS:
        return numbers[1:]
    if count in (SIDES, SCORED):
        x, y, width, height = numbers[1:SIDES]
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        left, right = min(numbers[1::2]), max(numbers[1::2])
        top, bottom = min(numbers[2::2]), max(numbers[2::2])
    return [left, top, right, top, right, bottom, left, bottom]


def _outside(numbers: list[float], count: int) -> str | None:
    is_box = count in (SIDES, SCORED)
    shares = numbers[1:SIDES] if is_box else numbers[1:]
    if is_box and min(shares[2:]) <= 0:
        return f"width {shares[2]}, height {shares[3]}"
    worst = max(shares, key=lambda share: abs(share - 0.5))
    if -SLACK <= worst <= 1 + SLACK:
        return None
    return f"{worst} is no share of the width or height: YOLO's numbers are from 0 to 1"
