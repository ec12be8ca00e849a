"""The boxes of ISO base media files (BMFF), of which HEIF, AVIF and JPEG 2000 are made (ISO/IEC 14496-12 4.2)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_AV1_DEEP, _AV1_TWELVE = 0x40, 0x20
_JPEG2000_START, _JPEG2000_END = b"\xff\x4f\xff\x51", b"\xff\xd9"


def boxes(data: bytes, start: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Name, and start and end of the payload, of each outermost box from `start` on; an end may lie behind the file.

    Raises ValueError where a length is impossible.
    """
    while start + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, start)
        head = 8
        if length == 1:
            length, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        elif length == 0:  # up to the end of the file
            length = len(data) - start
        if length < head:
            raise ValueError(f"a box of {length} bytes at byte {start}")
        yield name, start + head, start + length
        start += length


def missing_bytes(data: bytes) -> int:
    """Bytes that the outermost boxes go on behind the file. Raises ValueError where a length is impossible."""
    return max(0, max((end for _, _, end in boxes(data)), default=0) - len(data))


def brands(data: bytes) -> set[bytes]:
    """The brands of a file whose first box is `ftyp`, the major one and the compatible ones; of others none."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(struct.unpack_from(">I", data)[0], len(data))
    return {data[8:12], *(data[start : start + 4] for start in range(16, end - 3, 4))}


def av1_bits(data: bytes) -> int:
    """Bits per sample, the most of all images of an AVIF file (AV1-ISOBMFF 2.3.3): 8, 10 or 12."""
    bits, place = 8, data.find(b"av1C")
    while 0 <= place < len(data) - 6:
        flags = data[place + 6]
        bits = max(bits, (12 if flags & _AV1_TWELVE else 10) if flags & _AV1_DEEP else 8)
        place = data.find(b"av1C", place + 4)
    return bits


def _meta(data: bytes) -> tuple[int, int]:
    return next(((start, min(end, len(data))) for name, start, end in boxes(data) if name == b"meta"), (0, 0))


def without_exif(data: bytes) -> bytes:
    """An AVIF file in which nothing is EXIF: libavif refuses a file for a broken one; boxes say how it is turned."""
    start, end = _meta(data)
    if data.find(b"Exif", start, end) < 0:
        return data
    return b"".join((data[:start], data[start:end].replace(b"Exif", b"skip"), data[end:]))


def largest_area(data: bytes) -> int:
    """Pixels of the largest item that a HEIF file tells of, before anything is cut off it; 0 where it tells none."""
    start, end = _meta(data)
    area, place = 0, data.find(b"ispe", start, end)
    while 0 <= place <= len(data) - 16:
        width, height = struct.unpack_from(">II", data, place + 8)
        area, place = max(area, width * height), data.find(b"ispe", place + 4, end)
    return area


def jpeg2000_size(data: bytes) -> tuple[int, int, int, int, bool]:
    """Width, height, channels, bits per sample of the codestream (ISO/IEC 15444-1 A.5.1), and whether it has its end.

    Raises IndexError or struct.error where the file ends before it or in its header, ValueError for impossible boxes.
    """
    start, end = 0, len(data)
    if not data.startswith(_JPEG2000_START):
        found = next(((start, end) for name, start, end in boxes(data) if name == b"jp2c"), None)
        if found is None:
            raise IndexError("no codestream")
        start, end = found
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    channels = struct.unpack_from(">H", data, start + 40)[0]
    bits = max(1 + (data[start + 42 + 3 * channel] & 0x7F) for channel in range(channels)) if channels else 0
    scans = data.find(b"\xff\x93", start, end)  # behind it no 0xFF is followed by more than 0x8F, but in markers
    ended = scans >= 0 and data.find(_JPEG2000_END, scans, end) >= 0
    return right - left, bottom - top, channels, bits, ended and end <= len(data)
