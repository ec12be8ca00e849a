"""Reading ahead: every result in its turn, and never more begun than may be held."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.storage.ahead
from pipeline.storage import counts, request_counts
from pipeline.storage.ahead import BYTES_AHEAD, READS_IN_FLIGHT, read_ahead

SIZES = st.one_of(st.integers(0, 2000), st.integers(BYTES_AHEAD // 8, BYTES_AHEAD * 2))


def numbers(count: int, taken: list[int]) -> Iterator[int]:
    """0, 1, 2 ...; each is noted as it is taken."""
    for number in range(count):
        taken.append(number)
        yield number


@settings(max_examples=60, deadline=None)
@given(st.lists(SIZES, max_size=200))
def test_results_are_in_order_and_what_is_held_is_bounded(sizes: list[int]) -> None:
    """Held: what is asked for and not used up. One read too large for the bound goes alone."""
    taken, found = list[int](), list[int]()
    for result in read_ahead(numbers(len(sizes), taken), lambda number: number * 2, lambda number: sizes[number]):
        held = taken[len(found) : -1]  # the last one that was taken waits for room
        found.append(result)
        assert len(held) <= 2 * READS_IN_FLIGHT
        assert len(held) <= 1 or sum(sizes[number] for number in held) <= BYTES_AHEAD
    assert found == [number * 2 for number in range(len(sizes))]


def test_reads_begin_in_bursts() -> None:
    """Of 300 small ones: between two results either none begins, or half of what is ahead."""
    taken, steps = list[int](), list[int]()
    before = 0
    for _ in read_ahead(numbers(300, taken), lambda number: number, lambda _: 1):
        steps.append(len(taken) - before)
        before = len(taken)
    assert steps[0] == 2 * READS_IN_FLIGHT + 1
    assert {step for step in steps[1:200] if step} == {READS_IN_FLIGHT}


class Flight:
    """Counts reads at once, and the most of them since it was asked last."""

    def __init__(self) -> None:
        self._lock, self._now, self._most = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self._most = max(self._most, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1

    def most(self) -> int:
        with self._lock:
            most, self._most = self._most, self._now
        return most


def test_a_store_that_answers_at_once_is_asked_by_few() -> None:
    """Each result is used for 5 ms, as an image is measured: a read of nothing keeps up by itself."""
    flight, seen = Flight(), list[int]()

    def read(number: int) -> int:
        with flight:
            return number

    for number in read_ahead(range(8 * READS_IN_FLIGHT), read, lambda _: 1):
        time.sleep(0.005)
        if number % READS_IN_FLIGHT == 0:
            seen.append(flight.most())
    assert max(seen[4:]) <= 4


def test_reads_that_take_long_are_many_at_once() -> None:
    """Of 128 each waits until 32 are in flight, whatever little of them was reckoned before."""
    together = threading.Barrier(READS_IN_FLIGHT)

    def read(number: int) -> int:
        if number >= 128:
            together.wait(60)
        return number

    found = list[int]()
    for number in read_ahead(range(256), read, lambda _: 1):
        if number < 128:
            time.sleep(0.005)
        found.append(number)
    assert found == [*range(256)]


def test_an_error_comes_in_its_turn() -> None:
    def read(number: int) -> int:
        if number == 40:
            raise ValueError("40 cannot be read")
        return number

    found = list[int]()
    with pytest.raises(ValueError, match="40 cannot be read"):
        found.extend(read_ahead(range(100), read, lambda _: 1))
    assert found == [*range(40)]


def test_whoever_stops_does_not_wait_for_reads_under_way() -> None:
    """Dropped together with what holds it, as after an error, a reader is ended by the collector, at any moment: also
    from within `threading` where a thread starts, whose locks the end of another thread needs.
    """
    release, begun = threading.Event(), threading.Semaphore(0)

    def read(number: int) -> int:
        if number:
            begun.release()
            release.wait(60)
        return number

    reading = read_ahead(range(100), read, lambda _: 1)
    assert next(reading) == 0
    begun.acquire()
    ending = threading.Thread(target=reading.close)  # type: ignore[attr-defined]
    ending.start()
    ending.join(30)
    try:
        assert not ending.is_alive()
    finally:
        release.set()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """The collector comes where a test calls it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def drop_in_a_cycle(reading: Iterator[int]) -> None:
    held: list[object] = [reading]
    held.append(held)


@pytest.mark.usefixtures("uncollected")
def test_the_collector_ends_a_reader_in_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any step, such as the clock is read at, while that thread holds the lock of the reader."""
    dropped, collected, release, begun = (threading.Event() for _ in range(4))
    all_begun = threading.Barrier(READS_IN_FLIGHT, begun.set)

    def read(number: int) -> int:
        if number:
            all_begun.wait(60)
            release.wait(60)
        return number

    def clock() -> float:
        if dropped.is_set() and not collected.is_set():
            gc.collect()
            collected.set()
        return 0.0

    monkeypatch.setattr(pipeline.storage.ahead, "perf_counter", clock)
    reading = read_ahead(range(100), read, lambda _: 1)
    assert next(reading) == 0
    assert begun.wait(60)
    drop_in_a_cycle(reading)
    del reading
    dropped.set()
    release.set()
    assert collected.wait(60)


class Sent:
    """A read that was begun, and is counted when it is given up."""

    def wait(self) -> bool:
        return True

    def when_failed(self, act: Callable[[], None]) -> None:
        """It never does."""

    def answering(self, read: Callable[[], int]) -> int:
        return read()

    def cancel(self) -> None:
        counts.count_request("s3.get")


class Collecting(Counter[str]):
    def __missing__(self, key: str) -> int:
        gc.collect()
        return 0


@pytest.mark.usefixtures("uncollected")
def test_the_collector_ends_a_reader_while_a_request_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "_requests", Collecting())
    reading = read_ahead(range(100), lambda number: number, lambda _: 1, lambda _: Sent())
    assert next(reading) == 0
    drop_in_a_cycle(reading)
    del reading
    counting = threading.Thread(target=counts.count_request, args=("s3.head",), daemon=True)
    counting.start()
    counting.join(60)
    assert not counting.is_alive()
    assert request_counts().requests == {"s3.get": 2 * READS_IN_FLIGHT - 1, "s3.head": 1}
