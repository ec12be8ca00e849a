"""Faces through YuNet, a face detector of 76,000 parameters (Wu, Peng and Yu 2023)."""

from __future__ import annotations

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

FACE_PARAMS = DetectParams(confidence=0.7, iou=0.3)
"""Of 100 faces (scikit-image's lfw_subset) that are 25, 50, 75, 100 and 200 px with their hair, 96, 100, 99, 99 and 97
are found, and in 100 patches without a face nothing. 600 photos of scenes give 9 boxes: 7 faces, the back of a head and
a shell."""
_STRIDES = (8, 16, 32)
_GROWTH = 2.0
"""Not enlarged, 1 of the 100 faces of 25 px was found; at 4 times the photos have 27 boxes over .6 instead of 16."""


def load_face(data: bytes, params: DetectParams = FACE_PARAMS) -> Detect:
    """A face detector from the bytes of YuNet's ONNX file of March 2023. Its labels are `face`.

    It finds faces from about 8 px, or 1/40 of the longest side of a large image, up to the whole image.
    ModelError if the file is another model.
    """
    session = open_detector(data)
    _check_heads(session)
    frame = Frame(session.width, session.height, 0, 0.0, _GROWTH)

    def detect(rgb: NDArray[np.uint8]) -> list[Detection]:
        fitted = fit(rgb, frame)
        heads = session.run(fitted.canvas[..., ::-1].transpose(2, 0, 1).astype(np.float32))
        found = best_of(_decoded(heads, frame), params)
        rows = in_image(found, fitted, rgb.shape[1], rgb.shape[0])
        return one_per_box([Detection(box, "face", confidence) for box, confidence, _ in rows])

    return detect


def _check_heads(session: DetectorSession) -> None:
    wanted = {f"{head}_{stride}" for head in ("cls", "obj", "bbox") for stride in _STRIDES}
    missing = sorted(wanted - set(session.outputs))
    if missing:
        raise ModelError(f"the face model has no outputs {', '.join(missing)}; want YuNet as of March 2023")


def _decoded(heads: dict[str, NDArray[np.float32]], frame: Frame) -> Found:
    """Boxes on the canvas, one a cell of each grid, as OpenCV's FaceDetectorYN decodes them."""
    boxes, confidences = [], []
    for stride in _STRIDES:
        columns, rows = frame.width // stride, frame.height // stride
        row, column = np.divmod(np.arange(columns * rows), columns)
        sure = [np.clip(heads[f"{head}_{stride}"].reshape(-1).astype(np.float64), 0, 1) for head in ("cls", "obj")]
        offsets = heads[f"bbox_{stride}"].reshape(-1, 4).astype(np.float64)
        centres = (np.column_stack([column, row]) + offsets[:, :2]) * stride
        with np.errstate(over="ignore"):  # an infinite side is dropped with the other impossible boxes
            halves = np.exp(offsets[:, 2:]) * stride / 2
        boxes.append(np.hstack([centres - halves, centres + halves]))
        confidences.append(np.sqrt(sure[0] * sure[1]))
    together = np.concatenate(confidences)
    return Found(np.concatenate(boxes), together, np.zeros(len(together), np.int64))
