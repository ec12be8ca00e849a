"""WebDataset: the files of one sample lie side by side in a tar, and its `.cls` is the label of its images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.kernels.header import ImageError
from pipeline.sources.folder import is_hidden

LABEL = ".cls"
MOST_LABEL_BYTES = 1024
MOST_FILES = 256
"""Of one sample; more of one name in a row are several samples."""


class Member(NamedTuple):
    """A file in an archive: its name, where it lies and how long it is there, its size, and the text of a label."""

    name: str
    position: int
    length: int
    size: int
    label: str = ""


def is_label(name: str, size: int) -> bool:
    """Whether a member is the label of a sample: `cat/0001.cls`, as WebDataset cuts names at their first dot."""
    stem, key = sample_key(name), name.rpartition("/")[2]
    return 0 < size <= MOST_LABEL_BYTES and bool(stem) and name == stem + LABEL and not is_hidden(key)


def label_text(data: bytes) -> str:
    """The label that a file holds; "" where it is not one line of UTF-8."""
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() else ""


def sample_key(name: str) -> str:
    """The name that the files of a sample share: up to the first dot behind the last slash."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def samples(members: Iterator[Member]) -> Iterator[list[Member]]:
    """Members in their order, those of one sample together. What comes before an ImageError is given before it."""
    held: list[Member] = []
    try:
        for member in members:
            if held and (len(held) == MOST_FILES or sample_key(held[0].name) != sample_key(member.name)):
                yield held
                held = []
            held.append(member)
    except ImageError:
        if held:
            yield held
        raise
    if held:
        yield held
