"""Text files read in blocks of whole lines: flat memory, whatever the length of a line or of the file."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol, cast

import numpy as np

from pipeline.errors import UsageError
from pipeline.sources.listed import Origin

BLOCK_BYTES = 2**20
MAX_LINE = 65_536
"""Bytes of one line at most: a path has 4,096, a row of a table with a box some 300."""
MAX_RATIO, FREE_BYTES = 200, 2**24
"""A packed list may grow this many times; the first bytes are free. Lists pack 5 to 30 times, zeros 1,030 times."""

_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")


class Readable(Protocol):
    """What a reader of lines needs of a stream."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


class Unpacked:
    """A gzip stream that is read as what it holds. Raises UsageError for damage and for a bomb."""

    def __init__(self, stream: BinaryIO, origin: Origin) -> None:
        self._packed, self._origin = stream, origin
        self._stream = gzip.GzipFile(fileobj=stream, mode="rb")
        self._total = 0

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes of what the file holds."""
        try:
            data = self._stream.read(size)
        except (EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
                raise
            raise UsageError(
                f"{self._origin.address}: a damaged gzip file ({error}), after {self._total:,} bytes: write it anew"
            ) from error
        self._total += len(data)
        if self._total > FREE_BYTES and self._total > MAX_RATIO * self._packed.tell():
            raise UsageError(
                f"{self._origin.address}: grew to {self._total:,} bytes from {self._packed.tell():,}; wanted at most "
                f"{MAX_RATIO} times. Unpack it first, if it is a list"
            )
        return data


def unpacked(stream: BinaryIO, origin: Origin) -> Readable:
    """The stream, or what it holds where it is gzip. It is read from its start."""
    stream.seek(0)
    is_packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    return Unpacked(stream, origin) if is_packed else cast(Readable, stream)


def line_blocks(stream: Readable, origin: Origin) -> Iterator[tuple[int, str]]:
    """Number of the first line, from 1, and text of whole lines, of some BLOCK_BYTES; bytes that are not UTF-8 are
    surrogates.

    A UTF-8 mark at the start is dropped. Raises UsageError for UTF-16, a NUL and a line over MAX_LINE, with its number.
    """
    rest, line = b"", 1
    while chunk := stream.read(BLOCK_BYTES):
        if line == 1 and not rest:
            if chunk[:2] in _OTHER_BOMS:
                raise UsageError(f"{origin.address} is UTF-16: save it as UTF-8")
            chunk = chunk.removeprefix(_BOM)
        data = rest + chunk
        _check(data, line, origin)
        cut = data.rfind(b"\n") + 1
        rest = data[cut:]
        if cut:
            yield line, data[:cut].decode("utf-8", "surrogateescape")
            line += data.count(b"\n", 0, cut)
    if rest:
        yield line, rest.decode("utf-8", "surrogateescape")


def _check(data: bytes, line: int, origin: Origin) -> None:
    nul = data.find(b"\0")
    if nul >= 0:
        raise UsageError(
            f"{origin.address} line {line + data.count(10, 0, nul):,} has a NUL: it is no text in UTF-8; wanted a "
            "path or row in each line"
        )
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == 10)
    lengths = np.diff(ends, prepend=-1, append=len(data)) - 1
    if lengths.max() > MAX_LINE:
        at = int(np.argmax(lengths > MAX_LINE))
        raise UsageError(
            f"{origin.address} line {line + at:,} has over {MAX_LINE:,} bytes: is it a list? Wanted a path or row in "
            "each line"
        )
