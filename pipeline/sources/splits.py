"""Which split a path belongs to, read from its folders.

A folder names a split when it is one of the names below, in any case, alone or followed by `set`, `_set`, `-set` or
` set`, or by a year or number with nothing between (`train2017`, as in COCO). The first such folder from the top
counts; the file's own name never does. Where no folder in a path names one, the last folder of its source may
(`run photos/train photos/val`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "dev",
    "test": "test",
    "testing": "test",
    "eval": "eval",
    "evaluation": "eval",
    "holdout": "holdout",
}
"""Folder name without its suffix, in lower case -> the split. `dev`, `eval` and `holdout` stay splits of their own: a
data set may hold one of them beside `val` and `test`, and merging the two would hide the leaks between them."""

_SET_SUFFIX = re.compile(r"[_\- ]?set$")
_NUMBER = re.compile(r"(?<=[A-Za-z])[0-9]{1,4}$")


def split_of_name(name: str) -> str | None:
    """The split that the name of a folder or list stands for (`Train_Set`, `train2017` -> `train`), or None."""
    return _split_of(name) or _split_of(_NUMBER.sub("", name))


def _split_of(name: str) -> str | None:
    lowered = name.lower()
    known = SPLIT_NAMES.get(lowered)
    if known is None and lowered.endswith("set"):
        known = SPLIT_NAMES.get(_SET_SUFFIX.sub("", lowered))
    return known


def canonical_split(name: str) -> str:
    """The split that a pattern or a table names: a known name becomes its split, any other is kept as written."""
    return _split_of(name) or name


def find_split(folders: Sequence[str]) -> tuple[int, str] | None:
    """Position and split of the first folder, from the top, that names one; None where none does."""
    for position, folder in enumerate(folders):
        split = split_of_name(folder)
        if split is not None:
            return position, split
    return None


def split_of_place(uri: str) -> str | None:
    """The split that the last folder of a source names (`/data/photos/train`, `s3://bucket/val_set`), or None.

    uri as `storage.canonical_uri` spells it. A bucket and a server are no folders.
    """
    scheme, _, place = uri.rpartition("://")
    *above, last = place.split("/")
    return split_of_name(last) if len(above) >= (2 if scheme == "minio" else 1) else None
