"""A detector's ONNX graph, opened on one thread, and what it says of its input, outputs and classes."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.kernels.embed import _ORT_ERRORS, _first_line, _open_session

_DTYPES: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_ANY_SIDE = 640
"""Side of the canvas where graph and metadata leave it open: what YOLO models are trained on."""
_MAX_SIDE = 4096


@dataclass(frozen=True)
class DetectorSession:
    """A graph of one input (1, 3, height, width); `outputs` are its names, `names` its classes where it says them."""

    width: int
    height: int
    outputs: tuple[str, ...]
    names: dict[int, str]
    task: str
    session: ort.InferenceSession

    def run(self, pixels: NDArray[np.floating[Any]]) -> dict[str, NDArray[Any]]:
        """Every output, by name, for pixels (3, height, width) in the model's own scale. ModelError if it fails."""
        entry = self.session.get_inputs()[0]
        try:
            values = self.session.run(None, {entry.name: pixels[None].astype(_DTYPES[entry.type], copy=False)})
        except _ORT_ERRORS as error:
            size = f"{self.width}x{self.height}"
            raise ModelError(f"the detector fails on an image of {size}: {_first_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))


def open_detector(data: bytes) -> DetectorSession:
    """Load a detector from the bytes of its ONNX file. ModelError if it cannot be loaded or takes another input."""
    session = _open_session(data)
    metadata = session.get_modelmeta().custom_metadata_map
    entries = session.get_inputs()
    described = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in entries)
    shape = entries[0].shape if len(entries) == 1 else []
    if not (len(shape) == 4 and entries[0].type in _DTYPES and shape[1] == 3 and _may_be(1, shape[0])):
        raise ModelError(f"the detector takes {described}; want one input of floats, (1, 3, height, width)")
    height, width = _sides(shape, metadata.get("imgsz", ""))
    if not (1 <= width <= _MAX_SIDE and 1 <= height <= _MAX_SIDE):
        raise ModelError(f"the detector takes images of {width}x{height}; want sides of 1 to {_MAX_SIDE}")
    outputs = tuple(entry.name for entry in session.get_outputs())
    task = metadata.get("task", "detect")
    return DetectorSession(width, height, outputs, _names(metadata.get("names", "")), task, session)


def _may_be(size: int, axis: object) -> bool:
    """Whether an axis has this size, or is left open (a name or None)."""
    return axis == size or not isinstance(axis, int)


def _sides(shape: list[Any], said: str) -> tuple[int, int]:
    """Height and width from the graph; what it leaves open from the metadata, such as `[640, 640]`."""
    value = _literal(said)
    sides = value if isinstance(value, (list, tuple)) and len(value) == 2 else (_ANY_SIDE, _ANY_SIDE)
    height, width = (
        fixed if isinstance(fixed, int) else open_ if type(open_) is int else _ANY_SIDE
        for fixed, open_ in zip(shape[2:], sides, strict=True)
    )
    return height, width


def _names(said: str) -> dict[int, str]:
    """Class names from the metadata: a dictionary or list, as Python or JSON writes it; none where it is neither."""
    value = _literal(said)
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not all(str(key).isdecimal() for key in value):
        return {}
    return {int(key): str(name) for key, name in value.items()}


def _literal(said: str) -> object:
    """A literal of Python, which those of JSON that matter here are too; None where the text is none."""
    try:
        value: object = ast.literal_eval(said.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value
