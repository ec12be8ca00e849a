"""Pixels through Pillow, for every format and mode where it is the safer or the only choice."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

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


class Decoded(NamedTuple):
    """Pixels after orientation: `native` with every channel at its own depth, `shown` uint8 grey or RGB."""

    header: Header
    native: NDArray[Any]
    space: str
    shown: NDArray[np.uint8]


def pillow_decode(data: bytes, header: Header, check_size: Callable[[Header], None]) -> Decoded:
    """First frame of an image; `check_size` is called with the header before pixels are allocated.

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
                return overheard(lambda: _first_frame(image, header, check_size))[0]
    except Image.DecompressionBombError as error:
        raise ImageError(Status.TOO_LARGE, f"Pillow: {error}") from error
    except MemoryError as error:
        raise ImageError(Status.CRASHED, "no memory left to decode it") from error
    except _REFUSALS as error:
        said = f"{type(error).__name__}: {error}"
        is_cut = "truncated" in said.lower() or isinstance(error, EOFError)
        raise ImageError(Status.TRUNCATED if is_cut else Status.UNREADABLE, f"Pillow: {said[:200]}") from error


def _first_frame(image: Image.Image, header: Header, check_size: Callable[[Header], None]) -> Decoded:
    header = header._replace(width=image.size[0], height=image.size[1])
    check_size(header)
    if header.format == "avif":
        header = header._replace(frames=getattr(image, "n_frames", 1))
    image.load()
    image = _upright(image)
    native, space = _native(image)
    if native.dtype == np.uint16:
        shown = shown_16_bit(native)
    elif space == "CMYK":
        shown = np.asarray(image.convert("RGB"))
    else:
        shown = shown_8_bit(native)
    return Decoded(header._replace(width=image.size[0], height=image.size[1]), native, space, shown)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _REFUSALS:  # broken EXIF says nothing about the pixels
        return image


def _native(image: Image.Image) -> tuple[NDArray[Any], str]:
    """Every channel, palettes and bits expanded, transparency as alpha; and the colour space."""
    mode = image.mode
    if mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16), "L"
    if mode == "I" and image.format == "PPM":  # Pillow scales any maxval to 65535
        return np.asarray(image).astype(np.uint16), "L"
    if mode in _WITH_ALPHA and "transparency" in image.info:
        space = _WITH_ALPHA[mode]
    elif mode == "P" and image.palette is not None and image.palette.mode == "RGBA":
        space = "RGBA"
    else:
        space = mode if mode in _KEPT else _SPACES.get(mode, "")
    if not space:
        raise ImageError(Status.UNSUPPORTED, f"{mode} pixels have no defined 8-bit colours")
    return np.asarray(image if space == mode else image.convert(space)), space


def shown_8_bit(native: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey or RGB of uint8 pixels: alpha is dropped, as `convert("RGB")` does, not blended."""
    if native.ndim == 2 or native.shape[2] == 3:
        return native
    if native.shape[2] == 2:
        return np.ascontiguousarray(native[:, :, 0])
    return cv2.cvtColor(native, cv2.COLOR_RGBA2RGB)  # type: ignore[return-value]


def shown_16_bit(native: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey or RGB of uint16 pixels by their high byte, as Pillow shows 16-bit RGB (it clips 16-bit grey at 255)."""
    return shown_8_bit(np.right_shift(native, 8).astype(np.uint8))
