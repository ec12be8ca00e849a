"""Cutting boxes out of a decoded image: every channel at native depth, any number of boxes from one decode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.boxes import Box, RotatedBox, UprightBox, box_name
from pipeline.kernels.header import ImageError
from pipeline.kernels.pillow_decode import Decoded
from pipeline.schemas import Status

_MAX_GROWTH = 4
"""Pixels of a rotated crop per pixel of its parent: at 45 degrees, 2 hold all of a square, 3.6 of a parent of 5:1."""
_MAX_WARPED_SIDE = 32_766
"""OpenCV counts the pixels of a warp in 16 bits."""
_MAX_CORNER = 1e6
"""Farther out float64 no longer tells the corners of a small box apart once they are squared."""
_LEAST = 1e-6
"""A corner that turns less is none, and what reaches less of a pixel into the image is outside: noise of float64."""
_SPARE = 1
"""Pixels around a rotated box that are read with it: where it is drawn in perspective, its edges lie between two."""

Points = NDArray[np.float64]
Window = tuple[int, int, int, int]
"""Left, top, right, bottom (exclusive), in whole pixels."""


@dataclass(frozen=True)
class BoxParams:
    """What is added around a box before it is cut out, and how small it may be.

    `margin`: pixels on each side. Then `horizontal` and `vertical`: shares of the width and height, on each side and
    rounded down to pixels; fastdup's augmentation_horiz and augmentation_vert, with its default. `min_width` and
    `min_height` count the pixels of the box itself that lie inside the image, without margins.
    """

    horizontal: float = 0.2
    vertical: float = 0.2
    margin: int = 0
    min_width: int = 10
    min_height: int = 10

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value!r}, want a share from 0 to 1, such as 0.2"
            for name, value in (("horizontal", self.horizontal), ("vertical", self.vertical))
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1
        ]
        problems += [
            f"{name} is {value!r}, want a whole number of pixels, at least {least}"
            for name, value, least in (
                ("margin", self.margin, 0),
                ("min_width", self.min_width, 1),
                ("min_height", self.min_height, 1),
            )
            if type(value) is not int or value < least
        ]
        if problems:
            raise UsageError("the margins of boxes are wrong: " + "; ".join(problems))


def crop(decoded: Decoded, box: Box, params: BoxParams) -> Decoded:
    """A box with its margins as an image of its own; the parent is left as it is and shares no memory with it.

    What lies outside the image is cut off. An upright box is a copy of pixels: its edges are rounded to the nearest
    pixel edge, so a pixel belongs to it when its centre does. A rotated box is turned upright by bilinear
    interpolation, its sides the means of opposite sides; where its corner reaches out of the image, the image's edge
    is repeated.

    Raises ImageError: unreadable for a box that is impossible or outside the image, too_small, too_large.
    """
    if not all(math.isfinite(number) for number in vars(box).values()):
        raise _unreadable(box, "holds a number that is not finite; want pixels of the image")
    if isinstance(box, UprightBox):
        left, top, right, bottom = _upright_window(decoded, box, params)
        pixels = decoded.native[top:bottom, left:right].copy()
    else:
        pixels = _turned_upright(decoded, box, params)
    return Decoded(decoded.header._replace(width=pixels.shape[1], height=pixels.shape[0]), pixels, decoded.space)


def _unreadable(box: Box, what: str) -> ImageError:
    return ImageError(Status.UNREADABLE, f"box {box_name(box)} {what}")


def _size(decoded: Decoded) -> tuple[int, int]:
    return decoded.native.shape[1], decoded.native.shape[0]


def _outside(decoded: Decoded, box: Box) -> ImageError:
    width, height = _size(decoded)
    return _unreadable(box, f"lies outside the {width}x{height} image")


def _check_seen(box: Box, width: int, height: int, params: BoxParams) -> None:
    """ImageError where too few pixels of the box itself are inside the image."""
    if width < params.min_width or height < params.min_height:
        wanted = f"at least {params.min_width}x{params.min_height} are wanted"
        raise ImageError(
            Status.TOO_SMALL, f"box {box_name(box)} has {width}x{height} pixels inside the image, {wanted}"
        )


def _upright_window(decoded: Decoded, box: UprightBox, params: BoxParams) -> Window:
    if box.width <= 0 or box.height <= 0:
        raise _unreadable(box, "has no area; want a width and a height over 0")
    size = _size(decoded)
    right, bottom = box.x + box.width, box.y + box.height
    if not (box.x < size[0] and box.y < size[1] and right > 0 and bottom > 0):
        raise _outside(decoded, box)
    seen = _window((box.x, box.y, right, bottom), size)
    _check_seen(box, seen[2] - seen[0], seen[3] - seen[1], params)
    across, down = _margins(box.width, box.height, params)
    return _window((box.x - across, box.y - down, right + across, bottom + down), size)


def _margins(width: float, height: float, params: BoxParams) -> tuple[int, int]:
    """Whole pixels to add left and right, and above and below."""

    def added(side: float, share: float) -> int:
        # The small addend undoes what a product such as 100 * 0.29 lacks to 29.
        return params.margin + math.floor(min((side + 2 * params.margin) * share, 1e9) + 1e-6)

    return added(width, params.horizontal), added(height, params.vertical)


def _window(edges: tuple[float, float, float, float], size: tuple[int, int]) -> Window:
    """Edges to whole pixels and into the image.

    The nearest, not the outermost: of 2,000 whole boxes in images of 640x480 to 4000x3000 written as YOLO labels of
    six decimals, the nearest edges give back all, the outermost ones 1,097.
    """
    left, top, right, bottom = (
        math.floor(min(max(edge, 0.0), float(limit)) + 0.5) for edge, limit in zip(edges, (*size, *size), strict=True)
    )
    return left, top, right, bottom


def _turned_upright(decoded: Decoded, box: RotatedBox, params: BoxParams) -> NDArray[Any]:
    corners = _clockwise(box)
    width, height = _mean_sides(corners)
    to_image = _homography(_rectangle(0, 0, width, height), corners)
    seen = _seen(decoded, to_image, (0.0, 0.0, width, height))
    if seen is None:
        raise _outside(decoded, box)
    _check_seen(box, seen[2] - seen[0], seen[3] - seen[1], params)
    across, down = _margins(width, height, params)
    outline = _rectangle(-across, -down, width + across, height + down)
    if (np.column_stack([outline, np.ones(4)]) @ to_image[2] <= 0).any():
        raise _unreadable(box, "is too far from a rectangle for its margins; give smaller ones")
    window = _seen(decoded, to_image, (-across, -down, width + across, height + down))
    if window is None:
        raise _outside(decoded, box)
    return _warped(decoded, box, to_image, window)


def _clockwise(box: RotatedBox) -> Points:
    """Corners (4, 2) in clockwise order from the first: the other order would mirror the content."""
    corners = np.array(list(vars(box).values()), np.float64).reshape(4, 2)
    if np.abs(corners).max() > _MAX_CORNER:
        raise _unreadable(box, f"has a corner over {_MAX_CORNER:,.0f} pixels away; want pixels of the image")
    edges = np.roll(corners, -1, axis=0) - corners
    following = np.roll(edges, -1, axis=0)
    turns = edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0]  # twice the area at each corner
    if (turns < 0).all():
        corners, turns = corners[[0, 3, 2, 1]], -turns
    if turns.sum() < 1 or turns.min() < _LEAST * turns.sum():
        raise _unreadable(box, "has corners that do not go round a convex area; want them in order around the box")
    return corners


def _mean_sides(corners: Points) -> tuple[float, float]:
    sides = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
    return float(sides[0] + sides[2]) / 2, float(sides[1] + sides[3]) / 2


def _rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], np.float64)


def _homography(source: Points, target: Points) -> Points:
    """The projective map (3, 3) of four points (4, 2) onto four others, in float64: OpenCV's keeps 24 bits of them."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target - target[0], strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    found = np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)
    return np.asarray(_shift(*target[0]) @ found)


def _mapped(points: Points, by: Points) -> Points:
    lifted = np.column_stack([points, np.ones(len(points))]) @ by.T
    return np.asarray(lifted[:, :2] / lifted[:, 2:])


def _seen(decoded: Decoded, to_image: Points, edges: tuple[float, float, float, float]) -> Window | None:
    """The part of a box's own frame that holds all of it that is inside the image; None where nothing is."""
    polygon = _mapped(_rectangle(*edges), to_image)
    if (polygon < 0).any() or (polygon > _size(decoded)).any():
        polygon = _inside(polygon, *_size(decoded))
        if len(polygon) == 0:
            return None
        own = _mapped(polygon, np.linalg.inv(to_image).astype(np.float64))
        edges = (*own.min(axis=0).tolist(), *own.max(axis=0).tolist())
        if min(edges[2] - edges[0], edges[3] - edges[1]) < _LEAST:
            return None
    left, top, right, bottom = (math.floor(edge + 0.5) for edge in edges)
    return left, top, right, bottom


def _inside(polygon: Points, width: int, height: int) -> Points:
    """The part of a convex polygon (n, 2) inside an image (Sutherland and Hodgman 1974); (0, 2) where none is."""
    for axis, limit, sign in ((0, 0.0, 1), (0, float(width), -1), (1, 0.0, 1), (1, float(height), -1)):
        kept: list[Points] = []
        depths = sign * (polygon[:, axis] - limit)
        for index, (point, depth) in enumerate(zip(polygon, depths, strict=True)):
            before, depth_before = polygon[index - 1], depths[index - 1]
            if (depth > 0) != (depth_before > 0):
                kept.append(before + (point - before) * (depth_before / (depth_before - depth)))
            if depth > 0:
                kept.append(point)
        if not kept:
            return np.empty((0, 2))
        polygon = np.array(kept)
    return polygon


def _warped(decoded: Decoded, box: Box, to_image: Points, window: Window) -> NDArray[Any]:
    """The pixels of a window of the box's own frame."""
    left, top, right, bottom = window
    width, height = right - left, bottom - top
    image_width, image_height = _size(decoded)
    reach = _mapped(_rectangle(*window), to_image)
    low = np.clip(np.floor(reach.min(axis=0)).astype(int) - _SPARE, 0, [image_width - 1, image_height - 1])
    high = np.clip(np.ceil(reach.max(axis=0)).astype(int) + _SPARE, low + 1, [image_width, image_height])
    is_too_long = max(width, height, *(high - low)) > _MAX_WARPED_SIDE
    if is_too_long or width * height > _MAX_GROWTH * image_width * image_height:
        raise ImageError(
            Status.TOO_LARGE,
            f"box {box_name(box)} gives {width}x{height} pixels from {image_width}x{image_height}; want sides of at "
            f"most {_MAX_WARPED_SIDE} and at most {_MAX_GROWTH} times the image's pixels",
        )
    # From the centre of a pixel of the crop to the index of a pixel of the part that is read.
    back = _shift(-low[0] - 0.5, -low[1] - 0.5) @ to_image @ _shift(left + 0.5, top + 0.5)
    part = decoded.native[low[1] : high[1], low[0] : high[0]]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped: NDArray[Any] = cv2.warpPerspective(
        part, back, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return np.ascontiguousarray(warped)


def _shift(x: float, y: float) -> Points:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)
