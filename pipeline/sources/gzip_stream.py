"""An unpacked gzip as a seekable stream, with points from which it can be unpacked again."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from pipeline.kernels.header import ImageError
from pipeline.sources.gzip_front import GzipFront, too_long

SPACING = 2**22
"""Unpacked bytes between two points, each of which keeps 32 kB: so much is unpacked for a member here and there (5 ms),
and so much at once for members one after the other (0.16 ms for 16 kB; 0.8 ms with reads of 256 kB)."""
MOST_POINTS = 2048
"""64 MB. While it unpacks indexed_gzip takes 8 times the spacing: what unpacks to more than 64 GB has more of them, and
not only a WIDE spacing: of 1 TB 256 MB and 1 GB."""
WIDE = 2**25
MOST_UNPACKED, MOST_RATIO = 2**38, 256
"""Bytes that any gzip may unpack to, 5 minutes of zeros, and how many for each of its own: deflate comes to 1,032, BMPs
of two ellipses each to 745, of which these are 80,000 of 3 MB."""
LONGEST = 2**62


class GzipStream(io.RawIOBase):
    """The unpacked bytes of a gzip, up to where it is cut off or damaged. Raises what reading below it raises.

    Who reads what nobody has read before asks for `index` first: that finds where the damage is. breaks_off: it is one
    behind which nothing can be had.

    `index`: what `index` gave for the same bytes, so that a read unpacks 4 MB at most; else it unpacks from the start.
    indexed_gzip gives nothing of a read that comes to damage, takes a cut for the end, and skips what is between gzips:
    there zlib reads.
    """

    def __init__(self, stream: BinaryIO, size: int, index: bytes = b"") -> None:
        """`size`: bytes of the gzip."""
        import indexed_gzip  # 20 ms, and few sources have one

        self._lock = threading.Lock()
        errors = indexed_gzip.indexed_gzip  # the package itself has no CrcError
        self._of_a_checksum: type[Exception] = errors.CrcError
        self._broken: tuple[type[Exception], ...] = (errors.ZranError, errors.NotCoveredError, errors.CrcError)
        self._errors: tuple[type[Exception], ...] = (OSError, *self._broken)
        self._stream, self._size, self._at, self._place = stream, size, 0, 0
        self._most = max(MOST_UNPACKED, MOST_RATIO * size)
        self._front = GzipFront(stream, self._most)
        self._end = self._sound = LONGEST
        self._problem: ImageError | None = None
        self.breaks_off = False
        self._spacing = SPACING
        while _reach(self._spacing) < 2 * size:
            self._spacing *= 2
        self._file = self._opened()
        if index:
            self._file.import_index(fileobj=io.BytesIO(index))

    def _opened(self) -> Any:
        """The gzip as indexed_gzip reads it, without points."""
        import indexed_gzip

        # a read begins at a point: pieces shorter than the way to it would unpack the same bytes again and again
        buffer = max(SPACING, min(self._spacing, WIDE))
        return indexed_gzip.IndexedGzipFile(fileobj=self._stream, spacing=self._spacing, buffer_size=buffer)

    def read(self, size: int = -1) -> bytes:
        """Bytes from here on, fewer at the end."""
        if size < 0:
            return b"".join(iter(lambda: self.read(SPACING), b""))
        data = self._read(self._at, size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to an offset from the start or from here; behind the end nothing is read."""
        self._at = offset + (self._at if whence == io.SEEK_CUR else 0)
        return self._at

    def tell(self) -> int:
        """The offset now."""
        return self._at

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length), fewer at the end; from several threads one after the other."""
        with self._lock:
            return self._read(offset, length)

    def index(self) -> bytes:
        """The points of the whole stream, or of what comes before the damage; from now on nothing behind it is read."""
        end = self._unpack()
        if end is not None and end > self._most:
            self._problem, self._end, self.breaks_off = too_long(self._most), self._most, True
        elif end is None or not self._is_end(end):
            self._problem = self._front.problem()
            self._end, self.breaks_off = self._front.end(), self._front.breaks_off()
        sink = io.BytesIO()
        with self._own_place():
            try:
                self._file.export_index(fileobj=sink)
            except self._errors as error:
                self._raise_other(error)
                return b""
        return sink.getvalue()

    def problem(self) -> ImageError | None:
        """What is wrong with the gzip, once `index` was asked for; None where it is whole."""
        return self._problem

    @property
    def is_followed(self) -> bool:
        """Whether bytes that are not of the gzip are behind it, once `index` was asked for."""
        return self._front.is_followed

    def _unpack(self) -> int | None:
        """Bytes that all of it unpacks to, or one more than may be; None where indexed_gzip finds something wrong."""
        is_sound = True
        with self._own_place():
            while True:
                reach = min(_reach(self._spacing), self._most + 1)
                try:
                    end = int(self._file.seek(reach))
                    if end < reach or end > self._most:
                        return end if is_sound or end > self._most else None
                    self._spacing *= 2  # anew: behind points that were stored no checksum is looked at
                    self._file.close()
                    self._file = self._opened()
                except self._of_a_checksum:
                    is_sound = False
                    if not self._skip_checksums():
                        return None
                except self._errors as error:
                    self._raise_other(error)
                    return None

    def _skip_checksums(self) -> bool:
        """Whether it can go on behind a wrong one: with points that were stored, no checksum is looked at."""
        points = io.BytesIO()
        try:
            self._file.export_index(fileobj=points)
            self._file.import_index(fileobj=io.BytesIO(points.getvalue()))
        except self._errors as error:
            self._raise_other(error)
            return False
        return True

    def _read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self._end - offset))
        if offset + size <= self._sound:
            try:
                with self._own_place():
                    end = self._file.seek(offset) if self._file.tell() != offset else offset
                    data = bytes(self._file.read(size)) if end == offset else b""
                if len(data) == size or self._is_end(end + len(data)):
                    return data
            except self._errors as error:
                self._raise_other(error)
            self._sound = offset
        return self._front.read_at(offset, size)

    def _is_end(self, offset: int) -> bool:
        """Whether the gzip says that it unpacks to so many bytes; one made of several says less."""
        self._stream.seek(max(0, self._size - 4))
        return self._stream.read(4) == (offset % 2**32).to_bytes(4, "little")

    @contextmanager
    def _own_place(self) -> Iterator[None]:
        """The stream where indexed_gzip left it."""
        if self._stream.tell() != self._place:
            self._stream.seek(self._place)
        try:
            yield
        finally:
            self._place = self._stream.tell()

    def _raise_other(self, error: Exception) -> None:
        """Raises the error of the stream below, such as a StorageError, and none for what is wrong with the gzip."""
        if isinstance(error.__cause__, Exception):
            raise error.__cause__
        # Python's own, of a reader that says it read less than nothing, has no number
        if not isinstance(error, self._broken) and (type(error) is not OSError or error.errno is not None):
            raise error


def _reach(spacing: int) -> int:
    """Unpacked bytes that points of a spacing are made for."""
    return MOST_POINTS * max(spacing, spacing**2 // WIDE)
