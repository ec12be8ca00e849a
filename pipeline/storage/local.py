"""Files under one folder, committed by temporary file, fsync and rename (or link, for put-if-absent)."""

from __future__ import annotations

import errno
import io
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import AccessDenied, NotFound, ObjectChanged, StorageError, StorageFull, UsageError
from pipeline.storage.counts import count_request
from pipeline.storage.interface import TEMPORARY_PREFIX, ObjectInfo, check_range
from pipeline.storage.walk import Closed, walk

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_IN_THE_WAY = {
    errno.ENOTDIR: "Choose another place (such as another --root), or move the file away",
    errno.EISDIR: "Name a file: this is a folder",
}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_NAMES = frozenset(("", ".", ".."))
_BUFFER = 2**16
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: opening a FIFO must not wait for a writer


@dataclass(frozen=True)
class LocalStore:
    """A `Store` on disk. Keys hold bytes that are not UTF-8 by surrogateescape, as `os.fsdecode` does."""

    folder: Path

    @property
    def uri(self) -> str:
        """Absolute path."""
        return str(self.folder)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield regular files, folder by folder, in the order of whole keys; AccessDenied where one may not be listed.

        Links to files count as files. A link to a folder is followed if it leads out of this store and is not
        itself reached through such a link; so no cycle is walked and no file inside is listed twice. FIFOs, sockets,
        devices and dangling links are left out, and their number is logged.
        """
        return self._walk(prefix, _refuse)

    def list_open(self, closed: Closed) -> Iterator[ObjectInfo]:
        """Yield as `list`, without the folders below that may not be listed: `closed` is told of each in its turn."""
        return self._walk("", closed)

    def read(self, key: str, *, expect: ObjectInfo | None = None) -> bytes:
        """Return the file; ObjectChanged if size or time are not `expect`'s (time 0 = any) or it grew meanwhile."""
        path = self._name(key)
        with typed("read", path):
            data = _read_whole(path, expect)
        count_request("disk.get", read=len(data))
        return data

    def read_range(self, key: str, start: int, length: int, *, expect: ObjectInfo | None = None) -> bytes:
        """Return bytes [start, start + length); ObjectChanged as in `read`."""
        check_range(key, start, length)
        path = self._path(key)
        with typed("read", path), _opened(path) as file:
            _check_unchanged(str(path), os.fstat(file.fileno()), expect)
            file.seek(start)
            data = file.read(length)
        if expect is not None and len(data) != max(0, min(length, expect.size - start)):
            raise ObjectChanged(f"read {path}: {len(data)} bytes came of {length} from {start}: it changed meanwhile")
        count_request("disk.get", read=len(data))
        return data

    def begin(self, key: str, start: int = 0, length: int | None = None, *, expect: ObjectInfo | None = None) -> None:
        """Return None: a disk answers at once."""

    def put(self, key: str, data: bytes) -> None:
        """Write by temporary file, fsync, rename and fsync of the folder."""
        self.put_pieces(key, (data,))

    def put_pieces(self, key: str, pieces: Iterable[bytes]) -> None:
        """Write as `put` does, holding one piece at a time."""
        path = self._path(key)
        with typed("write", path), _committing(path, pieces) as temporary:
            written = temporary.stat().st_size
            os.replace(temporary, path)  # noqa: PTH105 - one spelling for all calls of this module
        count_request("disk.put", written=written)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write by temporary file, fsync and link, which fails if the name exists (on NFS too)."""
        path = self._path(key)
        try:
            with typed("write", path), _committing(path, (data,)) as temporary:
                _link(temporary, path)
        except FileExistsError:
            holds = self.read(key) == data
            with typed("write", path):
                _sync_folder(path.parent)  # whoever linked it may not have come to that yet
            return holds
        count_request("disk.put", written=len(data))
        return True

    def exists(self, key: str) -> bool:
        """Tell whether the key is a regular file."""
        try:
            self.stat(key)
        except NotFound:
            return False
        return True

    def stat(self, key: str) -> ObjectInfo:
        """Return size and modification time; NotFound for folders and special files too."""
        path = self._path(key)
        count_request("disk.head")
        with typed("stat", path):
            status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise NotFound(f"stat {path}: it is no regular file")
        return ObjectInfo(key, status.st_size, "", status.st_mtime_ns)

    def delete(self, key: str) -> None:
        """Remove the file."""
        path = self._path(key)
        count_request("disk.delete")
        try:
            with typed("delete", path):
                path.unlink()
        except NotFound:
            return

    def open(self, key: str) -> BinaryIO:
        """Open the file for reading."""
        path = self._path(key)
        count_request("disk.get")
        with typed("read", path):
            return stream_of(path, _descriptor(path))

    def local_path(self, key: str) -> Path | None:
        """Return the file's path."""
        return self._path(key)

    def _walk(self, prefix: str, closed: Closed) -> Iterator[ObjectInfo]:
        count_request("disk.list")
        with typed("list", self.folder):
            if not stat.S_ISDIR(self.folder.stat().st_mode):
                raise StorageError(
                    f"list {self.folder}: it is a file; wanted a folder, or an image, archive, video or list"
                )
        yield from walk(self.folder, prefix, typed, closed)

    def _path(self, key: str) -> Path:
        return Path(self._name(key))

    def _name(self, key: str) -> str:
        """The path as text: making a Path of it takes 5 us, a whole read 20."""
        if "\0" in key or not _NO_NAMES.isdisjoint(key.split("/")):
            raise UsageError(
                f"{self.folder}: a disk cannot hold the key {key!r}; wanted names joined by single slashes, none of "
                "them empty, `.` or `..`"
            )
        return f"{self.folder}/{key}" if self.folder.name else f"/{key}"


def _refuse(_: str, error: AccessDenied) -> None:
    raise error


def _read_whole(path: str, expect: ObjectInfo | None) -> bytes:
    descriptor = os.open(path, _READ)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NotFound(f"read {path}: it is no regular file")
        _check_unchanged(path, found, expect)
        pieces = [os.read(descriptor, found.st_size + 1)]  # one more: did it grow?
        while pieces[-1] and sum(map(len, pieces)) < found.st_size:  # Linux reads 2 GB at a time
            pieces.append(os.read(descriptor, found.st_size + 1))
    finally:
        os.close(descriptor)
    data = b"".join(pieces)
    if len(data) != found.st_size:
        raise ObjectChanged(f"read {path}: {len(data)} bytes came of {found.st_size}: it changed while it was read")
    return data


def _check_unchanged(path: str, found: os.stat_result, expect: ObjectInfo | None) -> None:
    if expect is None:
        return
    if found.st_size != expect.size:
        raise ObjectChanged(f"read {path}: {found.st_size} bytes; listed with {expect.size}. List again")
    if expect.mtime_ns not in (0, found.st_mtime_ns):
        raise ObjectChanged(f"read {path}: written at another time than when it was listed. List again")


def _opened(path: Path) -> BinaryIO:
    return os.fdopen(_descriptor(path), "rb")


def _descriptor(path: Path) -> int:
    descriptor = os.open(path, _READ)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotFound(f"read {path}: it is no regular file")
    return descriptor


class _File(io.RawIOBase):
    """An open file. A read that fails is a StorageError: zipfile takes an OSError for a damaged archive.

    It has no `fileno`: who asks for that reads past it, and indexed_gzip takes a failure for a damaged gzip.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with typed("read", self._path):
            return os.readv(self._descriptor, [buffer])

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self._descriptor, offset, whence)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def stream_of(path: Path, descriptor: int) -> BinaryIO:
    """An open file to read and seek in, whose reads raise StorageErrors; closing it closes the descriptor."""
    return io.BufferedReader(_File(path, descriptor), _BUFFER)


@contextmanager
def _committing(path: Path, pieces: Iterable[bytes]) -> Iterator[Path]:
    """Write and sync a temporary neighbour of `path`; the body commits it, then the folder is synced.

    Whatever is left of the temporary file is removed, except by a crash; no listing shows it.
    """
    _make_folders(path.parent)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        _write_synced(temporary, pieces)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _write_synced(path: Path, pieces: Iterable[bytes]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise StorageError(
                f"write {path}: this file system has no hard links ({error.strerror}), which keep two runs from "
                "overwriting each other's work. Put the root on another disk, or on s3://"
            ) from None
        raise


def _make_folders(folder: Path) -> None:
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        try:
            new.mkdir()
        except FileExistsError:
            if not new.is_dir():  # else another worker made it meanwhile
                raise NotADirectoryError(errno.ENOTDIR, "a file is in the way of a folder", str(new)) from None
        _sync_folder(new.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def typed(verb: str, path: str | Path) -> Iterator[None]:
    """Turn an OSError into the StorageError of its cause, with verb and path. FileExistsError passes."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        failure = _translated(verb, path, error)
    else:
        return
    raise failure


def _translated(verb: str, path: str | Path, error: OSError) -> StorageError:
    named = error.filename if isinstance(error.filename, str) else str(path)
    at = "" if named == str(path) or TEMPORARY_PREFIX in named else f" (at {named})"
    where = f"{verb} {path}{at}: {error.strerror or error}"
    if error.errno in _MISSING and not (verb == "write" and error.errno == errno.ENOTDIR):
        return NotFound(f"{where}. Check the path")
    if error.errno in _DENIED:
        return AccessDenied(f"{where}. Give this user (uid {os.geteuid()}) the right, or choose another folder")
    if error.errno in _FULL:
        return StorageFull(f"{where}. Free space or raise the quota, then run again; finished work is kept")
    advice = _IN_THE_WAY.get(error.errno or 0, "Check the disk and its mount")
    return StorageError(f"{where} (errno {error.errno}). {advice}")
