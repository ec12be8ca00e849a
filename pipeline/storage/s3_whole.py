"""Whole objects in place of the ranges of them that were asked for: how many bytes of such may come."""

from __future__ import annotations

from typing import Any, cast

from pipeline.errors import StorageUnavailable

LARGEST_WHOLE = 2**19
"""Bytes of an object that may come whole for a range of it: 64 ranges are begun, and what they bring stays in 32 MB. Of
a larger one each range would cost all of it: an archive of 1 GB is read in 128."""


class TooLarge(Exception):
    """An answer has more bytes than may come; they were left where they are. size: -1 where nothing tells."""

    def __init__(self, size: int, most: int) -> None:
        super().__init__(f"{size} bytes, at most {most} may come")
        self.size, self.most = size, most


def refusal(where: str, wanted: str, error: TooLarge) -> StorageUnavailable:
    """What a range ends with in whose place a whole object came that is too large."""
    all_of_it = f"all {error.size:,} bytes" if error.size >= 0 else "all of an object whose length it does not tell"
    return StorageUnavailable(
        f"{where}: the server answers {wanted} with {all_of_it}; wanted that range, or at most {LARGEST_WHOLE:,} "
        "bytes. Have the server, or the proxy before it, heed the header Range, or audit archives and videos on a disk"
    )


def most_bytes(wanted: str) -> int:
    """Bytes that may come for a range (`bytes=a-b`, `bytes=-n`): its own, or a small object; 0 = any number, as for
    `bytes=a-`, and where none is asked for.
    """
    start, _, end = wanted.removeprefix("bytes=").partition("-")
    return max(LARGEST_WHOLE, int(end) - int(start or 1) + 1) if end else 0


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
