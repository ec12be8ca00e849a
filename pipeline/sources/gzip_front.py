"""What a gzip unpacks to before the place where it is cut off or damaged, to the last byte that can be had."""

from __future__ import annotations

import zlib
from collections import deque
from typing import Any, BinaryIO, NamedTuple

from pipeline.kernels.header import ImageError
from pipeline.schemas import Status

MAGIC = b"\x1f\x8b"
_HEADER = MAGIC + b"\x08"
_CHUNK = 2**12  # unpacks to 4 MB at most
_SPACING, _MARKS = 2**22, 16  # of 45 kB each: members near the damage are read in any order
_OF_A_GZIP = 31
_CHECKSUM, _LENGTH = "incorrect data check", "incorrect length check"
_LENGTH_BYTES = 4


class _Mark(NamedTuple):
    """A place to unpack from: its byte of the unpacked stream and of the file, the state there, and the byte of the
    unpacked stream where its gzip began.
    """

    unpacked: int
    packed: int
    state: Any
    began: int


class GzipFront:
    """The unpacked bytes from the start up to the end, the cut or the damage; one of many gzips of which the checksum
    or the length alone is wrong breaks nothing off. Reading back unpacks again from a mark of the last 64 MB, or from
    the start. Raises what reading the stream below raises.

    is_followed: behind its end, once that is found, there are bytes that are not of it.
    """

    def __init__(self, stream: BinaryIO, most: int) -> None:
        """`stream`: seekable, also read by others in between. `most`: unpacked bytes behind which it ends."""
        self._stream, self._most = stream, most
        self._marks: deque[_Mark] = deque(maxlen=_MARKS)
        self._problem: ImageError | None = None
        self._wrong, self._wrong_at, self._more_wrong = "", -1, 0
        self.is_followed = False
        self._resume(_Mark(0, 0, zlib.decompressobj(_OF_A_GZIP), 0))

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of the unpacked stream, fewer where it ends, is cut off or damaged."""
        if offset < self._start:
            start = _Mark(0, 0, zlib.decompressobj(_OF_A_GZIP), 0)
            self._resume(next((mark for mark in reversed(self._marks) if mark.unpacked <= offset), start))
        self._forget(offset)
        while self._end < offset + length and not self._is_over:
            self._step()
            self._forget(offset)
        place = max(0, offset - self._start)
        return bytes(self._held[place : place + length]) if offset <= self._end else b""

    def problem(self) -> ImageError | None:
        """What is wrong with the gzip, with the byte where; None where it is whole. It is unpacked to its end."""
        while not self._is_over:
            self._forget(self._end)
            self._step()
        said = [self._wrong, f"{self._more_wrong:,} further checksums are wrong" * bool(self._more_wrong)]
        said += [str(self._problem)] if self._problem else []
        return ImageError(Status.UNREADABLE, "; ".join(filter(None, said))) if self._wrong else self._problem

    def breaks_off(self) -> bool:
        """Whether it is cut off or damaged in a way that nothing behind can be had."""
        self.problem()
        return self._problem is not None

    def end(self) -> int:
        """Bytes that it unpacks to before its end, the cut or the damage."""
        self.problem()
        return self._end

    @property
    def _end(self) -> int:
        return self._start + len(self._held)

    def _resume(self, mark: _Mark) -> None:
        self._start, self._packed, self._state, self._began = mark._replace(state=mark.state.copy())
        self._held, self._input, self._is_over = bytearray(), b"", False

    def _forget(self, offset: int) -> None:
        """Lets go of what lies before an offset."""
        count = min(offset - self._start, len(self._held))
        if count > 0:
            del self._held[:count]
            self._start += count

    def _step(self) -> None:
        """Unpacks the next piece of the file."""
        if self._end > self._most:
            self._stop(too_long(self._most))
            return
        if self._end - (self._marks[-1].unpacked if self._marks else 0) >= _SPACING:
            self._marks.append(_Mark(self._end, self._packed - len(self._input), self._state.copy(), self._began))
        data, self._input = self._input or self._more(), b""
        if not data:
            said = f"the gzip is cut off at byte {self._packed:,} of the file, after {self._end:,} unpacked bytes"
            self._stop(ImageError(Status.TRUNCATED, said))
            return
        before = self._state.copy()
        try:
            self._held += self._state.decompress(data)
        except zlib.error:
            self._to_the_error(before, data)
            return
        if self._state.eof:
            self._next_stream(self._state.unused_data)

    def _more(self) -> bytes:
        if self._stream.tell() != self._packed:
            self._stream.seek(self._packed)
        data = self._stream.read(_CHUNK)
        self._packed += len(data)
        return data

    def _to_the_error(self, state: Any, data: bytes) -> None:
        """Byte by byte: of a piece that cannot be unpacked zlib gives none of the bytes before the error."""
        place = 0
        try:
            while place < len(data):
                self._held += state.decompress(data[place : place + 1])
                place += 1
        except zlib.error as error:
            said = str(error).rpartition(": ")[2]
            if said in (_CHECKSUM, _LENGTH):
                self._past_checksum(said, data[place + 1 :])
            else:
                problem = _damage(said, self._packed - len(data) + place, self._end)
                doubt = f"any member from unpacked byte {self._began:,} on may be damaged"  # no checksum was come to
                self._stop(ImageError(problem.status, f"{problem}: {doubt}"))

    def _past_checksum(self, said: str, rest: bytes) -> None:
        """Goes on behind a gzip of another checksum, or another length: where both are, what follows lies elsewhere.

        `rest`: what is read of the file behind the one that is wrong.
        """
        place, length = self._packed - len(rest) - 1, self._end - self._began
        named = f"at byte {place:,} of the file is not that of the unpacked bytes {self._began:,} to {self._end:,}"
        if said == _CHECKSUM:
            while len(rest) < _LENGTH_BYTES and (more := self._more()):
                rest += more
            told, rest = rest[:_LENGTH_BYTES], rest[_LENGTH_BYTES:]
            if told != (length % 2**32).to_bytes(_LENGTH_BYTES, "little"):
                lost = "any member in them may be damaged, and nothing behind them is read"
                self._stop(ImageError(Status.UNREADABLE, f"the checksum {named}, nor is the length: {lost}"))
                return
        if place > self._wrong_at:  # who reads back comes here again
            self._wrong_at, self._more_wrong = place, self._more_wrong + bool(self._wrong)
            what = "checksum" if said == _CHECKSUM else "length"
            self._wrong = self._wrong or f"the {what} {named}: any member in them may be damaged"
        self._next_stream(rest)

    def _next_stream(self, data: bytes) -> None:
        """Behind a whole gzip another one may follow, also behind zero bytes."""
        data = data.lstrip(b"\0")
        while len(data) < len(_HEADER) and (more := self._more()):
            data = (data + more).lstrip(b"\0")
        if data.startswith(MAGIC):
            self._state, self._input, self._began = zlib.decompressobj(_OF_A_GZIP), data, self._end
        else:
            self._end_before(data)

    def _end_before(self, data: bytes) -> None:
        """Ends at bytes that are no gzip: not of it, as what a signer puts there, unless they are a gzip with a damaged
        header or have one behind them. What that would unpack to does not join on.
        """
        self.is_followed = bool(data)
        place = self._packed - len(data)
        if sum(byte == wanted for byte, wanted in zip(data, _HEADER, strict=False)) == len(_HEADER) - 1:
            self._stop(_damage("incorrect header of a further gzip", place, self._end))
        elif self._has_another(data):
            self._stop(_damage("bytes that are no gzip, with one behind them", place, self._end))
        else:
            self._stop(None)

    def _has_another(self, data: bytes) -> bool:
        """Whether a gzip begins in bytes that are none, or behind them."""
        while data:
            at = data.find(_HEADER)
            if at < 0:
                more = self._more()
                data = data[1 - len(_HEADER) :] + more if more else b""
                continue
            data = data[at:] + (self._more() if len(data) - at < _CHUNK else b"")
            if _unpacks(data):
                return True
            data = data[1:]
        return False

    def _stop(self, problem: ImageError | None) -> None:
        self._is_over, self._problem = True, problem


def too_long(most: int) -> ImageError:
    """That a gzip unpacks to more bytes than are read of it."""
    said = f"the gzip unpacks to more than {most:,} bytes, far more than images do: members behind them are left out. "
    return ImageError(Status.TOO_LARGE, f"{said}If it is sound, unpack it and audit its folder")


def _unpacks(data: bytes) -> bool:
    """Whether bytes are the first ones of a gzip."""
    state = zlib.decompressobj(_OF_A_GZIP)
    try:
        return bool(state.decompress(data)) or state.eof
    except zlib.error:
        return False


def _damage(said: str, packed: int, unpacked: int) -> ImageError:
    return ImageError(
        Status.UNREADABLE,
        f"the gzip is damaged at byte {packed:,} of the file, after {unpacked:,} unpacked bytes ({said})",
    )
