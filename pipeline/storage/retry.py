"""The one retry loop. Clients underneath have theirs switched off, so that the total is bounded."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import BadCredentials, CorruptObject, StorageError, StorageUnavailable
from pipeline.storage.counts import count_retry

T = TypeVar("T")
MAX_WAIT = 20.0
_FINAL: dict[str, type[StorageError]] = {"corrupt": CorruptObject, "credentials": BadCredentials}
_log = logging.getLogger(__name__)


class Transient(Exception):
    """One attempt failed in a way that another may not.

    cause: `throttled`, `connection`, `server`, `corrupt`, `conflict` or `credentials`. wait: seconds asked for by
    the server, 0 if none.
    """

    def __init__(self, cause: str, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.cause = cause
        self.wait = wait


@dataclass(frozen=True)
class RetryPolicy:
    """max_attempts in all; backoff: seconds before the second one at most."""

    max_attempts: int
    backoff: float


def with_retries(policy: RetryPolicy, where: str, attempt: Callable[[], T]) -> T:
    """Call `attempt` until it returns, at most `max_attempts` times; other errors than Transient pass through.

    Waits half to all of backoff * 2^n (throttling: twice that; jitter keeps workers from retrying in step), at most
    20 s. Raises CorruptObject, BadCredentials or StorageUnavailable by the last cause.
    """
    for number in range(1, policy.max_attempts + 1):
        try:
            return attempt()
        except Transient as error:
            last = error
        if number < policy.max_attempts:
            count_retry(last.cause)
            wait = _wait(policy, number, last)
            _log.info("%s: %s; attempt %d of %d in %.1f s", where, last, number + 1, policy.max_attempts, wait)
            time.sleep(wait)
    # raised outside of `except`: a chained client error could carry signed headers
    raise _FINAL.get(last.cause, StorageUnavailable)(
        f"{where}: {last}; gave up after {policy.max_attempts} attempts. {_ADVICE.get(last.cause, _ADVICE_OTHER)}"
    )


_ADVICE = {
    "corrupt": "The object or the way to it is damaged: copy it anew from its origin, or remove it",
    "throttled": "The store asks for fewer requests: use fewer workers, or run again later; finished work is kept",
    "credentials": "Check the instance role or profile that should give credentials",
}
_ADVICE_OTHER = "Check that the endpoint is right and up, then run again; finished work is kept"


def _wait(policy: RetryPolicy, number: int, error: Transient) -> float:
    base = policy.backoff * 2.0 ** (number - 1) * (2 if error.cause == "throttled" else 1)
    return min(MAX_WAIT, max(base * random.uniform(0.5, 1.0), error.wait))
