"""Reads and writes the wire format of protobuf, as far as an ONNX file needs it, without the onnx package."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Field(NamedTuple):
    """A field of a message. value: the bytes of a length-delimited one, the number of a varint, else 0; raw: the whole
    field as it stands in the message, key included.
    """

    number: int
    value: memoryview | int
    raw: memoryview


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message, in their order. IndexError or ValueError where it is cut off or malformed."""
    at = 0
    while at < len(message):
        start = at
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
        yield Field(number, value, message[start:at])


def text(value: memoryview | int) -> str:
    """A string field; "" where the field holds no bytes."""
    return "" if isinstance(value, int) else bytes(value).decode("utf-8", "replace")


def varint_field(number: int, value: int) -> bytes:
    """A field that holds a whole number from 0 on."""
    return _encoded(number << 3 | _VARINT) + _encoded(value)


def bytes_head(number: int, size: int) -> bytes:
    """What stands before the `size` bytes of a length-delimited field."""
    return _encoded(number << 3 | _BYTES) + _encoded(size)


def bytes_field(number: int, value: bytes) -> bytes:
    """A field that holds a string, bytes or a message."""
    return bytes_head(number, len(value)) + value


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


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
