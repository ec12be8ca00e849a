"""What a video file promises in its own headers: how long it is, and tables that a decoder would allocate unasked.

A demuxer takes a file that was cut off for one that is over, and fills an index of as many entries as a header of a
few bytes asks for. So both are read here first, from a few small reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from pipeline.kernels.header import ImageError
from pipeline.schemas import Status

MAX_SAMPLES = 1 << 25
"""Entries of the index that an mp4 may ask for without holding them: 24 bytes each, a day at 380 frames a second."""

MAX_BOXES = 1 << 20
"""Boxes of one level that are walked: a recording of ten hours in fragments of 0.1 s has 720,000."""

_MP4_FIRST = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"uuid"})
_MP4_PARENTS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf"})
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_MAGIC = (_EBML, _ASF, b"FLV\1", b"DHAV", b"\0\0\1\xba", b"\0\0\1\xb3")
_TRUN_FIELDS = 0xF00


class _Box(NamedTuple):
    """Name, first byte of its content, and the first byte after it (past the file's end where that is cut off)."""

    name: bytes
    start: int
    end: int


def is_video(head: bytes) -> bool:
    """Whether a file's first 12 bytes are those of a video container that is read here."""
    return head[4:8] in _MP4_FIRST or head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")


def missing_bytes(stream: BinaryIO, size: int) -> int:
    """Bytes that mp4, avi, matroska and asf files of `size` bytes promise past their end; 0 for other containers.

    Raises ImageError for an mp4 that has no table of its frames (truncated where its boxes lead to the end of the file,
    else unreadable), or asks for more than MAX_SAMPLES entries that it does not hold (unreadable).
    """
    head = _read(stream, 0, 16)
    if head[4:8] in _MP4_FIRST:
        return _mp4_end(stream, size) - size
    for magic, end_of in _ENDS:
        if head.startswith(magic):
            return max(0, end_of(stream, size) - size)
    return 0


def _read(stream: BinaryIO, offset: int, length: int) -> bytes:
    stream.seek(offset)
    return stream.read(length)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _mp4_end(stream: BinaryIO, size: int) -> int:
    """The end of the last box, at least `size`. ISO/IEC 14496-12, 4.2."""
    end, names, fragments, last = size, set(), 0, 0
    for box in _boxes(stream, 0, size):
        end, last = max(end, box.end), box.end
        names.add(box.name)
        if box.name == b"moov":
            _check_tracks(stream, box._replace(end=min(box.end, size)))
        elif box.name == b"moof":
            fragments += _unheld_samples(stream, box._replace(end=min(box.end, size)))
            _check_samples(fragments)
    if b"moov" not in names and last + 8 <= size:
        raise ImageError(Status.UNREADABLE, f"mp4: no moov box before byte {last:,}, and there no box that can be read")
    if b"moov" not in names:
        missing = f", {end - size:,} bytes are missing at its end" if end > size else ""
        raise ImageError(Status.TRUNCATED, f"mp4: no moov box{missing}: it was cut off, or never finished")
    return end


def _boxes(stream: BinaryIO, start: int, end: int) -> Iterator[_Box]:
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        head = _read(stream, start, 16)
        length, name, begin = _number(head[:4]), head[4:8], start + 8
        if length == 1:
            length, begin = _number(head[8:16]), start + 16
        if length == 0:
            length = end - start
        if len(head) < 8 or length < begin - start:
            return
        yield _Box(name, begin, start + length)
        start += length
    raise ImageError(Status.UNREADABLE, f"mp4: over {MAX_BOXES:,} boxes in one")


def _inside(stream: BinaryIO, box: _Box, depth: int = 0) -> Iterator[_Box]:
    """Every box below one, those of nested ones after them."""
    for child in _boxes(stream, box.start, box.end):
        child = child._replace(end=min(child.end, box.end))  # noqa: PLW2901
        yield child
        if child.name in _MP4_PARENTS and depth < 8:
            yield from _inside(stream, child, depth + 1)


def _check_tracks(stream: BinaryIO, moov: _Box) -> None:
    for track in _boxes(stream, moov.start, moov.end):
        if track.name == b"trak":
            _check_track(stream, track._replace(end=min(track.end, moov.end)))


def _check_track(stream: BinaryIO, track: _Box) -> None:
    samples, is_constant, is_sound, is_even, edits = 0, False, False, False, 1
    for box in _inside(stream, track):
        data = _read(stream, box.start, 20)
        if box.name == b"stsz":
            is_constant, samples = _number(data[4:8]) > 0, max(samples, _number(data[8:12]))
        elif box.name == b"hdlr":
            is_sound = data[8:12] == b"soun"
        elif box.name == b"stts":
            is_even = _number(data[4:8]) == 1 and _number(data[12:16]) == 1
        elif box.name == b"elst":
            edits = max(edits, min(_number(data[4:8]), (box.end - box.start) // 12))
    if is_constant and not (is_sound and is_even):  # even sound is indexed by chunks, everything else by samples
        _check_samples(samples)
    held = samples if is_constant else min(samples, (track.end - track.start) // 4)
    if edits > 1 and not is_sound:
        _check_samples(held * edits)


def _unheld_samples(stream: BinaryIO, moof: _Box) -> int:
    """Samples of a fragment's runs that have no field of their own: a count is all that they cost."""
    runs = (_read(stream, box.start, 8) for box in _inside(stream, moof) if box.name == b"trun")
    return sum(_number(data[4:8]) for data in runs if not _number(data[:4]) & _TRUN_FIELDS)


def _check_samples(count: int) -> None:
    if count > MAX_SAMPLES:
        raise ImageError(Status.UNREADABLE, f"mp4: asks for {count:,} samples, at most {MAX_SAMPLES:,} are taken")


def _avi_end(stream: BinaryIO, size: int) -> int:
    """The end of the last RIFF chunk; a size of 0 was never filled in."""
    start = 0
    while start < size:
        head = _read(stream, start, 8)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or not length:
            return size
        start += 8 + length + length % 2
    return start - 1 if start == size + 1 else start  # the last byte of padding is often left out


def _matroska_end(stream: BinaryIO, size: int) -> int:
    """The end of the first segment; `size` where it has none (a live recording). RFC 8794, 4 and 6.2."""
    start = 4
    length, start = _vint(stream, start)
    start += length
    if length < 0 or _read(stream, start, 4) != _SEGMENT:
        return size
    length, start = _vint(stream, start + 4)
    return start + length if length >= 0 else size


def _vint(stream: BinaryIO, start: int) -> tuple[int, int]:
    """A length of EBML and the byte after it; -1 where it is unknown or broken."""
    data = _read(stream, start, 8)
    width = 9 - data[0].bit_length() if data and data[0] else 9
    if width > len(data):
        return -1, start
    value = _number(data[:width]) & ((1 << 7 * width) - 1)
    return (-1 if value == (1 << 7 * width) - 1 else value), start + width


def _asf_end(stream: BinaryIO, size: int) -> int:
    """The end of the last top-level object; one shorter than its own head ends the walk."""
    start = 0
    while start + 24 <= size:
        length = int.from_bytes(_read(stream, start + 16, 8), "little")
        if length < 24:
            return size
        start += length
    return start


_ENDS: tuple[tuple[bytes, Callable[[BinaryIO, int], int]], ...] = (
    (b"RIFF", _avi_end),
    (_EBML, _matroska_end),
    (_ASF, _asf_end),
)
