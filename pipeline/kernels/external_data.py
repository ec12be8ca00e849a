"""Finds tensors of an ONNX file that live in other files, without the onnx package and without loading the model."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import ModelError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
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
        values = dict(_fields(message))
        if values.get(_LOCATION) == _EXTERNAL:
            name = values.get(8, b"")
            yield bytes(name).decode("utf-8", "replace") if not isinstance(name, int) else ""
        return
    inside = _INSIDE[kind]
    for number, value in _fields(message):
        if number in inside and not isinstance(value, int):
            yield from _external(value, inside[number])


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Field number and value of each field: bytes for the length-delimited ones, the number for varints, else 0."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        value: memoryview | int = 0
        if wire == _VARINT:
            value, at = _varint(message, at)
        elif wire == _BYTES:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        elif wire in {_FIXED64, _FIXED32}:
            at += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(message):
            raise IndexError(at)
        yield number, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = message[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
        if shift > 63:
            raise ValueError("varint longer than 64 bits")
