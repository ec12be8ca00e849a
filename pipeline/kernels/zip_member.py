"""The bytes of one member of a zip archive, from its local header on (APPNOTE 6.3.10, 4.3.7)."""

from __future__ import annotations

import bz2
import struct
import zlib

from pipeline.kernels.header import ImageError
from pipeline.schemas import Status

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_MAGIC, _DESCRIPTOR = b"PK\x03\x04", b"PK\x07\x08"
_DESCRIPTOR_BYTES = 12  # without its signature, which is optional, and with sizes of 4 bytes
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
    content, behind = _unpack(memoryview(data)[_LOCAL.size + name + extra :], method, size)
    if len(content) != size:
        raise ImageError(Status.TRUNCATED, f"{len(content):,} bytes unpack of the {size:,} that its directory says")
    told = _described(behind, checksum) if flags & _DESCRIBED_AFTER else (checksum,)
    found = zlib.crc32(content)
    if told and found not in told:
        raise ImageError(Status.UNREADABLE, f"its checksum is {found:08x}, its header says {told[-1]:08x}")
    return content


def _described(behind: bytes | None, checksum: int) -> tuple[int, ...]:
    """The checksums that a member written as a stream may have (4.3.9): of the descriptor behind it, with a signature
    or without, or of its header where the writer knew it; none where nothing says it.
    """
    if behind is None:
        raise ImageError(Status.UNREADABLE, "its stream is damaged: it does not end with its content")
    told = (checksum,) if checksum else ()
    if len(behind) < _DESCRIPTOR_BYTES:
        return told
    return told + struct.unpack_from("<II" if behind.startswith(_DESCRIPTOR) else "<I", behind)


def _unpack(packed: memoryview, method: int, size: int) -> tuple[bytes, bytes | None]:
    """The content, and the first bytes behind it; None where its stream does not end there."""
    if method == STORED:
        return bytes(packed[:size]), bytes(packed[size : size + _DESCRIPTOR_BYTES])
    if method not in (DEFLATED, BZIPPED):
        raise ImageError(Status.UNSUPPORTED, f"zip method {method}: stored, deflated and bzip2 members are read")
    if not size:
        return b"", b""
    try:
        return _inflated(packed, size) if method == DEFLATED else _unzipped(packed, size)
    except (zlib.error, OSError, EOFError) as error:
        raise ImageError(Status.UNREADABLE, f"its stream is damaged ({error})") from error


def _inflated(packed: memoryview, size: int) -> tuple[bytes, bytes | None]:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    content = stream.decompress(packed, size)
    more = b"" if stream.eof else stream.decompress(stream.unconsumed_tail, 1)
    return content, stream.unused_data[:_DESCRIPTOR_BYTES] if stream.eof and not more else None


def _unzipped(packed: memoryview, size: int) -> tuple[bytes, bytes | None]:
    stream = bz2.BZ2Decompressor()
    content = stream.decompress(packed, size)
    more = b"" if stream.eof else stream.decompress(b"", 1)
    return content, stream.unused_data[:_DESCRIPTOR_BYTES] if stream.eof and not more else None
