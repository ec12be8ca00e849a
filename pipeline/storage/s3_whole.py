"""Whole objects in place of the ranges of them that were asked for: how many bytes of such come, and when."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, cast

from pipeline.errors import StorageUnavailable

Got: TypeAlias = "tuple[dict[str, Any], bytes]"
"""An answer and its body."""

LARGEST_WHOLE = 64 * 2**20
"""Bytes of an object that may come whole for each range of it: an archive is read in pieces of 8 MB."""
SMALL_WHOLE = 2**19
"""Bytes that may come whole for many ranges at once: 64 are begun, and what they bring stays within 32 MB."""
IS_WHOLE = "IsWhole"
"""Field of an answer that a range was cut of."""


class TooLarge(Exception):
    """An answer has more bytes than may come; they were left where they are. size: -1 where nothing tells."""

    def __init__(self, size: int, most: int) -> None:
        super().__init__(f"{size} bytes, at most {most} may come")
        self.size, self.most = size, most


class WholeAnswers:
    """Buckets of a server that answer ranges with whole objects: of those that are not small one comes at a time."""

    def __init__(self) -> None:
        self._buckets = set[str]()
        # one thread, not a lock: malloc keeps what each of 32 threads had, 1 GB of 60 spans of archives of 30 MB
        self._reader = ThreadPoolExecutor(1)

    def are_known(self, bucket: str) -> bool:
        """Whether the last range of a bucket came as a whole object that was not small."""
        return bucket in self._buckets

    def served(self, where: str, bucket: str, wanted: str, ask: Callable[[int], Got]) -> Got:
        """What `ask` gives for the range `wanted`: it is called with the bytes that may come at most, 0 = any number.

        Raises StorageUnavailable for a whole object that is too large to come for each range.
        """
        try:
            return self._served(bucket, wanted, ask)
        except TooLarge as error:
            size = error.size
        all_of_it = f"all {size:,} bytes" if size >= 0 else "all of an object whose length it does not tell"
        raise StorageUnavailable(
            f"{where}: the server answers {wanted} with {all_of_it}; wanted that range, or at most {LARGEST_WHOLE:,} "
            "bytes, since so large an object is read in many. Have the server, or the proxy before it, heed the header "
            "Range"
        )

    def _served(self, bucket: str, wanted: str, ask: Callable[[int], Got]) -> Got:
        largest = _most(wanted, LARGEST_WHOLE)
        if bucket not in self._buckets:
            try:
                return ask(most_at_once(wanted))
            except TooLarge as error:
                if error.size > largest:
                    raise
            self._buckets.add(bucket)
        got = self._reader.submit(ask, largest).result()
        if IS_WHOLE not in got[0]:
            self._buckets.discard(bucket)
        return got


def most_at_once(wanted: str) -> int:
    """Bytes that may come for a range (`bytes=a-b`, `bytes=-n`) beside others; 0 = any number, as for `bytes=a-`."""
    return _most(wanted, SMALL_WHOLE)


def read_at_most(body: Any, told: int, most: int) -> bytes:
    """The bytes of a body. Raises TooLarge for more than `most` (0 = any number), and drops the connection.

    told: its length, -1 where nothing tells.
    """
    if told >= 0 or not most:
        data = b""
        is_more = 0 < most < told
    else:
        data = cast(bytes, body.read(most + 1))
        is_more = len(data) > most
    if is_more:
        body.close()
        raise TooLarge(told, most)
    return data + cast(bytes, body.read())


def _most(wanted: str, whole: int) -> int:
    """Bytes of the range or of a whole object, whichever are more."""
    start, _, end = wanted.removeprefix("bytes=").partition("-")
    return max(whole, int(end) - int(start or 1) + 1) if end else 0
