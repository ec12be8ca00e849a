"""Which objects of a folder or bucket are images, and how their names are stored."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.errors import UsageError
from pipeline.storage import ObjectInfo

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"})
"""Last parts of the names that are taken as images, in any case. What the bytes are is for the decoder to say."""

_LITERAL = re.compile("%(?=[0-9A-Fa-f]{2})")


def is_image_key(key: str) -> bool:
    """Whether a key relative to its source is an image by its suffix and neither hidden nor in a hidden folder."""
    stem, _, suffix = key.rpartition(".")
    return bool(stem) and suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(f"/{key}")


def image_objects(objects: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
    """The objects of a listing that are images, in the order of the listing."""
    return (entry for entry in objects if is_image_key(entry.key))


def encode_key(key: str) -> tuple[str, bytes | None]:
    """The uri that is stored for a key, and the key's raw bytes where the uri differs from them (else None).

    `key` holds bytes that are not UTF-8 as `os.fsdecode` gives them (surrogateescape); each becomes `%XX`. A `%` that
    two hexadecimal digits follow becomes `%25`, and nothing else is changed: so no two keys share a uri, and replacing
    each `%XX` of it by that byte gives the key back. Raises UsageError for a surrogate that stands for no byte.
    """
    uri = escape_bytes(_LITERAL.sub("%25", key))
    return uri, None if uri == key else key.encode("utf-8", "surrogateescape")


def escape_bytes(text: str) -> str:
    """A text with `%XX` for each byte that is not UTF-8. Raises UsageError for a surrogate that stands for no byte."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        pass
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"name {text!r} has a surrogate at {error.start} that stands for no byte: rename it"
        ) from error
    return "".join(_escaped(character) for character in text)


def decode_key(uri: str, raw_key: bytes | None) -> str:
    """The key that `encode_key` was given."""
    return uri if raw_key is None else raw_key.decode("utf-8", "surrogateescape")


def own_name(uri: str, raw_key: bytes | None) -> str:
    """The key as its owner writes it in a table of labels; the uri where the key is not UTF-8."""
    if raw_key is None:
        return uri
    try:
        return raw_key.decode()
    except UnicodeDecodeError:
        return uri


def _is_hidden(rooted: str) -> bool:
    # `.git/`, `.DS_Store`, `._1.jpg` (macOS puts one beside each file on foreign disks), and the folder of its zips.
    return "/." in rooted or "/__MACOSX/" in rooted


def _escaped(character: str) -> str:
    code = ord(character)
    return f"%{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else character
