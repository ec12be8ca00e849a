"""Whether an audit of a synthetic root lists what was planted there, by id and by the similarity that was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.synthetic import SPLITS, World
from benchmarks.synthetic_plants import Role
from benchmarks.synthetic_root import Truth, read_truth
from pipeline.audit import Audit
from pipeline.kernels.space import CopySpace, pair_similarities
from pipeline.layout.audits import table_keys
from pipeline.layout.features import FeatureSet, list_features, read_features
from pipeline.layout.parts import cover
from pipeline.layout.spaces import read_space
from pipeline.layout.tables import read_table
from pipeline.storage import Store

Int64 = NDArray[np.int64]
Flags = NDArray[np.bool_]

EXACT = (Role.SAME_BYTES, Role.SAME_PIXELS)
NEAR = (Role.CLUSTER, Role.FRAME, Role.PAIR, Role.BURST)
SMALL = (Role.PAIR, Role.BURST)
"""Sets of which any two members may lie under the threshold though both are over it to their source."""
BLOCK = 4096


@dataclass(frozen=True)
class Stars:
    """Every planted member with the source of its set, and their copy similarity as the tables would give it."""

    role: NDArray[np.int8]
    source_id: Int64
    member_id: Int64
    similarity: NDArray[np.float64]


@dataclass(frozen=True)
class Stored:
    """Stored features of some sorted ids, and the space in which pairs of them are compared."""

    ids: Int64
    embeddings: NDArray[np.float16]
    signatures: NDArray[np.uint8]
    space: CopySpace

    def similarity(self, one: Int64, other: Int64) -> NDArray[np.float64]:
        """Copy similarities of pairs of ids, as the tables would give them."""
        found = np.empty(len(one))
        for at in range(0, len(one), BLOCK):
            i, j = (np.searchsorted(self.ids, side[at : at + BLOCK]) for side in (one, other))
            sides = (self.embeddings[i], self.signatures[i], self.embeddings[j], self.signatures[j])
            found[at : at + BLOCK] = pair_similarities(self.space, *sides).copy
        return found


def check(audit: Audit, world: World, features: str) -> dict[str, Any]:
    """Counts of what was planted over the threshold and of what the tables hold of it, in all and by role."""
    store, truth = audit.root.open(), read_truth(audit.root)
    facts = audit.summary()
    space = read_space(store, facts["space"]["folder"])
    stored = stored_near(store, list_features(store, features), truth, space)
    stars = measure(stored, truth)
    over = are_over(stars, facts["threshold"]["value"])
    found = are_found(audit, stars)
    wanted = np.union1d(
        joined_leaks(world, stars, over), leaking_pairs(world, truth, stored, facts["threshold"]["value"])
    )
    listed = _listed_leaks(audit)
    is_leak_listed = np.isin(wanted, listed)
    return {
        "pairs_planted": int(over.sum()),
        "pairs_found": int((over & found).sum()),
        "pairs_by_role": _by_role(stars, over, found),
        "pairs_by_similarity": _by_similarity(stars, over, found),
        "leaks_planted": len(wanted),
        "leaks_found": int(is_leak_listed.sum()),
        "leaks_missing": _named(wanted[~is_leak_listed][:20]),
        "leaks_listed": len(listed),
        **_outliers(audit, truth),
    }


def stored_near(store: Store, features: FeatureSet, truth: Truth, space: CopySpace) -> Stored:
    """The stored features of all planted near-duplicates."""
    ids = np.unique(truth.image_id[np.isin(truth.role, NEAR)])
    return Stored(ids, *_take(store, features, ids), space)


def measure(stored: Stored, truth: Truth) -> Stars:
    """The similarity of each planted member to the source of its set."""
    near = np.isin(truth.role, (*EXACT, *NEAR))
    chosen = np.flatnonzero(near & (truth.image_id != truth.source_id))
    role, source, member = truth.role[chosen], truth.source_id[chosen], truth.image_id[chosen]
    similarity = np.ones(len(chosen))
    asked = np.flatnonzero(np.isin(role, NEAR))
    similarity[asked] = stored.similarity(source[asked], member[asked])
    return Stars(role, source, member, similarity)


def are_over(stars: Stars, threshold: float) -> Flags:
    """Which members are copies of their source: by the threshold, or exactly."""
    return np.asarray((stars.similarity >= threshold) | np.isin(stars.role, EXACT))


def _take(store: Store, features: FeatureSet, ids: Int64) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Stored features of some sorted ids; each part is opened once."""
    embeddings, signatures = [], []
    for piece in cover(features.base, 0, int(ids[-1]) + 1 if len(ids) else 0):
        inside = ids[slice(*np.searchsorted(ids, (piece.lo, piece.hi)))] - piece.lo
        found = read_features(store, features, piece.lo, piece.hi, ["image_id"])
        embeddings.append(np.asarray(found.embeddings)[inside])
        signatures.append(np.asarray(found.signatures)[inside])
    return np.concatenate(embeddings), np.concatenate(signatures)


def are_found(audit: Audit, stars: Stars) -> Flags:
    """Which stars the tables connect: as a pair, by one group, or by a third image that both are paired with.

    The third way is that of a saturated cluster, whose images are listed as pairs with its medoid.
    """
    ids = np.union1d(stars.source_id, stars.member_id)
    rows = [_touching(part, ids) for part in _parts(audit, "duplicates", ["image_id", "match_id"])]
    pairs = np.concatenate(rows) if rows else np.empty((0, 2), np.int64)
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    keys = _key(both[:, 0], both[:, 1])
    found = np.isin(_key(stars.source_id, stars.member_id), keys)
    groups = _groups(audit, ids)
    found |= groups[np.searchsorted(ids, stars.source_id)] == groups[np.searchsorted(ids, stars.member_id)]
    for row in np.flatnonzero(~found).tolist():
        sides = (_partners(both, stars.source_id[row]), _partners(both, stars.member_id[row]))
        found[row] = len(np.intersect1d(*sides)) > 0
    return found


def joined_leaks(world: World, stars: Stars, over: Flags) -> Int64:
    """Key of each (image, other split) that a set of exact copies, a cluster or frames make a leak; see `leak_key`.

    Every image is one that is over the threshold to the source, and the source if any is: they are joined, however far
    two of them are.
    """
    is_joined = over & ~np.isin(stars.role, SMALL)
    sources = np.unique(stars.source_id[is_joined])
    ids, sets = np.r_[stars.member_id[is_joined], sources], np.r_[stars.source_id[is_joined], sources]
    split, _, _ = world.cells(ids)
    keys = [np.empty(0, np.int64)]
    for other in range(len(SPLITS)):
        has_other = np.isin(sets, sets[split == other])
        keys.append(leak_key(ids[has_other & (split != other)], np.int64(other)))
    return np.concatenate(keys)


def leaking_pairs(world: World, truth: Truth, stored: Stored, threshold: float) -> Int64:
    """Keys of the pairs of the small sets that are over the threshold and in two splits, once for each side."""
    rows = np.flatnonzero(np.isin(truth.role, SMALL))
    rows = rows[np.argsort(truth.source_id[rows], kind="stable")]
    _, first = np.unique(truth.source_id[rows], return_index=True)
    members = [ids.tolist() for ids in np.split(truth.image_id[rows], first[1:])]
    pairs = np.array([pair for ids in members for pair in combinations(ids, 2)], np.int64).reshape(-1, 2)
    split = world.cells(pairs.ravel())[0].reshape(-1, 2)
    is_across = split[:, 0] != split[:, 1]
    pairs, split = pairs[is_across], split[is_across]
    is_over = stored.similarity(pairs[:, 0], pairs[:, 1]) >= threshold
    return leak_key(pairs[is_over].ravel(), split[is_over][:, ::-1].ravel())


def leak_key(image_id: Int64, split: Int64 | np.int64) -> Int64:
    """One number for an image and another split in which it has a copy."""
    return np.asarray(image_id * len(SPLITS) + split, np.int64)


def _listed_leaks(audit: Audit) -> Int64:
    keys = [np.empty(0, np.int64)]
    for part in _parts(audit, "leaks", ["image_id", "match_split"]):
        split = np.searchsorted(SPLITS, part["match_split"].to_numpy().astype(str))
        keys.append(leak_key(part["image_id"].to_numpy(), split))
    return np.unique(np.concatenate(keys))


def _outliers(audit: Audit, truth: Truth) -> dict[str, int]:
    """How many images were planted far from all, and how many of them are flagged."""
    planted = truth.image_id[truth.role == Role.OUTLIER]
    flagged = 0
    for part in _parts(audit, "outliers", ["image_id", "is_outlier"]):
        is_planted = np.isin(part["image_id"].to_numpy(), planted)
        flagged += int((is_planted & part["is_outlier"].to_numpy()).sum())
    return {"outliers_planted": len(planted), "outliers_flagged": flagged}


def _named(keys: Int64) -> list[str]:
    return [f"{key // len(SPLITS)} in {SPLITS[key % len(SPLITS)]}" for key in keys.tolist()]


def _parts(audit: Audit, name: str, columns: list[str]) -> Iterator[pa.Table]:
    store = audit.root.open()
    for key in table_keys(store, audit.published, name):
        yield read_table(store, key, columns)


def _touching(part: pa.Table, ids: Int64) -> Int64:
    one, other = part["image_id"].to_numpy(), part["match_id"].to_numpy()
    touching = np.isin(one, ids) | np.isin(other, ids)
    return np.stack([one[touching], other[touching]], axis=1)


def _groups(audit: Audit, ids: Int64) -> Int64:
    """The group of each of some sorted ids; a negative number of its own where it is in none."""
    found = -1 - np.arange(len(ids))
    for part in _parts(audit, "groups", ["image_id", "group_id"]):
        image_id = part["image_id"].to_numpy()
        at = np.minimum(np.searchsorted(ids, image_id), max(len(ids) - 1, 0))
        inside = ids[at] == image_id if len(ids) else np.zeros(len(image_id), bool)
        found[at[inside]] = part["group_id"].to_numpy()[inside]
    return found


def _partners(both: Int64, image_id: int) -> Int64:
    return both[slice(*np.searchsorted(both[:, 0], (image_id, image_id + 1))), 1]


def _key(one: Int64, other: Int64) -> NDArray[np.uint64]:
    return (one.astype(np.uint64) << np.uint64(32)) | other.astype(np.uint64)


def _by_role(stars: Stars, over: Flags, found: Flags) -> dict[str, dict[str, int]]:
    return {
        role.name.lower(): {
            "planted": int((of_role := stars.role == role).sum()),
            "over_threshold": int((of_role & over).sum()),
            "found": int((of_role & over & found).sum()),
        }
        for role in (*EXACT, *NEAR)
    }


def _by_similarity(stars: Stars, over: Flags, found: Flags) -> dict[str, dict[str, int]]:
    """Planted pairs by similarity, in steps of .05: what is missed lies near the threshold or nowhere."""
    of_pair = stars.role == Role.PAIR
    steps = np.floor(stars.similarity / 0.05 + 1e-9).astype(int)
    return {
        f"{step * 0.05:.2f}": {
            "planted": int((inside := of_pair & (steps == step)).sum()),
            "over_threshold": int((inside & over).sum()),
            "found": int((inside & over & found).sum()),
        }
        for step in np.unique(steps[of_pair]).tolist()
    }
