"""HEIC and HEIF through pillow-heif (libheif, libde265), an extra: its wheels are under the GPL, this package is not.

libheif turns the image by the file's own boxes; an orientation in its EXIF is what it was before and says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.footprint import heif_footprint
from pipeline.kernels.header import Header, ImageError
from pipeline.kernels.native_decode import overheard
from pipeline.kernels.pillow_decode import Decoded
from pipeline.schemas import Status

T = TypeVar("T")
_SPACES = {"L": "L", "I": "L", "LA": "LA", "La": "LA", "RGB": "RGB", "RGBA": "RGBA", "RGBa": "RGBA"}
_CUT = ("truncated", "end of file", "end-of-file", "outside of file", "not enough data")


def heif_decode(data: bytes, header: Header, check: Callable[[Header, float], None]) -> Decoded:
    """The primary image; 10 and 12 bits as the high ones of uint16. `check`: see `pillow_decode`. Raises ImageError."""
    return _asked(lambda library: _primary(library, data, header, check))


def heif_header(data: bytes, header: Header) -> Header:
    """Header of the primary image of a whole file, with its size after the file's own turns. Raises ImageError."""
    return _asked(lambda library: _described(_opened(library, data), header))


def _asked(work: Callable[[Any], T]) -> T:
    try:
        import pillow_heif

        pillow_heif.options.DECODE_THREADS = 1  # a worker has one core
        return overheard(lambda: work(pillow_heif))[0]
    except ImportError as error:
        wanted = "it needs pillow-heif: pip install 'image-audit[heif]'"
        raise ImageError(Status.UNSUPPORTED, f"heif is not read on this machine ({error}); {wanted}") from error
    except (MemoryError, OSError) as error:
        raise ImageError(Status.CRASHED, f"no memory left to decode it: {error}") from error
    except (ValueError, EOFError, SyntaxError, RuntimeError, LookupError) as error:
        raise _image_error(error) from error


def _image_error(error: Exception) -> ImageError:
    said = f"{type(error).__name__}: {str(error).strip()}"
    if isinstance(error, SyntaxError) or "not been built in" in said:
        status = Status.UNSUPPORTED
    elif isinstance(error, EOFError) or any(words in said.lower() for words in _CUT):
        status = Status.TRUNCATED
    else:
        status = Status.UNREADABLE
    return ImageError(status, f"libheif: {said[:200]}")


def _opened(library: Any, data: bytes) -> Any:
    opened = library.open_heif(data, convert_hdr_to_8bit=False)
    if not len(opened):
        raise SyntaxError("no image of a coding that this build reads")
    return opened


def _described(opened: Any, header: Header) -> Header:
    image = opened[opened.primary_index]
    width, height = image.size
    channels, bits = len(_SPACES[image.mode.partition(";")[0]]), image.info["bit_depth"]
    return header._replace(width=width, height=height, channels=channels, bits=bits, frames=len(opened))


def _primary(library: Any, data: bytes, header: Header, check: Callable[[Header, float], None]) -> Decoded:
    opened = _opened(library, data)
    image = opened[opened.primary_index]
    mode, _, deep = image.mode.partition(";")
    header, space = _described(opened, header), _SPACES[mode]
    width, height = header.width, header.height
    check(header, heif_footprint(header) * max(1.0, header.whole / max(1, width * height)))
    rows = np.frombuffer(image.data, np.dtype("<u2" if deep else "u1")).reshape(height, -1)
    if image.size != (width, height):
        raise ValueError(f"{image.size[0]}x{image.size[1]} pixels are decoded where {width}x{height} were told")
    native: NDArray[Any] = rows[:, : width * len(space)].copy()  # the rows are the library's memory
    return Decoded(header, native if len(space) == 1 else native.reshape(height, width, len(space)), space)
