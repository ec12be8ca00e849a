"""What every detector shares: what it gives, its thresholds, how an image is fitted into a model, and suppression."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.boxes import Box, UprightBox
from pipeline.kernels.decode import as_rgb
from pipeline.kernels.pillow_decode import Decoded, to_shown


class Detection(NamedTuple):
    """A box that a detector found, in whole pixels and inside the image; its label, and a confidence from 0 to 1."""

    box: Box
    label: str
    confidence: float


Detect = Callable[[NDArray[np.uint8]], list[Detection]]
"""A loaded detector: RGB uint8 (h, w, 3) in, detections out, the most confident first."""


@dataclass(frozen=True)
class DetectParams:
    """Detections below `confidence` are dropped, and those that overlap a better one of their label by over `iou`.

    At most `max_boxes` of an image are kept. `iou` does not apply to text.
    """

    confidence: float
    iou: float = 0.45
    max_boxes: int = 300

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value!r}, want a number over 0, up to 1"
            for name, value in (("confidence", self.confidence), ("iou", self.iou))
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1
        ]
        if type(self.max_boxes) is not int or self.max_boxes < 1:
            problems.append(f"max_boxes is {self.max_boxes!r}, want a whole number, at least 1")
        if problems:
            raise UsageError("the thresholds of the detector are wrong: " + "; ".join(problems))


def detect_in(decoded: Decoded, detect: Detect) -> list[Detection]:
    """Detections in a decoded image, which is left as it is for its boxes to be cut from."""
    is_shown = decoded.native.dtype == np.uint8 and decoded.space in ("L", "RGB")
    native = decoded.native if is_shown else decoded.native.copy()  # to_shown writes over the others
    return detect(as_rgb(to_shown(decoded._replace(native=native))))


class Fitted(NamedTuple):
    """An image inside a model's canvas: uint8 (height, width, 3), its scale, and the place of its top left corner."""

    canvas: NDArray[np.uint8]
    scale: float
    left: int
    top: int


class Frame(NamedTuple):
    """How a model wants its canvas: size, grey level around the image, the image's place, its greatest enlargement.

    `place` is the share of the free room that is left of it and above it: 0 is the top left corner, .5 the middle.
    """

    width: int
    height: int
    fill: int
    place: float
    growth: float


def fit(rgb: NDArray[np.uint8], frame: Frame) -> Fitted:
    """The whole of an image on a model's canvas, aspect ratio kept: shrunk by INTER_AREA, enlarged bilinearly."""
    height, width = rgb.shape[:2]
    scale = min(frame.width / width, frame.height / height, frame.growth)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != (width, height):
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        rgb = cv2.resize(rgb, size, interpolation=how)  # type: ignore[assignment]
    canvas = np.full((frame.height, frame.width, 3), frame.fill, np.uint8)
    left, top = (
        max(0, round((room - side) * frame.place - 0.1))  # a half goes to the left, as in YOLOv5's letterbox
        for room, side in zip((frame.width, frame.height), size, strict=True)
    )
    canvas[top : top + size[1], left : left + size[0]] = rgb
    return Fitted(canvas, scale, left, top)


class Found(NamedTuple):
    """Candidates on a canvas: boxes float64 (n, 4) as left, top, right, bottom; confidences (n,), classes int (n,)."""

    boxes: NDArray[np.float64]
    confidences: NDArray[np.float64]
    classes: NDArray[np.int64]


def best_of(found: Found, params: DetectParams) -> Found:
    """Candidates that are sure enough and overlap no better one of their class, best first; equal ones as they came."""
    with np.errstate(invalid="ignore", over="ignore"):
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        is_box = np.isfinite(found.boxes).all(axis=1) & (sides > 0).all(axis=1)
        kept = np.flatnonzero(is_box & (found.confidences >= params.confidence))
    if len(kept) == 0:
        return _taken(found, kept)
    corners_and_sides = np.hstack([found.boxes[kept, :2], sides[kept]])
    chosen = cv2.dnn.NMSBoxesBatched(
        corners_and_sides.tolist(),
        found.confidences[kept].tolist(),
        found.classes[kept].tolist(),
        0.0,
        params.iou,
    )
    survivors = kept[np.asarray(chosen, np.int64).reshape(-1)]
    order = np.lexsort((survivors, -found.confidences[survivors]))
    return _taken(found, survivors[order][: params.max_boxes])


def _taken(found: Found, rows: NDArray[np.int64]) -> Found:
    return Found(found.boxes[rows], found.confidences[rows], found.classes[rows])


def in_image(found: Found, fitted: Fitted, width: int, height: int) -> list[tuple[UprightBox, float, int]]:
    """Box in whole pixels of the image, confidence and class of each candidate; those without a pixel are left out.

    Whole, because a box is the identity of a crop: the last bits of a model's output differ between CPUs.
    """
    rows = []
    for edges, confidence, number in zip(*found, strict=True):
        left, top, right, bottom = (
            math.floor(min(max((edge - offset) / fitted.scale, 0.0), float(limit)) + 0.5)
            for edge, offset, limit in zip(
                edges.tolist(), (fitted.left, fitted.top) * 2, (width, height) * 2, strict=True
            )
        )
        if right > left and bottom > top:
            box = UprightBox(float(left), float(top), float(right - left), float(bottom - top))
            rows.append((box, round(float(confidence), 4), int(number)))
    return rows


def one_per_box(detections: list[Detection]) -> list[Detection]:
    """The first detection of each box, in their order: two of one box would be two images of one name."""
    firsts: dict[Box, Detection] = {}
    for detection in detections:
        firsts.setdefault(detection.box, detection)
    return list(firsts.values())
