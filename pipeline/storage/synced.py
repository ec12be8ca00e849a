"""A store whose objects are copied to a local disk when they are first read: `--sync-to-local`."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.storage.blocks import BlockReader
from pipeline.storage.copies import copy_names, has_copy, keep_copy, read_copy
from pipeline.storage.copy_folder import SyncParams
from pipeline.storage.counts import count_request
from pipeline.storage.interface import ObjectInfo, Store, check_range

PIECE = 8 * 2**20
"""Bytes per request while a copy is made for a part of it."""
STREAM_BLOCK, STREAM_BUFFER = 2**20, 2**16
"""Bytes that `open` reads of a copy at a time, and takes of them: a tar is looked into by 512 bytes here and there."""


@dataclass(frozen=True)
class SyncedStore:
    """A `Store` over a remote one. Reads that name the version they expect are served from a copy of that version.

    A copy is made on the first such read, and by nothing else; where there is no room the store itself is read. What
    is written, listed or read without `expect` goes to the store.
    """

    remote: Store
    copies: SyncParams

    @property
    def uri(self) -> str:
        """Of the remote store."""
        return self.remote.uri

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List the remote store."""
        return self.remote.list(prefix)

    def read(self, key: str, *, expect: ObjectInfo | None = None) -> bytes:
        """Return the object: its copy, if that is as it was written; else it is copied."""
        if expect is None or not expect.etag:
            return self.remote.read(key, expect=expect)
        names = copy_names(self.copies, self.uri, expect)
        data = next((data for name in names if (data := read_copy(self.copies, name)) is not None), None)
        if data is None:
            data = self.remote.read(key, expect=expect)
            keep_copy(self.copies, names, (data,))
        else:
            count_request("sync.hit", read=len(data))
        return data

    def read_range(self, key: str, start: int, length: int, *, expect: ObjectInfo | None = None) -> bytes:
        """Return bytes [start, start + length) of the copy, which is made whole first, and anew where it is damaged."""
        check_range(key, start, length)
        if expect is None or not expect.etag:
            return self.remote.read_range(key, start, length, expect=expect)
        name = copy_names(self.copies, self.uri, expect)[-1]
        data = read_copy(self.copies, name, start, length)
        if data is not None:
            count_request("sync.hit", read=len(data))
            return data
        self._keep(expect)
        data = read_copy(self.copies, name, start, length)
        return self.remote.read_range(key, start, length, expect=expect) if data is None else data

    def open(self, key: str) -> BinaryIO:
        """Open a copy of the object as it is now; ObjectChanged if it is replaced and the copy is lost meanwhile."""
        info = self.remote.stat(key)
        name = copy_names(self.copies, self.uri, info)[-1]
        if info.etag and not has_copy(self.copies, name):
            self._keep(info)
        if not info.etag or not has_copy(self.copies, name):
            return self.remote.open(key)
        return io.BufferedReader(cast(io.RawIOBase, BlockReader(self, info, STREAM_BLOCK)), STREAM_BUFFER)

    def begin(self, key: str, start: int = 0, length: int | None = None, *, expect: ObjectInfo | None = None) -> None:
        """Return None: a read makes a copy first, or has one."""

    def put(self, key: str, data: bytes) -> None:
        """Write to the remote store."""
        self.remote.put(key, data)

    def put_pieces(self, key: str, pieces: Iterable[bytes]) -> None:
        """Write to the remote store."""
        self.remote.put_pieces(key, pieces)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write to the remote store."""
        return self.remote.put_if_absent(key, data)

    def exists(self, key: str) -> bool:
        """Ask the remote store."""
        return self.remote.exists(key)

    def stat(self, key: str) -> ObjectInfo:
        """Ask the remote store."""
        return self.remote.stat(key)

    def delete(self, key: str) -> None:
        """Delete in the remote store; a copy stays until copies are removed."""
        self.remote.delete(key)

    def local_path(self, key: str) -> Path | None:
        """Return None: a copy is of one version, a path would be of any."""
        return self.remote.local_path(key)

    def _keep(self, info: ObjectInfo) -> None:
        """Make a copy of which parts can be compared; nothing where there is one or no room."""
        names = copy_names(self.copies, self.uri, info)[-1:]
        starts = range(0, info.size, PIECE)
        keep_copy(self.copies, names, (self.remote.read_range(info.key, at, PIECE, expect=info) for at in starts))
