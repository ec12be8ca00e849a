"""Which image a task is at: what decodes says so, and whoever waits for the task can tell a hang from work."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
VIDEO = 5.0  # times the patience with an image: many frames may lie before the wanted one
LOOK_SECONDS = 1.0


class GivenUp(BaseException):
    """Ends the thread of a task that nobody waits for any more; no `except Exception` may take it for a failure."""


@dataclass
class Pulse:
    """Of a task that one thread carries out and another one watches.

    `at`: number of the image that it is at, 0 between two. `times`: the patience that this one asks for. is_reading:
    it is at a read of a store.
    """

    at: int = 0
    begun: int = 0
    times: float = 1.0
    is_reading: bool = False
    is_given_up: bool = False


class _Own(threading.local):
    pulse: Pulse | None = None


_OWN = _Own()


@contextmanager
def at_image(times: float = 1.0) -> Iterator[None]:
    """Around what looks at one image, in the thread of its task. Reads of a store do not belong into it (`reading`)."""
    pulse = _OWN.pulse
    if pulse is None:  # nobody watches
        yield
        return
    _require_wanted(pulse)
    pulse.begun += 1
    pulse.times, pulse.at = times, pulse.begun
    try:
        yield
    finally:
        pulse.at = 0
    _require_wanted(pulse)


@contextmanager
def reading() -> Iterator[None]:
    """Around a read of a store by what looks at an image, whose time is not counted: a store has its own timeouts."""
    pulse = _OWN.pulse
    if pulse is None or pulse.is_reading:
        yield
        return
    pulse.is_reading = True
    try:
        yield
    finally:
        pulse.is_reading = False


def each_at_image(items: Iterable[T], times: float = 1.0) -> Iterator[T]:
    """The items of an iterator that looks at an image for each."""
    every = iter(items)
    while True:
        with at_image(times):
            item = next(every, every)
        if item is every:
            return
        yield item  # type: ignore[misc]
        del item  # else it is held while the next one is made


def _require_wanted(pulse: Pulse) -> None:
    if pulse.is_given_up:
        raise GivenUp


class _Work(Generic[T]):
    """A call in a thread of its own, which never keeps the process."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call, self._results, self._errors = call, list[T](), list[BaseException]()
        self.pulse = Pulse()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.ended = threading.Event()  # Thread.join says of a thread that it ended when a signal interrupts it

    def _run(self) -> None:
        _OWN.pulse = self.pulse
        try:
            self._results.append(self._call())
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            self._errors.append(error)
        finally:
            self.ended.set()

    def hangs(self, seconds: float) -> bool:
        """Starts it and waits until it ended, or was at one image for so long."""
        self._thread.start()
        at, waited = 0, 0.0
        while not self.ended.wait(LOOK_SECONDS):
            if self.pulse.at != at:
                at, waited = self.pulse.at, 0.0
            elif not self.pulse.is_reading:
                waited += LOOK_SECONDS
            if at and not self.pulse.is_reading and waited >= seconds * self.pulse.times:
                return True
        return False

    def result(self) -> T:
        """What it returned or raised."""
        if self._errors:
            raise self._errors[0]
        return self._results[0]

    def leave(self, release: Callable[[int], None]) -> None:
        """Waits no more."""
        self.pulse.is_given_up = True
        if not self.ended.wait(LOOK_SECONDS):
            _LEFT.append(self.ended)
            release(self._thread.ident or 0)


_LEFT: list[threading.Event] = []
"""Of each thread that was left: set when it ended after all."""


def watched(call: Callable[[], T], seconds: float, release: Callable[[int], None]) -> T | None:
    """What `call` returns, or raises, from a thread of its own; None where it is at one image for longer.

    That thread is left then, and ends at its next image, if ever: native code cannot be stopped. A stop of the waiting
    thread leaves it likewise. `release` takes from it, by its ident, what others need. Time counts in looks, so that a
    process that was suspended is not late.
    """
    work = _Work(call)
    try:
        is_hung = work.hangs(seconds)
    except BaseException:
        work.leave(release)
        raise
    if is_hung:
        work.leave(release)
        return None
    return work.result()


def end_with(code: int) -> int:
    """The code, with which this process ends at once when its interpreter does, where a thread was left: libraries
    abort one that ends in order under a thread that is at work in them.
    """
    if _LEFT:
        atexit.register(_end, code)
    return code


def _end(code: int) -> None:
    if not all(ended.is_set() for ended in _LEFT):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
