"""Which objects of a folder or bucket are images, and how their names are stored."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.storage import ObjectInfo

IMAGE_SUFFIXES = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "giff", "tif", "tiff"}
    | {"heic", "heif", "avif", "jp2", "j2k", "jpx"}
)
"""Last parts of the names that are taken as images, in any case. What the bytes are is for the decoder to say."""

MAX_SUFFIXES, MAX_SUFFIX, SHOWN_SUFFIXES = 40, 12, 8
OTHER, NO_SUFFIX = "other", "without a suffix"

_HIDDEN = re.compile(r"/\.(?!\.?(?:/|\Z))")
_LITERAL = re.compile("%(?=[0-9A-Fa-f]{2})|#")


def is_image_key(key: str) -> bool:
    """Whether a key relative to its source is an image by its suffix and neither hidden nor in a hidden folder."""
    stem, _, suffix = key.rpartition(".")
    return bool(stem) and suffix.lower() in IMAGE_SUFFIXES and not is_hidden(key)


@dataclass
class LeftOut:
    """What a listing holds beside its images: files by suffix, hidden ones, images that were not selected. Of what
    counts as images, those of a list that are `missing`, and folders that may not be listed (`closed`).

    Memory is bounded by MAX_SUFFIXES.
    """

    images: int = 0
    hidden: int = 0
    unselected: int = 0
    missing: int = 0
    closed: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)

    @property
    def files(self) -> int:
        """Files that are neither images by their name nor hidden."""
        return sum(self.suffixes.values())

    def add(self, key: str) -> None:
        """Counts a key that is no image."""
        if is_hidden(key):
            self.hidden += 1
            return
        stem, dot, suffix = key.rpartition("/")[2].rpartition(".")
        named = f".{escape_bytes(suffix.lower())}" if stem and dot and len(suffix) <= MAX_SUFFIX else NO_SUFFIX
        self.suffixes[named if named in self.suffixes or len(self.suffixes) < MAX_SUFFIXES else OTHER] += 1

    def count(self, what: str, times: int = 1) -> None:
        """Counts something that has no suffix worth a mention, such as a link in an archive."""
        self.suffixes[what] += times

    def join(self, other: LeftOut) -> None:
        """Adds what another one counted."""
        self.images += other.images
        self.hidden += other.hidden
        self.unselected += other.unselected
        self.missing += other.missing
        self.closed += other.closed
        self.suffixes.update(other.suffixes)

    def __str__(self) -> str:
        """`15 files: 5 .psd, 5 .exr, 5 .txt; 3 hidden`."""
        most = sorted(self.suffixes.items(), key=lambda item: (item[0] == OTHER, -item[1], item[0]))
        shown = [f"{count:,} {name}" for name, count in most[:SHOWN_SUFFIXES]]
        rest = sum(count for _, count in most[SHOWN_SUFFIXES:])
        shown += [f"{rest:,} of {len(most) - SHOWN_SUFFIXES} other suffixes"] if rest else []
        named = [f"{self.files:,} file{'s'[: self.files != 1]}: {', '.join(shown)}"] if shown else []
        beside = [(self.hidden, "hidden"), (self.unselected, "images that are not selected")]
        return "; ".join([*named, *(f"{count:,} {what}" for count, what in beside if count)])


def together(parts: Iterable[LeftOut]) -> LeftOut:
    """What several listings hold, added up."""
    whole = LeftOut()
    for part in parts:
        whole.join(part)
    return whole


def image_objects(objects: Iterable[ObjectInfo], left_out: LeftOut) -> Iterator[ObjectInfo]:
    """The objects of a listing that are images, in the order of the listing; the others are counted in `left_out`."""
    for entry in objects:
        if is_image_key(entry.key):
            left_out.images += 1
            yield entry
        else:
            left_out.add(entry.key)


def encode_key(key: str) -> tuple[str, bytes | None]:
    """The uri that is stored for a key, and the key's raw bytes where the uri differs from them (else None).

    `key` holds bytes that are not UTF-8 as `os.fsdecode` gives them (surrogateescape); each becomes `%XX`. A `%` that
    two hexadecimal digits follow becomes `%25`, a `#` (behind which a fragment is named) `%23`, and nothing else is
    changed: so no two keys share a uri, and replacing each `%XX` of it by that byte gives the key back. Raises
    UsageError for a surrogate that stands for no byte.
    """
    uri = escape_key(key)
    return uri, None if uri == key else key.encode("utf-8", "surrogateescape")


def encode_keys(keys: Sequence[str]) -> tuple[pa.Array, pa.Array]:
    """`encode_key` of many: uris (n,) and raw bytes (n,), null where the uri has the same. Raises as that does.

    Where no key needs it none is looked at by itself, which takes 1 us each.
    """
    try:
        if not _LITERAL.search("\n".join(keys)):
            return pa.array(keys, pa.string()), pa.nulls(len(keys), pa.binary())
    except UnicodeEncodeError:
        pass
    encoded = [encode_key(key) for key in keys]
    return pa.array([uri for uri, _ in encoded], pa.string()), pa.array([raw for _, raw in encoded], pa.binary())


def escape_key(key: str) -> str:
    """The uri of a key, see `encode_key`."""
    return escape_bytes(_LITERAL.sub(_escaped_literal, key))


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


def is_hidden(key: str) -> bool:
    """Whether a key is hidden, or in a hidden folder: `.git/`, `.DS_Store`, `._1.jpg` (macOS puts one beside each file
    on foreign disks), and the folder of its zips. `.` and `..` in the key of an object hide nothing.
    """
    rooted = f"/{key}"
    return ("/." in rooted and _HIDDEN.search(rooted) is not None) or "/__MACOSX/" in rooted


def _escaped_literal(found: re.Match[str]) -> str:
    return f"%{ord(found[0]):02X}"


def _escaped(character: str) -> str:
    code = ord(character)
    return f"%{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else character
