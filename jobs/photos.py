"""Which photos a job reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


def chosen_photos(folder: Path, cap: int) -> list[Path]:
    """At most `cap` photos of each subfolder, chosen by the hash of their relative path, so that a rerun agrees."""
    by_source: dict[str, list[tuple[str, Path]]] = {}
    for path in folder.rglob("*"):
        if path.suffix.lower() in PHOTO_SUFFIXES:
            name = path.relative_to(folder).as_posix()
            by_source.setdefault(name.split("/")[0], []).append((hashlib.sha256(name.encode()).hexdigest(), path))
    return [path for source in sorted(by_source) for _, path in sorted(by_source[source])[:cap]]
