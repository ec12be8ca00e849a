"""Bytes of a model by https, resumed where the connection breaks."""

from __future__ import annotations

import http.client
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline import __version__
from pipeline.errors import StorageUnavailable

PIECE = 1 << 20
_SAY_EVERY = 10.0  # seconds between two lines on how far it is
_REFUSED = range(400, 500)
_AGAIN = frozenset({408, 425, 429})
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """attempts: broken connections in a row after which an address is given up, one that brings bytes begins anew;
    timeout: seconds without a byte; backoff: seconds before the second attempt, doubled for each further one.
    """

    attempts: int = 4
    timeout: float = 30.0
    backoff: float = 1.0


class _Broken(Exception):
    """A connection that ended early or never came about; another one may do better."""


class _Refused(Exception):
    """The address answers and does not give the file: asking again is of no use."""


def downloaded(url: str, size: int, patience: Patience) -> Iterator[bytes]:
    """The pieces of a file of `size` bytes (0 = not known).

    A broken connection is taken up where it broke. StorageUnavailable, with what the address said, when it is given up.
    """
    done, said, tries, host = 0, time.monotonic(), 0, urlsplit(url).netloc
    while True:
        try:
            for piece in _pieces(url, done, size, patience.timeout):
                done, tries = done + len(piece), 0
                if time.monotonic() - said > _SAY_EVERY:
                    said = time.monotonic()
                    _log.info("%s: %.0f of %s MB", host, done / 1e6, round(size / 1e6) or "?")
                yield piece
            if done >= size:
                return
            failure = f"{done} bytes of {size} came"
        except _Refused as error:
            raise StorageUnavailable(f"{host}: {error}") from None
        except _Broken as error:
            failure = str(error)
        tries += 1
        if tries >= patience.attempts:
            raise StorageUnavailable(f"{host}: {failure}")
        _log.info("%s: %s after %d bytes; trying again", host, failure, done)
        time.sleep(patience.backoff * 2.0 ** (tries - 1))


def _pieces(url: str, start: int, size: int, timeout: float) -> Iterator[bytes]:
    """The bytes of a file of `size` (0 = not known) from `start` on, over one connection."""
    headers = {"User-Agent": f"image-audit/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the table names https alone
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310 - as above
            skipped = 0 if answer.status == 206 else start  # a server may know no ranges
            rest = answer.length  # None where the server does not say
            wanted = size - start + skipped
            if size and rest is not None and rest != wanted:  # nothing of a sign-in page is kept
                raise _Refused(f"it gives {rest} bytes where {wanted} are wanted: another file or a page in its place")
            while piece := answer.read(PIECE):
                rest = None if rest is None else rest - len(piece)
                kept, skipped = piece[skipped:], max(0, skipped - len(piece))
                if kept:
                    yield kept
            if rest:
                raise _Broken(f"the connection ended {rest} bytes early")
    except urllib.error.HTTPError as error:
        kind = _Refused if error.code in _REFUSED and error.code not in _AGAIN else _Broken
        raise kind(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _Broken(str(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"{type(error).__name__}: {error}") from None
