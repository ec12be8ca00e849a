"""Pixels through Pillow, for every format and mode where it is the safer or the only choice."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from pipeline.kernels.footprint import pillow_footprint
from pipeline.kernels.header import Header, ImageError
from pipeline.kernels.native_decode import overheard
from pipeline.schemas import Status

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its warnings go to standard error

_PLUGINS = {
    "jpeg": "JPEG",
    "png": "PNG",
    "gif": "GIF",
    "bmp": "BMP",
    "webp": "WEBP",
    "tiff": "TIFF",
    "ppm": "PPM",
    "jpeg2000": "JPEG2000",
    "avif": "AVIF",
}
_REFUSALS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""Everything Pillow's plugins were seen to raise on broken files; it promises no list."""

_SPACES = {"1": "L", "P": "RGB", "PA": "RGBA", "RGBX": "RGB", "La": "LA", "RGBa": "RGBA", "YCbCr": "RGB", "HSV": "RGB"}
_KEPT = frozenset({"L", "LA", "RGB", "RGBA", "CMYK"})
_WITH_ALPHA = {"1": "LA", "L": "LA", "P": "RGBA", "RGB": "RGBA"}


_BAND_PIXELS = 1 << 18


class Decoded(NamedTuple):
    """Pixels after orientation: `native` (contiguous) with every channel at its own depth, in a colour space."""

    header: Header
    native: NDArray[Any]
    space: str


def to_shown(decoded: Decoded) -> NDArray[np.uint8]:
    """Grey (h, w) or RGB (h, w, 3) uint8 of decoded pixels, written over `native` where that is something else.

    Alpha is dropped, as `convert("RGB")` does, not blended; 16 bits count by their high byte, as Pillow shows 16-bit
    RGB (it clips 16-bit grey at 255). A second array beside the first took as much memory again.
    """
    native = decoded.native
    if native.dtype == np.uint8 and decoded.space in ("L", "RGB"):
        return native
    flat = native.reshape(-1).view(np.uint8)
    end = 0
    for top, bottom in bands(native):
        shown = _shown_band(native[top:bottom], decoded.space)
        flat[end : end + shown.size] = shown.reshape(-1)
        end += shown.size
    colours = () if decoded.space in ("L", "LA") else (3,)
    return flat[:end].reshape(*native.shape[:2], *colours)


def bands(pixels: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of bands of about 2^18 pixels."""
    height, width = pixels.shape[:2]
    step = max(1, _BAND_PIXELS // width)
    return ((top, min(top + step, height)) for top in range(0, height, step))


def _shown_band(native: NDArray[Any], space: str) -> NDArray[np.uint8]:
    if native.dtype == np.uint16:
        native = np.right_shift(native, 8).astype(np.uint8)
    if space == "CMYK":
        size = (native.shape[1], native.shape[0])
        return np.asarray(Image.frombuffer(space, size, native, "raw", space, 0, 1).convert("RGB"))
    if native.ndim == 2 or native.shape[2] == 3:
        return native
    if native.shape[2] == 2:
        return np.ascontiguousarray(native[:, :, 0])
    return cv2.cvtColor(native, cv2.COLOR_RGBA2RGB)  # type: ignore[return-value]


def pillow_decode(data: bytes, header: Header, check: Callable[[Header, float], None]) -> Decoded:
    """First frame of an image; `check` is called with the header and the bytes per pixel that decoding will take.

    Raises ImageError.
    """
    plugin = _PLUGINS[header.format]
    if plugin not in Image.OPEN:
        Image.init()
    if plugin not in Image.OPEN:
        raise ImageError(Status.UNSUPPORTED, f"this build of Pillow does not read {plugin}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=(plugin,)) as image:
                return overheard(lambda: _first_frame(image, header, check))[0]
    except Image.DecompressionBombError as error:
        raise ImageError(Status.TOO_LARGE, f"Pillow: {error}") from error
    except MemoryError as error:
        raise ImageError(Status.CRASHED, "no memory left to decode it") from error
    except _REFUSALS as error:
        said = f"{type(error).__name__}: {error}"
        is_cut = "truncated" in said.lower() or isinstance(error, EOFError)
        raise ImageError(Status.TRUNCATED if is_cut else Status.UNREADABLE, f"Pillow: {said[:200]}") from error


def _first_frame(image: ImageFile.ImageFile, header: Header, check: Callable[[Header, float], None]) -> Decoded:
    if image.size != (header.height, header.width):  # it tells the size of a TIFF turned
        header = header._replace(width=image.size[0], height=image.size[1])
    space = _space(image)
    check(header, pillow_footprint(header, image.mode, len(space) * (2 if _is_16_bit(image) else 1)))
    if header.format == "avif":
        header = header._replace(frames=getattr(image, "n_frames", 1))
    image.load()
    if image.fp is not None:
        image.fp.close()  # WebP and AVIF hold the decoded frame there once more
    _turn_upright(image)
    return Decoded(header._replace(width=image.size[0], height=image.size[1]), _native(image), _space(image))


def _turn_upright(image: Image.Image) -> None:
    with suppress(*_REFUSALS):  # broken EXIF says nothing about the pixels
        ImageOps.exif_transpose(image, in_place=True)


def _is_16_bit(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")  # PPM: any maxval as 65535


def _space(image: Image.Image) -> str:
    """Colour space of all channels, palettes and bits expanded, transparency as alpha; "" where it has none."""
    mode = image.mode
    if _is_16_bit(image):
        return "L"
    if mode in _WITH_ALPHA and "transparency" in image.info:
        return _WITH_ALPHA[mode]
    if mode == "P" and image.palette is not None and image.palette.mode == "RGBA":
        return "RGBA"
    return mode if mode in _KEPT else _SPACES.get(mode, "")


def _native(image: Image.Image) -> NDArray[Any]:
    """Every channel of the image in its colour space, taken over in bands: Pillow's own way makes three copies."""
    space = _space(image)
    if not space:
        raise ImageError(Status.UNSUPPORTED, f"{image.mode} pixels have no defined 8-bit colours")
    is_16_bit = _is_16_bit(image)
    width, height = image.size
    shape = (height, width) if len(space) == 1 else (height, width, len(space))
    native = np.empty(shape, np.uint16 if is_16_bit else np.uint8)
    for top, bottom in bands(native):
        band = image if bottom - top == height else image.crop((0, top, width, bottom))
        native[top:bottom] = np.asarray(band if is_16_bit or band.mode == space else band.convert(space))
    return native
