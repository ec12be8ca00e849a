"""An unpacked gzip as a seekable stream, with points from which it can be unpacked again."""

from __future__ import annotations

import io
import threading
from typing import Any, BinaryIO

SPACING = 2**22
"""Unpacked bytes between two points, each of which keeps 32 kB: so much is unpacked for a member here and there (5 ms),
and so much at once for members one after the other (0.16 ms for 16 kB; 0.8 ms with reads of 256 kB)."""
MOST_POINTS = 2048  # 64 MB, whatever the size of the archive


class GzipStream(io.RawIOBase):
    """The unpacked bytes of a gzip. What its own reader raises is EOFError here, but for what reading below it raises.

    `index`: what `index` gave for the same bytes, so that a seek unpacks 4 MB at most; else it unpacks from the start.
    """

    def __init__(self, stream: BinaryIO, size: int, index: bytes = b"") -> None:
        """`size`: bytes of the gzip."""
        import indexed_gzip  # 20 ms, and few sources have one

        self._lock = threading.Lock()
        self._broken: tuple[type[Exception], ...] = (indexed_gzip.ZranError, indexed_gzip.NotCoveredError)
        self._errors: tuple[type[Exception], ...] = (OSError, *self._broken)
        spacing = max(SPACING, size // MOST_POINTS)
        self._file: Any = indexed_gzip.IndexedGzipFile(fileobj=stream, spacing=spacing, buffer_size=SPACING)
        if index:
            self._file.import_index(fileobj=io.BytesIO(index))

    def read(self, size: int = -1) -> bytes:
        """Bytes from here on, fewer at the end."""
        try:
            return bytes(self._file.read(size))
        except self._errors as error:
            raise self._meant(error) from None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to an offset; one behind the end is the end."""
        try:
            return int(self._file.seek(offset, whence))
        except self._errors as error:
            raise self._meant(error) from None

    def tell(self) -> int:
        """The offset now."""
        return int(self._file.tell())

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length), fewer at the end; from several threads one after the other."""
        with self._lock:
            return self.read(length) if self.seek(offset) == offset else b""

    def index(self) -> bytes:
        """The points of the whole stream."""
        sink = io.BytesIO()
        try:
            self._file.build_full_index()
            self._file.export_index(fileobj=sink)
        except self._errors as error:
            raise self._meant(error) from None
        return sink.getvalue()

    def _meant(self, error: Exception) -> Exception:
        """EOFError for what is wrong with the gzip; the error of the stream below, such as a StorageError, as it is."""
        if isinstance(error.__cause__, Exception):
            return error.__cause__
        # Python's own, of a reader that says it read less than nothing, has no number
        is_broken = isinstance(error, self._broken) or (type(error) is OSError and error.errno is None)
        return EOFError(f"broken gzip: {error}") if is_broken else error
