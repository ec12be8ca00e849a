"""Visits: every vector reaches the partitions of the lists that it probes, once each, and is owned by one of them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels.visits import (
    Routed,
    asking_batch,
    by_reference,
    concatenate_routed,
    database_of,
    resolved,
    visits_by_partition,
    visits_in_rounds,
    visits_of,
)

DIMENSION = 6


def _routed(seed: int, count: int, lists: int, width: int) -> Routed:
    rng = np.random.default_rng(seed)
    probes = np.array([rng.permutation(lists)[:width] for _ in range(count)], np.int32).reshape(count, width)
    own = np.where(rng.random(count) < 0.8, probes[:, 0], -1).astype(np.int32)
    return Routed(
        rng.permutation(10 * count + 1)[:count].astype(np.int64),
        rng.integers(1, 8, count).astype(np.uint64),
        rng.standard_normal((count, DIMENSION)).astype(np.float16),
        own,
        probes,
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 30), st.integers(1, 12), st.integers(1, 5))
def test_two_rounds_are_the_visits_of_one(seed: int, count: int, lists: int, partitions: int) -> None:
    """The first has each vector once, where its nearest list is, and all that is owned; the second the others."""
    routed = _routed(seed, count, lists, min(lists, 4))
    partition_of = np.random.default_rng(seed).integers(0, partitions, lists).astype(np.int32)
    once = visits_by_partition(routed, partition_of, partitions)
    twice = visits_in_rounds(routed, partition_of, partitions)

    assert len(twice) == 2 * partitions
    for number, batch in enumerate(once):
        rows = twice[number].to_pylist() + twice[partitions + number].to_pylist()
        assert sorted(rows, key=lambda row: row["image_id"]) == sorted(
            batch.to_pylist(), key=lambda row: row["image_id"]
        )
        nearest = routed.ids[partition_of[routed.probes[:, 0]] == number] if count else routed.ids
        assert sorted(twice[number].column("image_id").to_pylist()) == sorted(nearest.tolist())
        assert set(twice[partitions + number].column("own").to_pylist()) <= {-1}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 30), st.integers(1, 12), st.integers(1, 5))
def test_each_probe_is_at_the_partition_of_its_list(seed: int, count: int, lists: int, partitions: int) -> None:
    routed = _routed(seed, count, lists, min(lists, 4))
    partition_of = np.random.default_rng(seed).integers(0, partitions, lists).astype(np.int32)
    batches = visits_by_partition(routed, partition_of, partitions)
    assert len(batches) == partitions
    wanted = {
        (int(routed.ids[row]), int(partition_of[probe]), int(probe))
        for row in range(count)
        for probe in routed.probes[row]
    }
    found, rows, owned = set(), [], {}
    for number, batch in enumerate(batches):
        there = visits_of([batch], DIMENSION)
        rows += [(int(image_id), number) for image_id in there.ids]
        for row, image_id in enumerate(there.ids.tolist()):
            found |= {(image_id, number, int(probe)) for probe in there.probes[row] if probe >= 0}
            at = int(np.flatnonzero(routed.ids == image_id)[0])
            assert there.split_mask[row] == routed.split_mask[at]
            np.testing.assert_array_equal(there.vectors[row], routed.vectors[at])
            if there.own[row] >= 0:
                owned[image_id] = (number, int(there.own[row]))
    assert found == wanted
    assert len(rows) == len(set(rows))
    assert owned == {
        int(i): (int(partition_of[own]), int(own)) for i, own in zip(routed.ids, routed.own, strict=True) if own >= 0
    }


def test_the_database_of_a_partition_is_what_it_owns() -> None:
    routed = _routed(1, 50, 8, 3)
    partition_of = np.array([0, 0, 1, 1, 1, 0, 2, 2], np.int32)
    halves = [routed.take(np.arange(20)), routed.take(np.arange(20, 50))]
    batches = [visits_by_partition(half, partition_of, 3)[1] for half in halves]
    database = database_of(lambda: batches, DIMENSION)
    inside = np.flatnonzero((routed.own >= 0) & (partition_of[routed.own] == 1))
    assert sorted(database.ids.tolist()) == sorted(routed.ids[inside].tolist())
    for row, image_id in enumerate(database.ids.tolist()):
        at = int(np.flatnonzero(routed.ids == image_id)[0])
        assert database.list_id[row] == routed.own[at]
        np.testing.assert_array_equal(database.vectors[row], routed.vectors[at])


def test_rows_by_reference_are_those_with_their_vectors() -> None:
    routed, partition_of = _routed(6, 40, 8, 3), np.array([0, 0, 1, 1, 1, 0, 1, 0], np.int32)
    plain = visits_by_partition(routed, partition_of, 2)
    short = visits_by_partition(by_reference(routed), partition_of, 2)
    for number in range(2):
        assert short[number].nbytes < plain[number].nbytes
        assert resolved(short[number], routed.vectors).equals(plain[number])
        some = np.arange(plain[number].num_rows) % 3 == 0
        kept = short[number].filter(pa.array(some))
        assert resolved(kept, routed.vectors).equals(plain[number].filter(pa.array(some)))
    assert resolved(short[0].slice(0, 0), routed.vectors).num_rows == 0


def test_a_partition_without_rows_and_a_query_without_lists() -> None:
    routed = _routed(2, 5, 2, 2)
    batches = visits_by_partition(routed, np.array([0, 2], np.int32), 4)
    assert [batch.num_rows for batch in batches] == [5, 0, 5, 0]
    assert len(database_of(lambda: batches[1:2], DIMENSION)) == 0
    asking = visits_of([asking_batch(routed)], DIMENSION)
    assert asking.ids.tolist() == routed.ids.tolist()
    assert (asking.own == -1).all()
    assert (asking.probes == -1).all()


def test_rows_of_different_width_are_put_together() -> None:
    wide, narrow = _routed(3, 4, 6, 4), _routed(4, 3, 6, 2)
    both = concatenate_routed([wide, narrow])
    assert both.probes.shape == (7, 4)
    np.testing.assert_array_equal(both.probes[4:], np.pad(narrow.probes, ((0, 0), (0, 2)), constant_values=-1))


def test_a_list_without_a_partition_is_refused() -> None:
    with pytest.raises(UsageError, match="lists are in partitions up to 3, want less than 3"):
        visits_by_partition(_routed(5, 3, 4, 2), np.array([0, 1, 2, 3], np.int32), 3)
