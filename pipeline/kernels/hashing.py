"""The two hashes of an image: of its bytes, and of its pixels whatever file format holds them."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIGEST_SIZE = 16
_CHUNK = 4096
_DIRECT_LIMIT = 4 * _CHUNK


def content_hash(data: bytes) -> bytes:
    """BLAKE2b-128 of the bytes of a whole file or archive member: 16 bytes."""
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


def pixel_hash(pixels: NDArray[Any], space: str) -> bytes:
    """Hash of shape, dtype, colour space ("L", "RGBA", ...) and every pixel value: 16 bytes, equal on every machine.

    From 16 KB on, BLAKE2b runs over the CRC-32 of each 4 KB instead of over the pixels: 0.2 instead of 0.85 ms for
    500x375, where that was a third of the decode. Pixels that differ in one 4 KB chunk only are taken for equal with
    probability 2^-32, and never when they differ in one pixel (a CRC-32 finds every burst of up to 32 bits); those
    that differ in c chunks with 2^-32c. Small images, which a data set can hold by the million, are hashed directly.
    It protects against accidents, not against someone who forges equal hashes; `content_hash` does.
    """
    little = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    digest = hashlib.blake2b(f"{space}|{little.dtype.str}|{little.shape}|".encode(), digest_size=DIGEST_SIZE)
    flat = little.reshape(-1).view(np.uint8).data
    if len(flat) < _DIRECT_LIMIT:
        digest.update(flat)
    else:
        crc32 = zlib.crc32
        checksums = [crc32(flat[start : start + _CHUNK]) for start in range(0, len(flat), _CHUNK)]
        digest.update(struct.pack(f"<{len(checksums)}I", *checksums))
    return digest.digest()
