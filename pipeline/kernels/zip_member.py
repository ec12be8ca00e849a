"""The bytes of one member of a zip archive, from its local header on (APPNOTE 6.3.10, 4.3.7)."""

from __future__ import annotations

import bz2
import struct
import zlib

from pipeline.kernels.header import ImageError
from pipeline.schemas import Status

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_MAGIC = b"PK\x03\x04"
_ENCRYPTED, _DESCRIBED_AFTER = 1, 8
STORED, DEFLATED, BZIPPED = 0, 8, 12


def unpack_member(data: bytes, size: int) -> bytes:
    """The content of the member that begins with `data`; `size` bytes, as the archive's directory says.

    Never more than `size` bytes are unpacked, whatever the stream holds. Raises ImageError: unsupported (encrypted,
    another method), truncated, unreadable (no header, a damaged stream, another checksum).
    """
    if len(data) < _LOCAL.size:
        raise ImageError(Status.TRUNCATED, "the archive ends inside the header of the member")
    magic, _, flags, method, _, _, checksum, _, _, name, extra = _LOCAL.unpack_from(data)
    if magic != _MAGIC:
        raise ImageError(Status.UNREADABLE, f"no member begins there (first bytes {data[:4].hex()})")
    if flags & _ENCRYPTED:
        raise ImageError(Status.UNSUPPORTED, "encrypted member: unpack it with its password first")
    content = _unpack(memoryview(data)[_LOCAL.size + name + extra :], method, size)
    if len(content) != size:
        raise ImageError(Status.TRUNCATED, f"{len(content):,} bytes unpack of the {size:,} that its directory says")
    found = zlib.crc32(content)
    if not flags & _DESCRIBED_AFTER and found != checksum:
        raise ImageError(Status.UNREADABLE, f"its checksum is {found:08x}, its header says {checksum:08x}")
    return content


def _unpack(packed: memoryview, method: int, size: int) -> bytes:
    if method == STORED:
        return bytes(packed[:size])
    try:
        if method == DEFLATED:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size) if size else b""
        if method == BZIPPED:
            return bz2.BZ2Decompressor().decompress(packed, size)
    except (zlib.error, OSError, EOFError) as error:
        raise ImageError(Status.UNREADABLE, f"its stream is damaged ({error})") from error
    raise ImageError(Status.UNSUPPORTED, f"zip method {method}: stored, deflated and bzip2 members are read")
