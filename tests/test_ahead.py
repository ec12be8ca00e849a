"""Reading ahead: every result in its turn, and never more begun than may be held."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

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
