"""Samples of images that depend on the ids alone: not on order, sharding or the number of workers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
Mask = NDArray[np.bool_]

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 1 << 64
_OWNER_SALT = 6


def mix(image_ids: Int64, salt: int = 0) -> UInt64:
    """Return 64 well-mixed bits per id: a bijection of the ids for every salt.

    image_ids int64 (n,); returns uint64 (n,). Source: splitmix64, https://prng.di.unimi.it/splitmix64.c.
    """
    offset = _mix_word(((salt % _WORD) * _GOLDEN + _GOLDEN) % _WORD)
    z = np.asarray(image_ids, dtype=np.int64).astype(np.uint64) + np.uint64(offset)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def _mix_word(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % _WORD
    return word ^ (word >> 31)


def one_of_each(image_ids: Int64, owners: Int64) -> Mask:
    """Return which ids have no owner, and of each owner's the one of smallest hash.

    image_ids int64 (n,), unique; owners int64 (n,), negative for none; returns bool (n,). What is kept of a union is
    kept of its parts, so shards can be reduced one by one. The hash is of a salt of its own: were it the one of a
    sample, owners of many ids would be drawn more often.
    """
    kept = owners < 0
    owned = np.flatnonzero(~kept)
    order = owned[np.lexsort((mix(image_ids[owned], _OWNER_SALT), owners[owned]))]
    ordered = owners[order]
    kept[order[:1]] = True
    kept[order[1:][ordered[1:] != ordered[:-1]]] = True
    return kept


def stable_sample(image_ids: Int64, share: float, salt: int = 0) -> Mask:
    """Return which ids belong to a sample of about `share` (0 to 1) of all ids; each id is decided alone.

    image_ids int64 (n,); returns bool (n,). A larger share contains every smaller one of the same salt.
    Raises UsageError for a share outside 0 to 1.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"sampling: share {share}, want 0 to 1")
    bound = int(share * _WORD)
    if bound >= _WORD:
        return np.ones(len(image_ids), dtype=bool)
    return np.asarray(mix(image_ids, salt) < np.uint64(bound), dtype=bool)


def stable_sample_limit(image_ids: Int64, limit: int, salt: int = 0) -> Mask:
    """Return which ids are the `limit` first in the mixed order; all of them where there are fewer.

    image_ids int64 (n,), unique; returns bool (n,). The sample of a union is the sample of the shards' samples, so
    shards can be reduced one by one. Raises UsageError for a negative limit.
    """
    if limit < 0:
        raise UsageError(f"sampling: limit {limit}, want at least 0")
    mask = np.zeros(len(image_ids), dtype=bool)
    if limit >= len(image_ids):
        mask[:] = True
    elif limit > 0:
        mask[np.argpartition(mix(image_ids, salt), limit - 1)[:limit]] = True
    return mask
