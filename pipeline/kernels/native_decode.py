"""OpenCV's decoder with what it says on the way: libjpeg's and libtiff's warnings go to the file descriptor 2."""

from __future__ import annotations

import os
import threading
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.header import ImageError
from pipeline.schemas import Status

_STDERR = 2
_swap = threading.Lock()


def native_decode(data: bytes, flags: int) -> tuple[NDArray[Any] | None, str]:
    """Pixels of `data` as `cv2.imdecode(flags)` gives them (None: it refused), and what the decoder had to say.

    libjpeg tells of missing and corrupt data on standard error and nowhere else; OpenCV then returns the image, with
    grey where data is missing. So descriptor 2 is a pipe for the time of the call: about 10 us. A line that another
    thread writes in that time is passed on.
    """
    with _swap:
        try:
            saved = os.dup(_STDERR)
        except OSError:  # a daemon without standard error
            return _decode(data, flags), ""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        os.dup2(writer, _STDERR)
        os.close(writer)
        try:
            pixels = _decode(data, flags)
        finally:
            os.dup2(saved, _STDERR)
            os.close(saved)
            said = _drained(reader)
    return pixels, _own_lines(said) if said else ""


def _decode(data: bytes, flags: int) -> NDArray[Any] | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        status = Status.CRASHED if error.code == cv2.Error.StsNoMem else Status.UNREADABLE
        raise ImageError(status, f"OpenCV: {error.err}") from error


def _drained(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except BlockingIOError:  # another process inherited the writing end; nothing was said
        return b""
    finally:
        os.close(reader)


def _own_lines(said: bytes) -> str:
    """Lines of the decoders; any other line belongs to another thread and is written where it was meant to go."""
    own = []
    for line in said.decode(errors="replace").splitlines(keepends=True):
        if any(word in line for word in ("JPEG", "Huffman", "marker", "grfmt_", "TIFF", "libpng", "Adobe", "loadsave")):
            own.append(line.strip())
        else:
            os.write(_STDERR, line.encode())
    return "; ".join(own)
