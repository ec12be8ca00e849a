"""Archives of every kind, written by the standard library, or by hand where it refuses to."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable

Members = Iterable[tuple[str, bytes]]

KINDS = (".tar", ".tar.gz", ".tgz", ".zip", ".stored.zip", ".bz2.zip")
"""Endings of the archives that `archive` makes; those of `.zip` deflated unless they say otherwise."""


def archive(ending: str, members: Members) -> bytes:
    """The bytes of an archive with these members in this order."""
    return zip_of(members, _METHODS[ending]) if ending in _METHODS else tar_of(members, "gz" in ending)


def tar_of(members: Members, is_packed: bool = False, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar, packed by gzip or not."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz" if is_packed else "w", format=form) as file:
        for name, data in members:
            file.addfile(tar_entry(name, len(data)), io.BytesIO(data))
    return sink.getvalue()


def tar_entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """A header."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.linkname = size, kind, target
    return entry


def zip_of(members: Members, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, method)
    return sink.getvalue()


_METHODS = {".zip": zipfile.ZIP_DEFLATED, ".stored.zip": zipfile.ZIP_STORED, ".bz2.zip": zipfile.ZIP_BZIP2}
