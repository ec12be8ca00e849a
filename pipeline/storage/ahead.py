"""Reading ahead: as many reads in flight as a store's latency takes, their results in the order of the items, bounded
in number and bytes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from threading import Lock
from time import perf_counter
from typing import Generic, TypeVar

from pipeline.storage.interface import Begun

S = TypeVar("S")
T = TypeVar("T")

READS_IN_FLIGHT = 32  # a core at 300 images/s and 20-100 ms to the first byte needs 10-30
BYTES_AHEAD = 32 * 2**20
"""Bytes that a task may hold before it needs them: 30 objects of 40 MB took a driver to 1.3 GB."""
_SPARE = 1.5
_PATIENCE_SECONDS = 0.02
"""Somebody waits that long for a result, and more reads are begun."""
_PACE_USES = READS_IN_FLIGHT
_SHORT_USE_SECONDS = 0.02
"""Of results that are used for longer, what threads take is below 2 %."""
_LONGEST_USE_SECONDS = 1.0
"""Of any result so far. Nobody looks at a connection meanwhile: it stands still once its buffers are full, and servers
drop it in the end.
"""


def read_ahead(
    items: Iterable[S],
    read: Callable[[S], T],
    size: Callable[[S], int],
    begin: Callable[[S], Begun | None] = lambda _: None,
) -> Iterator[T]:
    """What `read` gives for each item, in order; raises what it raises.

    Reads begin in bursts, when half of what is ahead is used up: one at a time, between two images, each wakes all
    threads in its way. `size`: bytes of an item; what does not fit in BYTES_AHEAD is read when all before it is done.
    begin: asks for what `read` is going to return; used where results are used up so soon that threads cost too much.
    """
    ahead: deque[tuple[int, Future[T]]] = deque()
    held = 0
    with _Readers(read, begin) as readers:
        for item in items:
            count = size(item)
            few = READS_IN_FLIGHT if len(ahead) == 2 * READS_IN_FLIGHT else len(ahead)
            while ahead and (len(ahead) > few or held + count > BYTES_AHEAD):
                held -= ahead[0][0]
                yield from readers.used(ahead.popleft()[1])
            ahead.append((count, readers.add(item)))
            held += count
        while ahead:
            yield from readers.used(ahead.popleft()[1])


class _Readers(Generic[S, T]):
    """Threads that read what was added, in order; `most` of them at once. What is begun instead needs none of them,
    unless it fails: then one of them reads it, and waits between its attempts.

    By Little's law a store that answers in r seconds keeps up with who uses a result in u where r / u reads are in
    flight. More of them stand in the way, each takes the interpreter's lock from who computes: images of 2.3 ms, from a
    store that answers in .5, took 3.0 to 3.5 with 32 in flight and take 2.5 to 2.7 with what is reckoned.
    """

    def __init__(self, read: Callable[[S], T], begin: Callable[[S], Begun | None]) -> None:
        self._read, self._begin = read, begin
        self._asked: dict[Future[T], tuple[Callable[[], T], Begun]] = {}
        self._is_quick = True
        self._is_over = False
        self._lock = Lock()
        self._waiting: deque[tuple[Callable[[], T], Future[T]]] = deque()
        self._busy = 0
        self._most = READS_IN_FLIGHT
        self._reading, self._reads = 0.0, 0
        self._using, self._uses, self._longest = 0.0, 0, 0.0
        self._pool = ThreadPoolExecutor(READS_IN_FLIGHT)

    def __enter__(self) -> _Readers[S, T]:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for _read, sent in self._asked.values():
                sent.cancel()
        finally:
            # the collector of cycles may come here in any thread and at any step, where that may hold any lock: even
            # `shutdown` takes one; the threads find nothing to read, and end when the pool is collected
            self._is_over = True

    def add(self, item: S) -> Future[T]:
        """The result of reading an item, some time."""
        result: Future[T] = Future()
        asked = self._begin(item) if self._is_quick else None
        if asked is None:
            self._queue(partial(self._read, item), result)
        else:
            read = partial(asked.answering, partial(self._read, item))
            self._asked[result] = read, asked
            asked.when_failed(partial(self._queue, read, result))
        return result

    def used(self, result: Future[T]) -> Iterator[T]:
        """Yields a result once it is there; the time until its user comes back counts as use."""
        read, asked = self._asked.get(result, (None, None))  # there until it is done: an interrupt cancels it
        is_here = asked is not None and asked.wait()
        self._asked.pop(result, None)
        found = read() if read is not None and is_here else self._awaited(result)
        started = perf_counter()
        yield found
        used = perf_counter() - started
        self._using, self._uses, self._longest = self._using + used, self._uses + 1, max(self._longest, used)
        if self._uses == _PACE_USES:
            self._pace()

    def _awaited(self, result: Future[T]) -> T:
        while not result.done():  # whatever was reckoned: those in flight may be a few slow ones
            self._most = min(2 * self._most, READS_IN_FLIGHT)
            self._set_to_work()
            wait([result], _PATIENCE_SECONDS)
        return result.result()

    def _pace(self) -> None:
        """Reckon anew how many reads are to be in flight, or that they are begun, from those since the last time."""
        with self._lock:
            reading, reads = self._reading, self._reads
            self._reading, self._reads = 0.0, 0
        if reads and self._using:
            flight = _SPARE * (reading / reads) / (self._using / self._uses)
            self._most = max(1, math.ceil(min(flight, READS_IN_FLIGHT)))
        self._is_quick = self._using / self._uses <= _SHORT_USE_SECONDS and self._longest <= _LONGEST_USE_SECONDS
        self._using, self._uses = 0.0, 0

    def _queue(self, read: Callable[[], T], result: Future[T]) -> None:
        with self._lock:
            self._waiting.append((read, result))
        self._set_to_work()

    def _set_to_work(self) -> None:
        """Sets threads to work, as many as may and for which there is a read."""
        with self._lock:
            more = min(self._most, self._busy + len(self._waiting)) - self._busy
            self._busy += max(0, more)
        for _ in range(more):
            self._pool.submit(self._work)

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._is_over or not self._waiting or self._busy > self._most:
                    self._busy -= 1
                    return
                read, result = self._waiting.popleft()
            started = perf_counter()
            try:
                result.set_result(read())
            except BaseException as error:  # noqa: BLE001 - the one who asked for it gets it
                result.set_exception(error)
            with self._lock:
                self._reading += perf_counter() - started
                self._reads += 1
