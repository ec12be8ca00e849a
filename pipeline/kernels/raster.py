"""Rasters that no other decoder here reads whole: Radiance HDR, PFM and PAM, in numpy.

OpenCV reads them as well, but writes a Radiance file to a temporary one first, and takes PAM of some kinds only.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_HEAD = 65_536
_PFM = re.compile(rb"P([Ff])\s+(\d{1,9})\s+(\d{1,9})\s+(-?)(?:\d{1,40}\.?|\d{0,40}\.\d{1,40})(?:[eE][-+]?\d{1,3})?\s")
_RADIANCE = re.compile(rb"#\?.*?\n\n-Y (\d{1,9}) \+X (\d{1,9})\n", re.DOTALL)
_PAM_END = re.compile(rb"^ENDHDR[ \t]*\n", re.MULTILINE)
_PAM_FIELD = re.compile(rb"^(WIDTH|HEIGHT|DEPTH|MAXVAL)[ \t]+(\d{1,9})[ \t]*$", re.MULTILINE)


class Raster(NamedTuple):
    """What a header says: pixels, channels, bytes per sample (4: float32), where the pixels start.

    top: the largest value, of integers. size: bytes of the pixels, 0 where they are packed.
    """

    width: int
    height: int
    channels: int
    depth: int
    start: int
    size: int
    top: int = 0
    order: str = "="


def pfm_header(data: bytes) -> Raster:
    """Of a portable float map. Raises ValueError where the header is broken."""
    found = _PFM.match(data[:_HEAD])
    if found is None:
        raise ValueError("no width, height and scale")
    width, height, channels = int(found[2]), int(found[3]), 3 if found[1] == b"F" else 1
    order = "<" if found[4] else ">"
    return Raster(width, height, channels, 4, found.end(), width * height * channels * 4, order=order)


def pam_header(data: bytes) -> Raster:
    """Of a portable arbitrary map (netpbm). Raises ValueError where the header is broken."""
    end = _PAM_END.search(data[:_HEAD])
    fields = {name: int(value) for name, value in _PAM_FIELD.findall(data[: end.end()])} if end else {}
    try:
        width, height, channels, top = (fields[name] for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
    except KeyError as error:
        raise ValueError(f"no {error.args[0].decode()} before ENDHDR") from error
    if end is None or not 0 < top < 65_536:
        raise ValueError(f"a MAXVAL of {top}")
    depth = 1 if top < 256 else 2
    return Raster(width, height, channels, depth, end.end(), width * height * channels * depth, top, ">")


def radiance_header(data: bytes) -> Raster:
    """Of a Radiance picture, rows from top to bottom. Raises ValueError where the header says otherwise."""
    found = _RADIANCE.match(data[:_HEAD])
    if found is None or b"32-bit_rle_xyze" in found[0]:
        raise ValueError("no RGBE picture with rows from top to bottom (-Y height +X width)")
    return Raster(int(found[2]), int(found[1]), 3, 4, found.end(), 0)


def plain_pixels(data: bytes, raster: Raster) -> NDArray[Any]:
    """Of PFM and PAM: (h, w) or (h, w, channels), float32 as stored, uint8 or uint16 stretched to all levels."""
    kind = np.dtype(f"{raster.order}{'f' if raster.depth == 4 else 'u'}{raster.depth}")
    shape = (raster.height, raster.width) if raster.channels == 1 else (*raster[1::-1], raster.channels)
    stored = np.frombuffer(data, kind, raster.size // raster.depth, raster.start).reshape(shape)
    if raster.depth == 4:
        return np.array(stored[::-1], np.float32, order="C")  # rows from bottom to top; a copy that may be written over
    full = 255 if raster.depth == 1 else 65_535
    levels = (np.arange(full + 1) * full + raster.top // 2) // raster.top
    pixels: NDArray[Any] = np.minimum(levels, full).astype(kind.newbyteorder("="))[stored]
    return pixels


def radiance_pixels(data: bytes, raster: Raster) -> NDArray[np.float32]:
    """RGB (h, w, 3) of mantissas and common exponents (Ward, Real pixels, Graphics Gems II, 1991).

    Raises IndexError where the file ends too early, ValueError where its runs do not make rows.
    """
    place, packed = raster.start, np.empty((raster.height, raster.width, 4), np.uint8)
    mark = bytes((2, 2, raster.width >> 8 & 255, raster.width & 255))
    for row in range(raster.height):
        if not (8 <= raster.width < 32_768 and data.startswith(mark, place)):
            packed[row:] = _flat_rows(data, place, packed[row:].shape)
            break
        line, place = _unpacked(data, place + 4, 4 * raster.width, raster.width)
        packed[row] = np.frombuffer(line, np.uint8).reshape(4, -1).T
    pixels = np.empty((raster.height, raster.width, 3), np.float32)
    for row in range(raster.height):
        scale = np.ldexp(np.float32(1), packed[row, :, 3:].astype(np.int32) - 136)
        pixels[row] = packed[row, :, :3] * np.where(packed[row, :, 3:] > 0, scale, np.float32(0))
    return pixels


def _flat_rows(data: bytes, place: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    size = int(np.prod(shape))
    if len(data) - place < size:
        raise IndexError(place)
    return np.frombuffer(data, np.uint8, size, place).reshape(shape)


def _unpacked(data: bytes, place: int, size: int, width: int) -> tuple[bytes, int]:
    """`size` bytes of runs from `place` on, none of them over the end of a channel of `width` bytes."""
    line = bytearray()
    while len(line) < size:
        count = data[place]
        before = len(line) // width
        if count > 128:
            line += data[place + 1 : place + 2] * (count - 128)
            place += 2
        elif count:
            line += data[place + 1 : place + 1 + count]
            place += 1 + count
        if not count or (len(line) - 1) // width != before:
            raise ValueError("runs that make no row") if place < len(data) else IndexError(place)
    return bytes(line), place
