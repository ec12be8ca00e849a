"""Pixels through Pillow, for every format and mode where it is the safer or the only choice."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features

from pipeline.kernels.footprint import pillow_footprint
from pipeline.kernels.header import Header, ImageError, exif_orientation
from pipeline.kernels.native_decode import overheard
from pipeline.kernels.tone import exposure_of, logarithms, toned
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
    "sun": "SUN",
}
_OPTIONAL = {"avif": "avif", "webp": "webp", "jpeg2000": "jpg_2000"}
"""What a build of Pillow may lack, by its name in `PIL.features`."""

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

_CONVERT = "convert it to grey or RGB of 8 or 16 bits"

T = TypeVar("T")
_SPACES = {"1": "L", "P": "RGB", "PA": "RGBA", "RGBX": "RGB", "La": "LA", "RGBa": "RGBA", "YCbCr": "RGB", "HSV": "RGB"}
_KEPT = frozenset({"L", "LA", "RGB", "RGBA", "CMYK"})
_WITH_ALPHA = {"1": "LA", "L": "LA", "P": "RGBA", "RGB": "RGBA"}


_WITH_EXIF = frozenset({"jpeg", "png", "webp"})
_ONE_TAG = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"
_BAND_PIXELS = 1 << 18


class Decoded(NamedTuple):
    """Pixels after orientation: `native` (contiguous) with every channel at its own depth, in a colour space."""

    header: Header
    native: NDArray[Any]
    space: str


def to_shown(decoded: Decoded) -> NDArray[np.uint8]:
    """Grey (h, w) or RGB (h, w, 3) uint8 of decoded pixels, written over `native` where that is something else.

    Alpha is dropped, as `convert("RGB")` does, not blended; 16 bits count by their high byte, as Pillow shows 16-bit
    RGB (it clips 16-bit grey at 255); real numbers as `tone.toned` says, by the exposure of the whole image. A second
    array beside the first took as much memory again.
    """
    native = decoded.native
    if native.dtype == np.uint8 and decoded.space in ("L", "RGB"):
        return native
    exposure = _exposure(native) if native.dtype.kind == "f" else 1.0
    flat = native.reshape(-1).view(np.uint8)
    end = 0
    for top, bottom in bands(native):
        shown = _shown_band(native[top:bottom], decoded.space, exposure)
        flat[end : end + shown.size] = shown.reshape(-1)
        end += shown.size
    colours = () if decoded.space in ("L", "LA") else (3,)
    return flat[:end].reshape(*native.shape[:2], *colours)


def bands(pixels: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """First and last row (exclusive) of bands of about 2^18 pixels."""
    height, width = pixels.shape[:2]
    step = max(1, _BAND_PIXELS // width)
    return ((top, min(top + step, height)) for top in range(0, height, step))


def _exposure(native: NDArray[Any]) -> float:
    """Of all colours of an image of real numbers, alpha left out."""
    sums = [
        logarithms(native[top:bottom, ..., :3] if native.ndim == 3 else native[top:bottom])
        for top, bottom in bands(native)
    ]
    return exposure_of(sum(total for total, _ in sums), sum(count for _, count in sums))


def _shown_band(native: NDArray[Any], space: str, exposure: float) -> NDArray[np.uint8]:
    if native.dtype == np.uint16:
        native = np.right_shift(native, 8).astype(np.uint8)
    elif native.dtype.kind == "f":
        native = toned(native, exposure)
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
    return _opened(data, header, lambda image: _first_frame(image, header, check))


def pillow_header(data: bytes, header: Header) -> Header:
    """Header of an image with what Pillow knows before it decodes: size, frames, orientation. Raises ImageError."""
    return _opened(data, header, lambda image: _known_header(image, header))


def _opened(data: bytes, header: Header, work: Callable[[ImageFile.ImageFile], T]) -> T:
    plugin = _PLUGINS[header.format]
    if plugin not in Image.OPEN:
        Image.init()
    feature = _OPTIONAL.get(header.format)
    if plugin not in Image.OPEN or (feature and not features.check(feature)):
        wanted = "one from PyPI does: pip install 'image-audit[avif]'"
        raise ImageError(Status.UNSUPPORTED, f"this build of Pillow does not read {header.format}; {wanted}")
    if feature == "avif":
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a worker has one core; it would take all
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if header.format == "jpeg":  # it would read the EXIF on opening
                data = data.replace(b"Exif\0\0", b"skip\0\0")
            with Image.open(io.BytesIO(data), formats=(plugin,)) as image:
                return overheard(lambda: work(image))[0]
    except Image.DecompressionBombError as error:
        raise ImageError(Status.TOO_LARGE, f"Pillow: {error}") from error
    except MemoryError as error:
        raise ImageError(Status.CRASHED, "no memory left to decode it") from error
    except UnidentifiedImageError as error:  # its message names an address in memory
        raise _unidentified(header) from error
    except _REFUSALS as error:
        said = f"{type(error).__name__}: {error}"
        is_cut = "truncated" in said.lower() or isinstance(error, EOFError)
        raise ImageError(Status.TRUNCATED if is_cut else Status.UNREADABLE, f"Pillow: {said[:200]}") from error


def _unidentified(header: Header) -> ImageError:
    if header.format == "tiff" and header.width * header.height:
        kind = f"tiff of {header.channels} channels of {header.bits} bits"
        return ImageError(Status.UNSUPPORTED, f"{kind} is not read; {_CONVERT}", header)
    return ImageError(Status.UNREADABLE, f"Pillow: the start of the file is no {header.format} that it knows")


def _known_header(image: ImageFile.ImageFile, header: Header) -> Header:
    if image.size != (header.height, header.width):  # it tells the size of a TIFF turned
        header = header._replace(width=image.size[0], height=image.size[1])
    if header.format == "avif":
        frames, channels = getattr(image, "n_frames", 1), len(image.mode)
        header = header._replace(frames=frames, orientation=_exif_orientation(image), channels=channels)
    return header


def _exif_orientation(image: Image.Image) -> int:
    with suppress(*_REFUSALS):  # broken EXIF says nothing about the pixels
        value = image.getexif().get(0x0112, 1)
        return value if value in range(1, 9) else 1
    return 1


def _first_frame(image: ImageFile.ImageFile, header: Header, check: Callable[[Header, float], None]) -> Decoded:
    header = _known_header(image, header)
    check(header, pillow_footprint(header, image.mode, len(_space(image)) * np.dtype(_sample_type(image)).itemsize))
    image.load()
    if image.fp is not None:
        image.fp.close()  # WebP and AVIF hold the decoded frame there once more
    _turn_upright(image, header)
    return Decoded(header._replace(width=image.size[0], height=image.size[1]), _native(image), _space(image))


def _turn_upright(image: Image.Image, header: Header) -> None:
    """Turn by what Pillow knows; of EXIF it is given the orientation alone.

    Up to version 12 it copied every value of a block, which may all lie on top of each other: 65,000 of 1 MB.
    """
    if header.format in _WITH_EXIF:
        image.info.pop("exif", None)
        profile = image.info.pop("Raw profile type exif", "")  # of a PNG by ImageMagick
        orientation = header.orientation if header.orientation > 1 else _profile_orientation(profile)
        if orientation > 1:
            image.info["exif"] = _ONE_TAG + bytes((orientation, 0, 0, 0)) + bytes(4)
    with suppress(*_REFUSALS):  # broken XMP says nothing about the pixels
        ImageOps.exif_transpose(image, in_place=True)


def _profile_orientation(profile: str) -> int:
    with suppress(*_REFUSALS):
        block = bytes.fromhex("".join(profile.split("\n")[3:]))
        return exif_orientation(block.removeprefix(b"Exif\0\0"))
    return 0


def _is_16_bit(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")  # PPM: any maxval as 65535


def _sample_type(image: Image.Image) -> type[np.uint8] | type[np.uint16] | type[np.float32]:
    return np.uint16 if _is_16_bit(image) else np.float32 if image.mode == "F" else np.uint8


def _space(image: Image.Image) -> str:
    """Colour space of all channels, palettes and bits expanded, transparency as alpha; "" where it has none."""
    mode = image.mode
    if _is_16_bit(image) or mode == "F":
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
        raise ImageError(Status.UNSUPPORTED, f"{image.mode} pixels have no defined colours; {_CONVERT}")
    width, height = image.size
    shape = (height, width) if len(space) == 1 else (height, width, len(space))
    native: NDArray[Any] = np.empty(shape, _sample_type(image))
    for top, bottom in bands(native):
        band = image if bottom - top == height else image.crop((0, top, width, bottom))
        native[top:bottom] = np.asarray(band if native.dtype != np.uint8 or band.mode == space else band.convert(space))
    return native
