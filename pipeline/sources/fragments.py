"""Fragments: images inside a file, such as the members of an archive, and how they are named."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from pipeline.sources.folder import escape_key, is_hidden, is_image_key, own_name
from pipeline.sources.videos import VIDEO_SUFFIXES

ARCHIVE_SUFFIXES = {".tar": "tar", ".tar.gz": "tar.gz", ".tgz": "tar.gz", ".zip": "zip"}
"""Last part of the name of an archive, in any case, and its kind: what a catalog row calls `parent_kind`."""
ARCHIVES = frozenset(ARCHIVE_SUFFIXES.values())
VIDEO, IMAGE = "video", "image"
"""Kinds of other parents: their fragments are frames, and boxes."""
_IN_ARCHIVE = re.compile(r"(\.(?:tar|tar\.gz|tgz|zip))#", re.IGNORECASE)
_FRAME = re.compile(r"^t=\d+\.\d{3}$")
_AS_BOX = re.compile("^(xywh|corners)=")
_BOX = re.compile(r"(?:^|#)((?:xywh|corners)=[^#]*)$")


class Fragment(NamedTuple):
    """An image inside a file, or that file itself where its inside cannot be listed.

    name: what stands behind the `#` of its uri, escaped like a key; "" for the file itself. position: where it lies,
    the order of the fragments of one file: byte of a tar's content (of the unpacked stream of a tar.gz, of a zip's
    local header), microsecond of a video. length: bytes that it takes there, 0 for a frame. size: bytes that it has,
    of a frame those of its video. problem: why the file itself cannot be listed, a status, a colon and what was seen;
    "" for a fragment. label: what a WebDataset sample says of its images, else "".
    """

    name: str
    position: int
    length: int
    size: int
    problem: str = ""
    label: str = ""

    @property
    def box(self) -> str:
        """The box that it is, as `kernels.boxes` writes it; "" where it is none."""
        found = _BOX.search(self.name)
        return found[1] if found else ""

    @property
    def whole(self) -> Fragment | None:
        """What its box is cut out of: the fragment without it, None for that of an image file; itself without a box."""
        box = self.box
        if not box:
            return self
        return self._replace(name=self.name[: -len(box) - 1]) if len(self.name) > len(box) else None


def parent_kind(key: str) -> str:
    """What a key holds by its name: the kind of an archive, `video`, or "" for any other file and for hidden ones."""
    lowered = key.lower()
    kind = next((kind for suffix, kind in ARCHIVE_SUFFIXES.items() if lowered.endswith(suffix)), "")
    stem, dot, suffix = lowered.rpartition("/")[2].rpartition(".")
    if not kind and stem and suffix in VIDEO_SUFFIXES:
        kind = VIDEO
    return "" if not kind or f"{stem}{dot}{suffix}" in ARCHIVE_SUFFIXES or is_hidden(key) else kind


def archive_stem(name: str) -> str:
    """The name of an archive without its suffix; "" for a name that is none."""
    lowered = name.lower()
    length = next((len(suffix) for suffix in ARCHIVE_SUFFIXES if lowered.endswith(suffix)), 0)
    return name[:-length] if length else ""


def member_name(name: str) -> str:
    """The name of a member as rows show it: without the `./` that some archivers begin with."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def is_image_member(name: str) -> bool:
    """Whether a member is an image by its name, and not hidden. `..` and a leading slash hide nothing: a name is a
    name, and no member is ever written under it.
    """
    plain = "/".join(part for part in name.split("/") if part not in ("", ".", ".."))
    return is_image_key(plain)


def fragment_uri(uri: str, name: str) -> str:
    """The uri of a fragment of the file at `uri`; that of the file itself for the name ""."""
    return f"{uri}#{name}" if name else uri


def fragment_name(member: str, repeat: int) -> str:
    """The name of a member for a uri; the second of one name and later ones carry their number behind another `#`.

    The `=` of one that begins as a box does is `%3D`.
    """
    return _AS_BOX.sub(r"\1%3D", escape_key(member)) + (f"#{repeat}" if repeat > 1 else "")


def shown_name(uri: str, raw_key: bytes | None, name: str | None) -> str:
    """The name of a catalog row as its owner writes it: the key, and what stands behind the `#` of a fragment."""
    return fragment_uri(own_name(_file_uri(uri, name), raw_key), plain_name(name or ""))


def plain_name(name: str) -> str:
    """The name of a fragment as its owner writes it; as it is where that is no UTF-8."""
    try:
        return unquote_to_bytes(name).decode() if "%" in name else name
    except UnicodeDecodeError:
        return name


def rule_path(uri: str, raw_key: bytes | None, name: str | None) -> str:
    """The path that gives a catalog row its split and label: that of its file; an archive stands in it as a folder."""
    key = own_name(_file_uri(uri, name), raw_key)
    member = _FRAME.sub("", _BOX.sub("", name or "")).partition("#")[0]
    return f"{key}/{plain_name(member)}" if member else key


def table_name(name: str) -> str:
    """The name of an image as a table of annotations is asked for it: an archive is a folder, as in `rule_path`."""
    return _IN_ARCHIVE.sub(r"\1/", name, count=1)


def list_name(uri: str, raw_key: bytes | None, name: str | None) -> tuple[bytes, str]:
    """What names a catalog row in its list: the raw bytes of the file's key, and its box ("" where it is none)."""
    found = _BOX.search(name or "")
    return raw_key or _file_uri(uri, name).encode(), found[1] if found else ""


def _file_uri(uri: str, name: str | None) -> str:
    return uri[: -len(name) - 1] if name else uri
