"""Objects through a YOLO-style ONNX model that the user gives."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.kernels.detect import (
    Detect,
    Detection,
    DetectParams,
    Found,
    Frame,
    best_of,
    fit,
    in_image,
    one_per_box,
)
from pipeline.kernels.detect_session import DetectorSession, open_detector

OBJECT_PARAMS = DetectParams(confidence=0.25, iou=0.45)
"""The thresholds of the YOLO projects' own commands."""
_MOST_FINAL = 1000
"""Models that suppress overlaps themselves give 100 to 300 rows; the others over 1,000 from 160x160 upwards."""
_GREY = 114
"""Around the image, as in training."""


class Layout(str, Enum):
    """What an output holds: how its axes lie, and what the numbers of a candidate are, in pixels of the canvas."""

    ROWS = "rows"
    """(1, n, 5 + classes): centre x, centre y, width, height, objectness, a score per class (YOLOv5, 6, 7)."""
    COLUMNS = "columns"
    """(1, 4 + classes, n): centre x, centre y, width, height, a score per class (YOLOv8, 9, 11, 12)."""
    FINAL = "final"
    """(1, n, 6): left, top, right, bottom, score, class, overlaps suppressed (YOLOv10, 26, or exported with NMS)."""


class _Output(NamedTuple):
    name: str
    layout: Layout


def load_object(data: bytes, params: DetectParams = OBJECT_PARAMS, layout: Layout | None = None) -> Detect:
    """An object detector from the bytes of an ONNX file: one input (1, 3, h, w) of RGB from 0 to 1, letterboxed.

    Sides that the graph leaves open are those of its metadata, else 640. Labels are the `names` of its metadata, else
    the numbers of the classes. The layout of its output is told from its shape; `layout` decides where that can be
    two. ModelError if the file cannot be loaded, or its input or output is another.
    """
    session = open_detector(data)
    if session.task != "detect":
        raise ModelError(f"the object model is made for {session.task!r}; want one for detection, of upright boxes")
    output = _find_output(session, layout)
    frame = Frame(session.width, session.height, _GREY, 0.5, np.inf)

    def detect(rgb: NDArray[np.uint8]) -> list[Detection]:
        fitted = fit(rgb, frame)
        pixels = np.ascontiguousarray(fitted.canvas.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
        values = session.run(pixels)[output.name]
        found = best_of(_candidates(values, output, params), params)
        rows = in_image(found, fitted, rgb.shape[1], rgb.shape[0])
        return one_per_box(
            [Detection(box, session.names.get(number, str(number)), confidence) for box, confidence, number in rows]
        )

    return detect


def _find_output(session: DetectorSession, layout: Layout | None) -> _Output:
    """The first output of three axes, and what it holds; the model is run once to see its shape."""
    values = session.run(np.zeros((3, session.height, session.width), np.float32))
    for name, value in values.items():
        if value.ndim == 3 and value.shape[0] == 1 and value.dtype.kind == "f":
            rows, columns = value.shape[1:]
            found = layout or _layout_of(rows, columns, len(session.names))
            classes = {Layout.ROWS: columns - 5, Layout.COLUMNS: rows - 4, Layout.FINAL: max(1, len(session.names))}
            is_shaped = classes[found] >= 1 and (found != Layout.FINAL or columns == 6)
            if is_shaped and (found == Layout.FINAL or classes[found] == (len(session.names) or classes[found])):
                return _Output(name, found)
    given = ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in values.items())
    said = f" for its {len(session.names)} classes" if session.names else ""
    raise ModelError(
        f"the object model gives {given}; want{said} (1, n, 5 + classes) as YOLOv5 does, (1, 4 + classes, n) as YOLOv8 "
        "does, or (1, n, 6) with overlaps suppressed: export it to ONNX with one of these outputs"
    )


def _layout_of(rows: int, columns: int, classes: int) -> Layout:
    """The layout of an output by its shape and the number of classes, 0 where the model does not say it."""
    if classes and rows == 4 + classes and columns != 5 + classes:
        return Layout.COLUMNS
    if columns == 6 and rows <= _MOST_FINAL:
        return Layout.FINAL
    if classes:
        return Layout.ROWS if columns == 5 + classes else Layout.COLUMNS
    return Layout.COLUMNS if rows < columns else Layout.ROWS


def _candidates(values: NDArray[Any], output: _Output, params: DetectParams) -> Found:
    """The candidates that may be sure enough, as corners on the canvas; each has the one class that it is most of."""
    if output.layout == Layout.FINAL:
        table = values[0].astype(np.float64)
        table = table[(table[:, 5] >= 0) & np.isfinite(table[:, 5])]
        return Found(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))
    # Of 25,200 candidates a hundred are left: what is sorted out by one comparison needs no class.
    if output.layout == Layout.ROWS:
        table = values[0][values[0, :, 4] >= params.confidence].astype(np.float64)
        scores = table[:, 5:] * table[:, 4:5]
    else:
        table = values[0][:, values[0, 4:].max(axis=0) >= params.confidence].T.astype(np.float64)
        scores = table[:, 4:]
    classes = scores.argmax(axis=1)
    centres, halves = table[:, :2], table[:, 2:4] / 2
    return Found(np.hstack([centres - halves, centres + halves]), scores[np.arange(len(table)), classes], classes)
