"""The rows of label files of YOLO, once the sizes of their images are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.kernels.yolo_labels import YoloBoxes, pixel_corners, pixel_sides
from pipeline.sources.box_columns import CORNERS, XYWH, Numbers, boxes_of
from pipeline.sources.listed import BAD, Origin, Tally, batch_of


class ImageSize(NamedTuple):
    """Pixels of an upright image."""

    width: int
    height: int


class LabelledImage(NamedTuple):
    """An image by its whole path or URL, the boxes of its label file, its size, and that file as messages name it."""

    address: str
    boxes: YoloBoxes
    size: ImageSize
    origin: Origin


BEYOND = "boxes of classes beyond the names"


def label_rows(images: Sequence[LabelledImage], names: Sequence[str], tally: Tally) -> pa.RecordBatch:
    """A batch of LISTED, a row per box: label = the name of its class, else its number; `row` is the line.

    Where there are names, boxes of classes beyond them are counted, and bad boxes always.
    """
    counts = [len(image.boxes.lines) for image in images]
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    for image in images if names else ():
        _count_beyond(image, names, tally)
    labels = [_name(number, names) for image in images for number in image.boxes.classes.tolist()]
    is_corners = _joined([image.boxes.is_corners for image in images], np.zeros(0, np.bool_))
    corners = _joined([pixel_corners(image.boxes, *image.size) for image in images], np.zeros((0, 8)))
    sides = _joined([pixel_sides(image.boxes, *image.size) for image in images], np.zeros((0, 4)))
    columns = {**_columns(CORNERS, corners, ~is_corners), **_columns(XYWH, sides, is_corners)}
    fragment, problem = boxes_of(columns, len(labels))
    said: list[str | None] = [None] * len(labels)
    for start, image in zip(starts.tolist(), images, strict=False):
        for place, why in image.boxes.problems.items():
            said[start + place] = why
    problem = pc.coalesce(pa.array(said, pa.string()), problem)
    _count_bad(images, starts, problem, tally)
    return batch_of(
        [image.address for image, count in zip(images, counts, strict=True) for _ in range(count)],
        _joined([image.boxes.lines for image in images], np.zeros(0, np.int64)),
        {"label": pa.array(labels, pa.string()), "fragment": fragment, "problem": problem},
    )


def _joined(arrays: list[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([empty, *arrays])


def _count_beyond(image: LabelledImage, names: Sequence[str], tally: Tally) -> None:
    classes = image.boxes.classes
    beyond = np.flatnonzero(classes >= len(names))
    if beyond.size:
        first = int(beyond[0])
        where = image.origin.at(int(image.boxes.lines[first]))
        tally.add(BEYOND, len(beyond), f"{where}: class {classes[first]} of {len(names)}")


def _count_bad(images: Sequence[LabelledImage], starts: NDArray[np.int64], problem: pa.Array, tally: Tally) -> None:
    bad = np.flatnonzero(problem.is_valid().to_numpy(zero_copy_only=False))
    if bad.size:
        first = int(bad[0])
        at = int(np.searchsorted(starts, first, "right")) - 1
        where = images[at].origin.at(int(images[at].boxes.lines[first - starts[at]]))
        tally.add(BAD, len(bad), f"{where}: {problem[first]}")


def _columns(names: Sequence[str], values: NDArray[np.float64], is_missing: NDArray[np.bool_]) -> dict[str, Numbers]:
    return {name: Numbers(np.ascontiguousarray(values[:, at]), is_missing, {}) for at, name in enumerate(names)}


def _name(number: int, names: Sequence[str]) -> str | None:
    if number < 0:
        return None
    return names[number] if number < len(names) else str(number)
