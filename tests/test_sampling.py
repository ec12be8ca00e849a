"""Samples that depend on the ids alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.kernels.sampling import mix, stable_sample, stable_sample_limit

IDS = st.lists(st.integers(0, 2**62), unique=True, max_size=100).map(lambda v: np.array(v, dtype=np.int64))


def test_the_mix_is_splitmix64():
    """First outputs of the reference generator for the seed 1234567 (Rosetta Code, "Splitmix64")."""
    state = (np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert mix(state - np.uint64(_offset_of_salt(0)).astype(np.int64), 0).tolist() == expected


def _offset_of_salt(salt):
    z = (salt * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) % 2**64
    return z ^ z >> 31


@settings(max_examples=50, deadline=None)
@given(IDS, st.floats(0, 1), st.integers(-(2**70), 2**70), st.randoms(use_true_random=False))
def test_each_id_is_decided_alone(ids, share, salt, random):
    chosen = set(ids[stable_sample(ids, share, salt)].tolist())
    order = np.array(random.sample(range(len(ids)), len(ids)), dtype=np.int64)
    for shard in (ids[order][::2], ids[order][1::2]):
        assert set(shard[stable_sample(shard, share, salt)].tolist()) == chosen & set(shard.tolist())
    assert chosen <= set(ids[stable_sample(ids, min(1, share + 0.1), salt)].tolist())


@settings(max_examples=50, deadline=None)
@given(IDS, st.integers(0, 110), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_limited_sample_of_shards_is_that_of_their_union(ids, limit, salt, random):
    chosen = ids[stable_sample_limit(ids, limit, salt)]
    assert len(chosen) == min(limit, len(ids))
    order = np.array(random.sample(range(len(ids)), len(ids)), dtype=np.int64)
    kept = np.concatenate([s[stable_sample_limit(s, limit, salt)] for s in (ids[order][::2], ids[order][1::2])])
    assert set(kept[stable_sample_limit(kept, limit, salt)].tolist()) == set(chosen.tolist())


def test_consecutive_ids_are_sampled_evenly_and_salts_are_independent():
    ids = np.arange(100_000)
    first, second = stable_sample(ids, 0.1, 0), stable_sample(ids, 0.1, 1)
    assert abs(first.mean() - 0.1) < 0.004  # four standard deviations
    assert abs((first & second).mean() - 0.01) < 0.0013
    assert abs(first.reshape(100, -1).mean(axis=1) - 0.1).max() < 0.05


def test_ends_and_wrong_input():
    ids = np.arange(50)
    assert stable_sample(ids, 1).all()
    assert not stable_sample(ids, 0).any()
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="share"):
            stable_sample(ids, share)
    with pytest.raises(UsageError, match="limit"):
        stable_sample_limit(ids, -1)
