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


_lock = threading.Lock()
_total = RequestCounts()


def request_counts() -> RequestCounts:
    """Return the counts of this process so far; subtract an earlier one to get those of a task."""
    return _total


def count_request(operation: str, read: int = 0, written: int = 0) -> None:
    """Add one request and the bytes of its body."""
    _add(RequestCounts({operation: 1}, {}, read, written))


def count_bytes_read(read: int) -> None:
    """Add bytes of a body whose request is counted already."""
    _add(RequestCounts({}, {}, read))


def count_retry(cause: str) -> None:
    """Add one retry."""
    _add(RequestCounts({}, {cause: 1}))


def _add(more: RequestCounts) -> None:
    global _total  # noqa: PLW0603 - the one total of the process
    with _lock:
        _total += more


def _reset_in_child() -> None:
    global _total, _lock
    # a forked worker starts at zero, and its parent's lock may be held
    _lock, _total = threading.Lock(), RequestCounts()


os.register_at_fork(after_in_child=_reset_in_child)
