"""The vocabulary at rest: statuses, kinds and the schema of every table."""

from __future__ import annotations

from enum import Enum


class Status(str, Enum):
    """What became of one image. A property of its bytes, or (TRANSIENT) of the attempt to read it."""

    OK = "ok"
    EMPTY = "empty"
    UNSUPPORTED = "unsupported"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"
    MISSING = "missing"
    CHANGED = "changed"
    DENIED = "denied"
    TIMEOUT = "timeout"
    CRASHED = "crashed"


TRANSIENT = frozenset({Status.MISSING, Status.CHANGED, Status.DENIED, Status.TIMEOUT, Status.CRASHED})
"""Statuses that are never taken as settled: the next run on the root tries these images again."""


class Kind(str, Enum):
    """What a pair of images is, decided on their pixels."""

    SAME_BYTES = "same_bytes"
    SAME_PIXELS = "same_pixels"
    NEAR_IDENTICAL = "near_identical"
    EDITED = "edited"
    SAME_SCENE = "same_scene"
    LOOK_ALIKE = "look_alike"
    SAME_PARENT = "same_parent"


EXACT_DUPLICATES = frozenset({Kind.SAME_BYTES, Kind.SAME_PIXELS})
NEAR_DUPLICATES = frozenset({Kind.NEAR_IDENTICAL, Kind.EDITED})
GROUPING_KINDS = EXACT_DUPLICATES | NEAR_DUPLICATES
"""Kinds that join two images into one group; `same_scene` and `look_alike` never do."""
