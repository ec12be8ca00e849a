"""What every store offers, and how one is configured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar
from urllib.parse import urlsplit

from pipeline.errors import UsageError
from pipeline.storage.redact import redact

T = TypeVar("T")
TEMPORARY_PREFIX = ".image-audit-tmp-"
"""Last path segment of everything that is not committed yet; no listing shows such a key."""

_DAY = 86_400


@dataclass(frozen=True)
class StorageConfig:
    """Where stores are and how long to insist. Holds no secret: credentials come the usual AWS ways.

    endpoints: server name -> endpoint URL, for `minio://name/bucket/...`.
    region: AWS region; None = environment or profile, us-east-1 on endpoints of others.
    endpoint_url: endpoint of `s3://`; None = AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or the profile.
    max_attempts: requests per operation at most, the first one included.
    read_timeout, connect_timeout: seconds without a byte, seconds to connect.
    backoff: seconds before the second attempt at most; doubles with each attempt up to 20 s.
    sync_to_local: absolute path of a folder in which copies of remote images and archives are kept; "" = none.
    sync_budget: bytes that these may take; what has no room is read from its store.
    Raises UsageError listing every wrong value.
    """

    endpoints: Mapping[str, str] = field(default_factory=dict, hash=False)
    region: str | None = None
    endpoint_url: str | None = None
    max_attempts: int = 6
    read_timeout: float = 30.0
    connect_timeout: float = 5.0
    backoff: float = 0.25
    sync_to_local: str = ""
    sync_budget: int = 100 * 10**9

    def __post_init__(self) -> None:
        problems = [f"{name} must be over 0, not {value}" for name, value in self._positive().items() if not value > 0]
        if self.sync_to_local and not self.sync_to_local.startswith("/"):
            problems.append(f"sync_to_local {self.sync_to_local!r} must be an absolute path")
        if self.backoff < 0:
            problems.append(f"backoff must be at least 0, not {self.backoff}")
        seconds = {name: getattr(self, name) for name in ("read_timeout", "connect_timeout", "backoff")}
        # a socket refuses 300 years, and only once it is used
        problems += [f"{name} must be at most {_DAY} s, not {value}" for name, value in seconds.items() if value > _DAY]
        named = dict(self.endpoints) | ({} if self.endpoint_url is None else {"endpoint_url": self.endpoint_url})
        problems += [f"{name}: {problem}" for name, url in named.items() if (problem := _endpoint_problem(url))]
        if problems:
            raise UsageError("storage config: " + "; ".join(problems))
        object.__setattr__(self, "endpoints", dict(self.endpoints))

    def _positive(self) -> dict[str, float]:
        return {
            "max_attempts": self.max_attempts,
            "read_timeout": self.read_timeout,
            "connect_timeout": self.connect_timeout,
            "sync_budget": self.sync_budget,
        }


def _endpoint_problem(url: str) -> str:
    if redact(url) != url:
        return f"{redact(url)} carries a credential; take it out and use the AWS environment variables or profile"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return f"{url!r} is no endpoint; wanted http://host:port or https://host[:port]"
    return ""


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object. size in bytes; etag "" on disk; mtime_ns nanoseconds since 1970, 0 where unknown."""

    key: str
    size: int
    etag: str
    mtime_ns: int


def check_range(key: str, start: int, length: int) -> None:
    """Raise UsageError for a negative range."""
    if start < 0 or length < 0:
        raise UsageError(f"{key}: start {start} and length {length} must be at least 0")


class Begun(Protocol):
    """What was asked for by `Store.begin`, for the thread that did."""

    def wait(self) -> bool:
        """Wait for the answer, and tell whether it brings the object: else a read of it asks again, with pauses."""

    def when_failed(self, act: Callable[[], None]) -> None:
        """Have `act` called once, while this thread waits for any, when it is known that it brings something else."""

    def answering(self, read: Callable[[], T]) -> T:
        """Return what `read` does, whose first request is answered by it; in any thread, once it is done."""

    def cancel(self) -> None:
        """Give it up: nobody reads it."""


class Store(Protocol):
    """Bytes under one uri. Keys are relative to it, separated by `/`; safe to use from several threads, to pickle
    and to fork. Every method raises a StorageError of `pipeline.errors`, one type per cause, and UsageError for a
    key that the store cannot hold.
    """

    @property
    def uri(self) -> str:
        """Canonical uri: no credentials, no trailing slash; disk stores have an absolute path."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object whose key starts with `prefix` (any string), sorted by the key's raw bytes.

        Temporary files and folder markers are left out. Raises NotFound for a missing folder or bucket; a missing
        prefix is merely empty.
        """

    def read(self, key: str, *, expect: ObjectInfo | None = None) -> bytes:
        """Return the whole object, length and checksum verified; ObjectChanged when it is not `expect` any more.

        Compared: the size, and the etag or, on disk, the time; an empty etag and a time of 0 are not.
        """

    def read_range(self, key: str, start: int, length: int, *, expect: ObjectInfo | None = None) -> bytes:
        """Return bytes [start, start + length), fewer at the end of the object, none past it; `expect` as in `read`.

        What a whole read compares of the bytes (MD5) cannot be compared of a part.
        """

    def begin(
        self, key: str, start: int = 0, length: int | None = None, *, expect: ObjectInfo | None = None
    ) -> Begun | None:
        """Ask for what a `read`, or `read_range` where there is a length, is going to return (`Begun.answering`).

        None where that has to ask itself, and always on a disk. Raises nothing: the read will.
        """

    def put(self, key: str, data: bytes) -> None:
        """Write the whole object: afterwards, and whenever it dies, the key has the old bytes or the new ones."""

    def put_pieces(self, key: str, pieces: Iterable[bytes]) -> None:
        """Write the object from pieces, as `put`: one at a time on a disk, joined in memory for an object store."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write unless the key exists. True: the key holds exactly `data`, whoever wrote it. False: it holds other
        bytes, and they stay.
        """

    def exists(self, key: str) -> bool:
        """Tell whether the key has an object."""

    def stat(self, key: str) -> ObjectInfo:
        """Return size, etag and time of one object; NotFound if there is none."""

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is fine."""

    def open(self, key: str) -> BinaryIO:
        """Open for reading, seekable, without loading the whole object."""

    def local_path(self, key: str) -> Path | None:
        """Return the path of the key on this machine's disk, None for object stores."""
