"""Counts of storage requests and bytes in this process, for the bill and for tests."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RequestCounts:
    """Requests by operation (`s3.get`, `s3.put`, `s3.list`, `s3.head`, `s3.delete`, `disk.get`, ...), every attempt
    counted; retries by cause (`throttled`, `connection`, `corrupt`, `conflict`); bytes of bodies.
    """

    requests: Mapping[str, int] = field(default_factory=dict)
    retries: Mapping[str, int] = field(default_factory=dict)
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: RequestCounts) -> RequestCounts:
        """Merge the counts of two processes or spans."""
        return RequestCounts(
            dict(Counter(self.requests) + Counter(other.requests)),
            dict(Counter(self.retries) + Counter(other.retries)),
            self.bytes_read + other.bytes_read,
            self.bytes_written + other.bytes_written,
        )

    def __sub__(self, earlier: RequestCounts) -> RequestCounts:
        """Return what happened since `earlier`, a count of the same process."""
        return RequestCounts(
            dict(Counter(self.requests) - Counter(earlier.requests)),
            dict(Counter(self.retries) - Counter(earlier.retries)),
            self.bytes_read - earlier.bytes_read,
            self.bytes_written - earlier.bytes_written,
        )


_lock = threading.RLock()
"""The collector may come at any step to a reader that is to be ended, which counts what it had begun."""
_requests: Counter[str] = Counter()
_retries: Counter[str] = Counter()
_bytes: Counter[str] = Counter()


def request_counts() -> RequestCounts:
    """Return the counts of this process so far; subtract an earlier one to get those of a task."""
    with _lock:
        return RequestCounts(dict(_requests), dict(_retries), _bytes["read"], _bytes["written"])


def count_request(operation: str, read: int = 0, written: int = 0) -> None:
    """Add one request and the bytes of its body."""
    with _lock:
        _requests[operation] += 1
        _bytes["read"] += read
        _bytes["written"] += written


def count_bytes_read(read: int) -> None:
    """Add bytes of a body whose request is counted already."""
    with _lock:
        _bytes["read"] += read


def count_retry(cause: str) -> None:
    """Add one retry."""
    with _lock:
        _retries[cause] += 1


def _reset_in_child() -> None:
    global _lock  # noqa: PLW0603 - the parent's may be held
    _lock = threading.RLock()
    for counter in (_requests, _retries, _bytes):
        counter.clear()


os.register_at_fork(after_in_child=_reset_in_child)
