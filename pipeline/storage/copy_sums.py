"""Checksums of the blocks of a copy, which stand behind its bytes: those of the blocks that are read are compared."""

from __future__ import annotations

import os
import zlib

SUM_BLOCK = 2**18
"""Bytes that one checksum is of: for a member of an archive so many are read in front of it and behind it at most."""
_SUM_BYTES = 4
"""CRC-32, as of the pages of a Parquet: 0.2 ms for each MB that is read, 16 kB for each GB that is kept."""


def sums_bytes(size: int) -> int:
    """Bytes that the checksums of so many bytes take."""
    return -(-size // SUM_BLOCK) * _SUM_BYTES


class BlockSums:
    """The checksums of bytes that come in pieces of any length."""

    def __init__(self) -> None:
        self._whole, self._crc, self._filled = bytearray(), 0, 0

    def update(self, piece: bytes) -> None:
        """More of the bytes."""
        rest = memoryview(piece)
        while rest:
            part = rest[: SUM_BLOCK - self._filled]
            self._crc, self._filled = zlib.crc32(part, self._crc), self._filled + len(part)
            rest = rest[len(part) :]
            if self._filled == SUM_BLOCK:
                self._whole += self._crc.to_bytes(_SUM_BYTES, "big")
                self._crc = self._filled = 0

    def sums(self) -> bytes:
        """One after the other, the last one of the bytes that are left."""
        return bytes(self._whole) + (self._crc.to_bytes(_SUM_BYTES, "big") if self._filled else b"")


def read_checked(descriptor: int, size: int, start: int, length: int) -> bytes | None:
    """Bytes [start, start + length) of the `size` bytes in front of their checksums, fewer at the end.

    None where a block is not what it was. Raises OSError.
    """
    end = min(size, start + length)
    if start >= end:
        return b""
    first, last = start // SUM_BLOCK, -(-end // SUM_BLOCK)
    at = first * SUM_BLOCK
    data = _read_at(descriptor, at, min(size, last * SUM_BLOCK) - at)
    seen = BlockSums()
    seen.update(data)
    if seen.sums() != _read_at(descriptor, size + first * _SUM_BYTES, (last - first) * _SUM_BYTES):
        return None
    return data[start - at : end - at]


def _read_at(descriptor: int, start: int, length: int) -> bytes:
    """So many bytes, fewer at the end alone; one call of the system gives 2 GB at most."""
    pieces = []
    while length > 0 and (piece := os.pread(descriptor, length, start)):
        pieces.append(piece)
        start, length = start + len(piece), length - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
