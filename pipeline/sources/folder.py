"""Which objects of a folder or bucket are images, and how their names are stored."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import UsageError
from pipeline.storage import ObjectInfo

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"})
"""Last parts of the names that are taken as images, in any case. What the bytes are is for the decoder to say."""


def is_image_key(key: str) -> bool:
    """Whether a key relative to its source is an image by its suffix and neither hidden nor in a hidden folder."""
    stem, _, suffix = key.rpartition(".")
    return bool(stem) and suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(f"/{key}")


def image_objects(objects: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
    """The objects of a listing that are images, in the order of the listing."""
    return (entry for entry in objects if is_image_key(entry.key))


def encode_key(key: str) -> tuple[str, bytes | None]:
    """The uri that is stored for a key, and the key's raw bytes where they are not UTF-8 (else None).

    `key` holds invalid bytes as `os.fsdecode` gives them (surrogateescape); each becomes `%XX`, and nothing else is
    changed. Two keys may share a uri (a file really named `%FF`), so (uri, raw bytes) is what identifies one. Raises
    UsageError for a surrogate that stands for no byte.
    """
    try:
        key.encode()
        return key, None
    except UnicodeEncodeError:
        pass
    try:
        raw = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UsageError(f"name {key!r} has a surrogate at {error.start} that stands for no byte: rename it") from error
    return "".join(_escaped(character) for character in key), raw


def decode_key(uri: str, raw_key: bytes | None) -> str:
    """The key that `encode_key` was given."""
    return uri if raw_key is None else raw_key.decode("utf-8", "surrogateescape")


def _is_hidden(rooted: str) -> bool:
    # `.git/`, `.DS_Store`, `._1.jpg` (macOS puts one beside each file on foreign disks), and the folder of its zips.
    return "/." in rooted or "/__MACOSX/" in rooted


def _escaped(character: str) -> str:
    code = ord(character)
    return f"%{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else character
