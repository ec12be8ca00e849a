"""From the bytes of an image file to pixels, with Pillow's colours.

JPEG, and what Pillow would cut to 8 bits (16-bit PNG and TIFF, TIFF of real numbers, AVIF of 10 and 12 bits), go
through OpenCV; HEIF through libheif; Radiance, PFM and PAM are read here; everything else goes through Pillow. It and
OpenCV use libjpeg-turbo and give equal pixels; OpenCV needs 0.65x the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.kernels import raster
from pipeline.kernels.bmff import without_exif
from pipeline.kernels.footprint import opencv_footprint, pillow_footprint, raster_footprint
from pipeline.kernels.header import Header, ImageError, read_header
from pipeline.kernels.heif_decode import heif_decode, heif_header
from pipeline.kernels.native_decode import native_decode
from pipeline.kernels.pillow_decode import Decoded, bands, pillow_decode, pillow_header, to_shown
from pipeline.kernels.shrink import fitted_size
from pipeline.schemas import Status

_JPEG_FLAGS = {
    1: cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
    3: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION,
}
_REDUCED_GREY = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
_SPACES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_RASTERS = {"hdr": raster.radiance_header, "pfm": raster.pfm_header, "pam": raster.pam_header}


class Limits(Protocol):
    """The parameters that bound what is decoded; `MeasureParams` is one."""

    @property
    def max_pixels(self) -> int:
        """Width times height above which an image is too_large."""

    @property
    def max_memory(self) -> float:
        """Bytes that the file and its decoding may take, above which an image is too_large."""

    @property
    def min_width(self) -> int:
        """Width after orientation below which an image is too_small."""

    @property
    def min_height(self) -> int:
        """Height after orientation below which an image is too_small."""


def decode(data: bytes, limits: Limits) -> Decoded:
    """Pixels of one image file, of its first frame and after orientation. Sizes are checked before decoding.

    Raises ImageError with the status empty, unsupported, unreadable, truncated, too_small or too_large (crashed where
    memory ran out).
    """
    header = read_header(data)
    if header.width:
        _check_size(header, limits)
    if header.whole > limits.max_pixels:
        raise ImageError(Status.TOO_LARGE, f"{header.format}: an image of {header.whole:,} pixels, {_at_most(limits)}")
    if header.missing:
        raise ImageError(Status.TRUNCATED, f"{header.format}: {header.missing} missing at the end of {len(data)} bytes")
    if header.format == "jpeg" and header.bits != 8:
        raise ImageError(Status.UNSUPPORTED, f"jpeg with {header.bits} bits per sample")
    check = partial(_check_all, len(data), limits)
    if header.format == "jpeg" and header.channels in _JPEG_FLAGS:
        check(header, opencv_footprint(header))
        return _decode_jpeg(data, header, check)
    if header.format in _RASTERS:
        check(header, raster_footprint(header))
        return _decode_raster(data, header)
    if header.format == "heif":
        return heif_decode(data, header, check)
    if header.format == "webp":  # Pillow allocates its canvas on opening
        check(header, pillow_footprint(header, "RGBA", header.channels))
    elif header.format == "avif":
        data = without_exif(data)
    deep = _decode_deep(data, header, check) if _is_deep(header) else None
    return _as_positive(deep or pillow_decode(data, header, check), header)


def sized_header(data: bytes) -> Header:
    """Header of a whole file, with its size where only a library can tell that. Raises ImageError."""
    header = read_header(data)
    if header.width:
        return header
    if header.format == "heif":
        return heif_header(data, header)
    return pillow_header(without_exif(data) if header.format == "avif" else data, header)


def decode_rgb(data: bytes, limits: Limits) -> NDArray[np.uint8]:
    """RGB of one image file as uint8 (h, w, 3), after orientation; alpha dropped, 16 bits by their high byte.

    Raises ImageError, see `decode`.
    """
    return as_rgb(to_shown(decode(data, limits)))


def as_rgb(shown: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB (h, w, 3) of grey (h, w) or RGB pixels."""
    if shown.ndim == 3:
        return shown
    return cv2.cvtColor(shown, cv2.COLOR_GRAY2RGB)  # type: ignore[return-value]


def as_luminance(shown: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luminance (h, w) of grey or RGB (h, w, 3) pixels: .299 R + .587 G + .114 B (ITU-R BT.601), rounded."""
    if shown.ndim == 2:
        return shown
    return cv2.cvtColor(shown, cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]


def luminance_thumbnail(data: bytes, side: int, max_pixels: int) -> NDArray[np.uint8]:
    """Luminance of one image file as uint8 (h, w), longest side at most `side`, by INTER_AREA; never enlarged.

    A JPEG is decoded at 1/2, 1/4 or 1/8 where that leaves at least twice `side`: a fixed function of its size.
    Raises ImageError, see `decode`.
    """
    header = read_header(data)
    if header.format == "jpeg" and header.channels in _JPEG_FLAGS and header.bits == 8 and not header.missing:
        _check_size(header, Thumbnail(max_pixels))
        longest = max(header.width, header.height)
        factor = next((factor for factor in (8, 4, 2) if longest // factor >= 2 * side), 1)
        pixels = _complete(data, _REDUCED_GREY[factor] | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is not None:
            return orient(_fitted(pixels, fitted_size(header.width, header.height, side)), header.orientation)
    return thumbnail_of(decode(data, Thumbnail(max_pixels)), side)


def thumbnail_of(decoded: Decoded, side: int) -> NDArray[np.uint8]:
    """The same of decoded pixels, which are written over."""
    shown = to_shown(decoded)
    return _fitted(as_luminance(shown), fitted_size(shown.shape[1], shown.shape[0], side))


class Thumbnail:
    """Limits of a thumbnail: even one pixel has one, and the memory was checked when the image was measured."""

    min_width = min_height = 1
    max_memory = math.inf

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels = max_pixels


def _fitted(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _check_all(file_bytes: int, limits: Limits, header: Header, bytes_per_pixel: float) -> None:
    _check_size(header, limits)
    needed = file_bytes + header.width * header.height * bytes_per_pixel
    if needed > limits.max_memory:
        wanted = f"at most {limits.max_memory / 1e6:,.0f} are given; raise measure.max_memory to measure it"
        raise ImageError(Status.TOO_LARGE, f"{_size(header)} take {needed / 1e6:,.0f} MB to decode, {wanted}", header)


def _check_size(header: Header, limits: Limits) -> None:
    if header.width * header.height > limits.max_pixels:
        raise ImageError(Status.TOO_LARGE, f"{_size(header)}, {_at_most(limits)}", header)
    width, height = _upright(header)
    if width < limits.min_width or height < limits.min_height:
        wanted = f"at least {limits.min_width}x{limits.min_height} are wanted"
        raise ImageError(Status.TOO_SMALL, f"{_size(header)}, {wanted}", header)


def _at_most(limits: Limits) -> str:
    return f"at most {limits.max_pixels:,} are decoded; raise measure.max_pixels to measure it"


def _size(header: Header) -> str:
    width, height = _upright(header)
    return f"{header.format}: {width}x{height} pixels"


def _upright(header: Header) -> tuple[int, int]:
    return (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)


def _decode_jpeg(data: bytes, header: Header, check: Callable[[Header, float], None]) -> Decoded:
    pixels = _complete(data, _JPEG_FLAGS[header.channels])
    if pixels is None:  # arithmetic coding and other rarities that OpenCV's build leaves out
        return pillow_decode(data, header, check)
    pixels = orient(pixels, header.orientation)
    header = header._replace(width=pixels.shape[1], height=pixels.shape[0])
    return Decoded(header, pixels, _SPACES[header.channels])


def _complete(data: bytes, flags: int) -> NDArray[Any] | None:
    pixels, said = native_decode(data, flags)
    if "premature end" in said.lower():
        raise ImageError(Status.TRUNCATED, f"jpeg: {said}")
    return pixels


def _is_deep(header: Header) -> bool:
    """Whether Pillow would cut an image to 8 bits, or refuse it, where OpenCV has all of them."""
    if header.format == "tiff":
        if header.bits == 16:
            return header.channels in (3, 4) or header.is_negative
        return header.is_real and header.bits in (32, 64)
    return header.format in ("png", "avif") and header.bits > 8


def _decode_deep(data: bytes, header: Header, check: Callable[[Header, float], None]) -> Decoded | None:
    """Pixels of more than 8 bits (10 and 12 as the high ones of 16); None: OpenCV leaves them to Pillow."""
    if header.format == "avif":
        header = pillow_header(data, header)
    check(header, opencv_footprint(header))
    pixels, said = native_decode(data, cv2.IMREAD_UNCHANGED)
    if header.format != "png" and (pixels is None or pixels.dtype == np.uint8):
        return None  # a TIFF of four inks, a build without AVIF
    if pixels is None:
        raise ImageError(Status.UNREADABLE, f"{header.format}: OpenCV gives no pixels. {said}".strip())
    if pixels.ndim == 3:
        for top, bottom in bands(pixels):
            pixels[top:bottom, :, :3] = pixels[top:bottom, :, 2::-1].copy()
    if header.format == "avif":
        np.left_shift(pixels, 16 - header.bits, out=pixels)
    if header.format != "tiff":  # OpenCV turns TIFF itself
        pixels = orient(pixels, header.orientation)
    header = header._replace(width=pixels.shape[1], height=pixels.shape[0])
    return Decoded(header, pixels, _SPACES[1 if pixels.ndim == 2 else pixels.shape[2]])


def _as_positive(decoded: Decoded, header: Header) -> Decoded:
    """White as the largest number: Pillow turns 1 and 8 bits about, neither it nor OpenCV 16."""
    if header.is_negative and decoded.native.dtype == np.uint16:
        np.bitwise_not(decoded.native, out=decoded.native)
    return decoded


def _decode_raster(data: bytes, header: Header) -> Decoded:
    found = _RASTERS[header.format](data)
    if found.channels not in _SPACES:
        raise ImageError(Status.UNSUPPORTED, f"{header.format} of {found.channels} channels")
    if header.format != "hdr":
        return Decoded(header, raster.plain_pixels(data, found), _SPACES[found.channels])
    try:
        return Decoded(header, raster.radiance_pixels(data, found), "RGB")
    except IndexError as error:
        raise ImageError(Status.TRUNCATED, f"hdr: the file ends inside its rows at {len(data)} bytes") from error
    except ValueError as error:
        raise ImageError(Status.UNREADABLE, f"hdr: {error}") from error


def orient(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels turned upright by an EXIF orientation (1-8; 1 leaves them)."""
    if orientation == 1:
        return pixels
    return _TURNS[orientation](pixels)


_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
