"""What is planted among synthetic images, as one table of truth: copies of known similarity, groups, bursts, more."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.synthetic import World

Int64 = NDArray[np.int64]

MOST_PAIRS, MOST_BURSTS, MOST_OUTLIERS = 60_000, 2_000, 5_000
GIANT_SHARE = 0.005
LARGE_GROUPS = (5_000, 3_000, 2_000, 1_500, 1_000)
CLUSTERS = (5_000, 5_000, 5_000)
TRIES = 3


class Role(IntEnum):
    """What an image is to its set. The source of a set, its smallest id, has a row of the same role."""

    SAME_BYTES = 0
    SAME_PIXELS = 1
    CLUSTER = 2
    FRAME = 3
    PAIR = 4
    BURST = 5
    OUTLIER = 6
    INVALID = 7


MIXES = {
    Role.CLUSTER: (0.975, 0.992),
    Role.FRAME: (0.985, 0.999),
    Role.PAIR: (0.76, 0.996),
    Role.BURST: (0.94, 0.995),
}
"""How much of its source a member holds, from and to: near the cosine of both in the copy space."""

TRUTH = pa.schema(
    [
        pa.field("image_id", pa.int64()),
        pa.field("role", pa.int8()),
        pa.field("set_id", pa.int64()),
        pa.field("source_id", pa.int64()),
        pa.field("mix", pa.float32()),
    ]
)
"""A planted image: mix 1 for the source itself and for exact copies."""


@dataclass
class _Planting:
    """The sets so far, and which ids are taken."""

    world: World
    rng: np.random.Generator
    taken: NDArray[np.bool_]
    pool: Int64
    sets: list[tuple[Role, Int64]]

    def draw(self, count: int) -> Int64:
        """So many free ids from anywhere."""
        free = self.pool[~self.taken[self.pool]][:count]
        return np.sort(free)

    def add(self, role: Role, ids: Int64) -> None:
        """Takes the ids as one set, where there are two or it needs no second."""
        if len(ids) >= 2 or (len(ids) and role >= Role.OUTLIER):
            self.taken[ids] = True
            self.sets.append((role, np.sort(ids)))


def plant(world: World, frames: int) -> pa.Table:
    """The truth of a world, sorted by image_id: a function of the world and the number of near-identical frames."""
    rng = np.random.default_rng((world.seed, 5))
    wanted = 4 * sum(_sizes(world.images, LARGE_GROUPS + CLUSTERS)) + 2 * frames + world.images // 10 + 1_000
    pool = rng.permutation(world.images)[:wanted] if wanted * 4 > world.images else _sparse(rng, world.images, wanted)
    planting = _Planting(world, rng, np.zeros(world.images, bool), pool, [])
    _plant_bursts(planting)  # first: a run of ids is rarely free later
    planting.add(Role.SAME_BYTES, planting.draw(max(4, int(GIANT_SHARE * world.images))))
    for number, size in enumerate(_sizes(world.images, LARGE_GROUPS)):
        planting.add(Role.SAME_PIXELS if number % 2 else Role.SAME_BYTES, planting.draw(size))
    for number, size in enumerate(rng.integers(2, 6, min(world.images // 400, MOST_PAIRS)).tolist()):
        planting.add(Role.SAME_PIXELS if number % 4 == 0 else Role.SAME_BYTES, _some(planting, size))
    for size in _sizes(world.images, CLUSTERS):
        planting.add(Role.CLUSTER, planting.draw(size))
    planting.add(Role.FRAME, planting.draw(frames))
    _plant_pairs(planting)
    for role, count in (
        (Role.OUTLIER, min(world.images // 1_000, MOST_OUTLIERS)),
        (Role.INVALID, world.images // 5_000),
    ):
        for image_id in planting.draw(count).tolist():
            planting.add(role, np.array([image_id]))
    return _table(planting)


def _sizes(images: int, sizes: tuple[int, ...]) -> list[int]:
    """Sizes of groups, at most a hundredth of the images each in smaller sets."""
    return [max(4, min(size, images * size // (100 * max(sizes)))) for size in sizes]


def _sparse(rng: np.random.Generator, images: int, count: int) -> Int64:
    found = np.unique(rng.integers(0, images, count + count // 4))
    return np.asarray(rng.permutation(found)[:count])


def _some(planting: _Planting, size: int) -> Int64:
    """A few free ids, tried from the pool at random."""
    ids = np.unique(planting.rng.choice(planting.pool, 2 * size))
    return np.asarray(planting.rng.permutation(ids[~planting.taken[ids]])[:size])


def _plant_bursts(planting: _Planting) -> None:
    """Frames that follow one another in one folder, 10 to 50; every other burst has a frame in another split."""
    world, rng = planting.world, planting.rng
    for number in range(min(max(world.images // 2_000, 2), MOST_BURSTS)):
        size = int(rng.integers(10, 51))
        cell = int(rng.integers(world.labels, 2 * world.labels))  # of train
        lo, hi = world.starts[cell], world.starts[cell + 1]
        first = int(rng.integers(lo, max(hi - size, lo + 1)))
        ids = np.arange(first, min(first + size, hi))
        if number % 2:
            ids = np.r_[ids, _in_folder(world, rng, np.array([cell % world.labels]), np.array([2]))]
        ids = np.unique(ids[ids >= 0])
        if not planting.taken[ids].any():
            planting.add(Role.BURST, ids)


def _plant_pairs(planting: _Planting) -> None:
    """Pairs within a label, half of them across splits."""
    world, rng = planting.world, planting.rng
    first = planting.draw(min(max(world.images // 100, 8), MOST_PAIRS))
    for _ in range(TRIES):
        first = first[~planting.taken[first]]
        split, label, _position = world.cells(first)
        second = _in_folder(
            world, rng, label, np.where(rng.random(len(first)) < 0.5, split, rng.integers(0, 3, len(first)))
        )
        is_free = (second >= 0) & (second != first) & ~planting.taken[np.maximum(second, 0)]
        _, once = np.unique(second, return_index=True)
        is_once = np.zeros(len(second), bool)
        is_once[once] = True
        good = is_free & is_once & ~np.isin(second, first)
        for pair in zip(first[good].tolist(), second[good].tolist(), strict=True):
            planting.add(Role.PAIR, np.array(pair))


def _in_folder(world: World, rng: np.random.Generator, label: Int64, split: Int64) -> Int64:
    """An image at random of each (label, split); -1 where that folder is empty."""
    cell = split * world.labels + label
    lo, hi = world.starts[cell], world.starts[cell + 1]
    found = lo + (rng.random(len(lo)) * (hi - lo)).astype(np.int64)
    return np.where(hi > lo, found, -1)


def _table(planting: _Planting) -> pa.Table:
    ids = np.concatenate([ids for _, ids in planting.sets])
    sizes = np.array([len(ids) for _, ids in planting.sets])
    role = np.repeat(np.array([role for role, _ in planting.sets], np.int8), sizes)
    source = np.repeat(np.array([ids[0] for _, ids in planting.sets]), sizes)
    limits = np.array([MIXES.get(Role(number), (1.0, 1.0)) for number in range(len(Role))])
    drawn = planting.rng.random(len(ids)) * (limits[role, 1] - limits[role, 0]) + limits[role, 0]
    mix = np.where(ids == source, 1.0, drawn).astype(np.float32)
    order = np.argsort(ids)
    columns = [ids, role, np.repeat(np.arange(len(sizes)), sizes), source, mix]
    return pa.table([pa.array(column[order]) for column in columns], schema=TRUTH)
