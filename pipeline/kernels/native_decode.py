"""Native decoders with what they say on the way: libjpeg and libtiff write warnings to the file descriptor 2."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.header import ImageError
from pipeline.schemas import Status

_STDERR = 2
T = TypeVar("T")


class _Swap:
    """Who has descriptor 2: `saved` is where that went before, while it is a pipe of `thread`."""

    def __init__(self) -> None:
        self.lock, self.saved, self.thread = threading.Lock(), -1, 0


LOOK_SECONDS = 1.0
_SWAPS = [_Swap()]
"""The last one counts; those before it are of decoders that hang."""


def overheard(work: Callable[[], T]) -> tuple[T, str]:
    """Result of `work`, and what was written to standard error meanwhile: about 10 us.

    libjpeg tells of missing and corrupt data there and nowhere else; OpenCV then returns the image, with grey where
    data is missing. So descriptor 2 is a pipe for the time of one decode, in one thread at a time. A line of another
    thread in that time counts as the decoder's.
    """
    with _taken() as swap:
        try:
            saved = os.dup(_STDERR)
        except OSError:  # a daemon without standard error: nobody to spare
            return work(), ""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        os.dup2(writer, _STDERR)
        os.close(writer)
        swap.thread, swap.saved = threading.get_ident(), saved
        said = b""
        try:
            result = work()
        finally:
            swap.saved = -1
            os.dup2(saved, _STDERR)
            os.close(saved)
            said = _drained(reader)
    return result, said.decode(errors="replace").strip() if said else ""


@contextmanager
def _taken() -> Iterator[_Swap]:
    """The swap that counts, taken; who waits for that of a decoder which is then left waits for the next one."""
    while not (swap := _SWAPS[-1]).lock.acquire(timeout=LOOK_SECONDS):
        pass
    try:
        yield swap
    finally:
        swap.lock.release()


def leave_hung(thread: int) -> None:
    """Gives standard error back, and other threads leave to decode, where the decoder of a thread hangs that is not
    waited for. One of another run in this process, which is at work, keeps it.
    """
    swap = _SWAPS[-1]
    if swap.saved >= 0 and swap.thread == thread:
        os.dup2(swap.saved, _STDERR)
        _SWAPS.append(_Swap())


def native_decode(data: bytes, flags: int) -> tuple[NDArray[Any] | None, str]:
    """Pixels of `data` as `cv2.imdecode(flags)` gives them (None: it refused), and what the decoder had to say.

    Raises ImageError where OpenCV raises.
    """
    try:
        return overheard(lambda: cv2.imdecode(np.frombuffer(data, np.uint8), flags))
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
