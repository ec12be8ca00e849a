"""Finds tensors of an ONNX file that live in other files, without the onnx package and without loading the model."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import ModelError
from pipeline.kernels.protobuf import fields, text

_LOCATION, _EXTERNAL = 14, 1
# Which fields of a message lead to tensors, from onnx.proto3: message -> {field number: message inside}.
_INSIDE: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Function": {7: "Node"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}


def external_tensors(data: bytes) -> list[str]:
    """Names of the tensors of an ONNX model (protobuf bytes) whose values are in another file.

    ModelError if the bytes are no protobuf message. ONNX Runtime itself cannot be asked: given bytes, it looks such
    files up in the working directory.
    """
    try:
        return list(_external(memoryview(data), "Model"))
    except (IndexError, ValueError) as error:
        raise ModelError(
            f"the model ({len(data)} bytes) is not an ONNX file: its protobuf is cut off or malformed; export it again"
        ) from error


def _external(message: memoryview, kind: str) -> Iterator[str]:
    if kind == "Tensor":
        values = {field.number: field.value for field in fields(message)}
        if values.get(_LOCATION) == _EXTERNAL:
            yield text(values.get(8, 0))
        return
    inside = _INSIDE[kind]
    for number, value, _ in fields(message):
        if number in inside and not isinstance(value, int):
            yield from _external(value, inside[number])
