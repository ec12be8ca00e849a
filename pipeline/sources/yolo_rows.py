"""The rows of a label file of YOLO, once the size of its image is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.kernels.yolo_labels import YoloBoxes, pixel_corners, pixel_sides
from pipeline.sources.box_columns import CORNERS, XYWH, Numbers, boxes_of
from pipeline.sources.listed import Origin, Tally, batch_of


class ImageSize(NamedTuple):
    """Pixels of an upright image."""

    width: int
    height: int


BEYOND = "boxes of classes beyond the names"


def label_rows(
    address: str, boxes: YoloBoxes, size: ImageSize, names: Sequence[str], origin: Origin, tally: Tally
) -> pa.RecordBatch:
    """A batch of LISTED, a row per box: label = the name of its class, else its number; `row` is the line.

    Where there are names, those of classes beyond them are counted. origin: of the label file.
    """
    beyond = np.flatnonzero(boxes.classes >= len(names))
    if names and beyond.size:
        first = int(beyond[0])
        where = f"{origin.at(int(boxes.lines[first]))}: class {boxes.classes[first]} of {len(names)}"
        tally.add(BEYOND, len(beyond), where)
    labels = [_name(number, names) for number in boxes.classes.tolist()]
    none = ~boxes.is_corners
    corners = _columns(CORNERS, pixel_corners(boxes, *size), none)
    sides = _columns(XYWH, pixel_sides(boxes, *size), boxes.is_corners)
    fragment, problem = boxes_of({**corners, **sides}, len(labels))
    said = pa.array([boxes.problems.get(place) for place in range(len(labels))], pa.string())
    columns = {"label": pa.array(labels, pa.string()), "fragment": fragment, "problem": pc.coalesce(said, problem)}
    return batch_of([address] * len(labels), boxes.lines, columns)


def _columns(
    names: Sequence[str], values: np.typing.NDArray[np.float64], is_missing: np.typing.NDArray[np.bool_]
) -> dict[str, Numbers]:
    return {name: Numbers(np.ascontiguousarray(values[:, at]), is_missing, {}) for at, name in enumerate(names)}


def _name(number: int, names: Sequence[str]) -> str | None:
    if number < 0:
        return None
    return names[number] if number < len(names) else str(number)
