"""Lines of text through RapidOCR, which runs PaddleOCR's models on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.boxes import RotatedBox
from pipeline.kernels.detect import Detect, Detection, DetectParams, one_per_box
from pipeline.kernels.shrink import fitted_size

OCR_PARAMS = DetectParams(confidence=0.5)
"""RapidOCR's own threshold."""
OCR_SETTINGS: dict[str, object] = {
    "Global.log_level": "critical",
    "Global.use_preprocess_img": False,
    "EngineConfig.onnxruntime.intra_op_num_threads": 1,
    "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    "Det.limit_type": "max",
    "Det.limit_side_len": 960,
}
"""One thread. Text is looked for with a longest side of 960 at most, PaddleOCR's own limit: RapidOCR's enlarges the
shortest to 736, which takes 2.3 times as long at 640x480 and read text in a photo that has none. Its own shrinking is
off: it rounds to multiples of 32, and raises where that is none."""
_MOST = 2000
"""Longest side of the image that is read: RapidOCR's."""
_LEAST = 8
"""Shortest side that holds a line of text."""


def text_detector(read: Callable[[NDArray[np.uint8]], Any], params: DetectParams = OCR_PARAMS) -> Detect:
    """A detector of lines of text from RapidOCR's call (BGR in). Boxes are rotated, labels are the text that was read.

    A line of which nothing could be read is left out.
    """

    def detect(rgb: NDArray[np.uint8]) -> list[Detection]:
        height, width = rgb.shape[:2]
        size = fitted_size(width, height, _MOST)
        if min(size) < _LEAST:
            return []
        if size != (width, height):
            rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        said = read(np.ascontiguousarray(rgb[..., ::-1]))
        boxes, texts, scores = (getattr(said, name, None) for name in ("boxes", "txts", "scores"))
        if boxes is None or texts is None or scores is None:
            return []
        back = np.array([width / size[0], height / size[1]])
        lines = [
            Detection(RotatedBox(*np.round(corners * back).reshape(-1).tolist()), text, round(float(score), 4))
            for corners, text, score in zip(boxes, texts, scores, strict=True)
            if score >= params.confidence
        ]
        lines.sort(key=lambda line: -line.confidence)
        return one_per_box(lines)[: params.max_boxes]

    return detect
