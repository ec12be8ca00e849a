"""Exact groups at rest: which images share their bytes or pixels, and what the extracted rows add up to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.layout.annotations import Codes
from pipeline.layout.features import Features, FeatureSet, pinned_from_json, read_feature_rows, read_features
from pipeline.layout.tables import read_json, read_table
from pipeline.schemas import TRANSIENT, Status
from pipeline.storage import Store

MEMBERS = "members.parquet"
FEATURES = "features.json"
SUMMARY = "summary.json"
MEMBER_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64()),
        pa.field("representative_id", pa.int64()),
        pa.field("content_id", pa.int64()),
        pa.field("split", pa.int32()),
        pa.field("label", pa.int32()),
    ]
)
"""Every image of a group of two or more, its representative included. content_id: smallest id with the same bytes;
split and label: codes of the vocabulary, -1 without one."""

MAX_SPLITS = 63
NO_SPLIT_BIT = 63
SIGNATURE_LENGTH = 256


@dataclass(frozen=True)
class ExactSummary:
    """What the rows add up to: images per status, representatives, and a digest of ids, statuses and hashes."""

    digest: str
    live: int
    ok: int
    representatives: int
    statuses: dict[str, int]

    @property
    def transient(self) -> int:
        """Images whose status is a property of the attempt."""
        return sum(count for status, count in self.statuses.items() if Status(status) in TRANSIENT)


@dataclass(frozen=True)
class ExactGroups:
    """Members of groups of two or more, int64 and int32 (m,), sorted by image_id; see MEMBER_SCHEMA."""

    image_id: NDArray[np.int64]
    representative_id: NDArray[np.int64]
    content_id: NDArray[np.int64]
    split: NDArray[np.int32]
    label: NDArray[np.int32]

    def representatives_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The representative of each id: itself where it has no copy."""
        found = np.array(ids, np.int64)
        at = np.searchsorted(self.image_id, ids)
        at[at == len(self.image_id)] = 0
        if len(self.image_id):
            hit = self.image_id[at] == ids
            found[hit] = self.representative_id[at[hit]]
        return found


@dataclass(frozen=True)
class Representatives:
    """Representatives of a range: ids int64 (n,), embeddings float16, signatures uint8, split masks, label codes."""

    ids: NDArray[np.int64]
    embeddings: NDArray[np.float16]
    signatures: NDArray[np.uint8]
    split_mask: NDArray[np.uint64]
    label: NDArray[np.int32]


FIELDS = tuple(Representatives.__dataclass_fields__)
TAKE_BLOCK = 16_384


def read_summary(store: Store, folder: str) -> ExactSummary:
    """The summary of an exact folder; its presence marks the stage as done."""
    return ExactSummary(**read_json(store, f"{folder}/{SUMMARY}"))


def read_pinned_features(store: Store, folder: str) -> FeatureSet:
    """The feature parts that were grouped: another audit may commit later attempts, which this one must not see."""
    return pinned_from_json(read_json(store, f"{folder}/{FEATURES}"))


def read_exact(store: Store, folder: str) -> ExactGroups:
    """The exact groups of a folder."""
    rows = read_table(store, f"{folder}/{MEMBERS}")
    return ExactGroups(*(rows[name].to_numpy() for name in MEMBER_SCHEMA.names))


def split_bits(splits: NDArray[np.int32]) -> NDArray[np.uint64]:
    """One bit per split code; images without a split share bit 63."""
    codes = np.where(splits < 0, NO_SPLIT_BIT, splits).astype(np.uint64)
    return np.asarray(np.left_shift(np.uint64(1), codes), np.uint64)


def group_masks(exact: ExactGroups) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Representatives of groups of two or more, sorted, and the splits that each group touches."""
    heads, inverse = np.unique(exact.representative_id, return_inverse=True)
    masks = np.zeros(len(heads), np.uint64)
    np.bitwise_or.at(masks, inverse, split_bits(exact.split))
    return heads, masks


def usable(rows: pa.Table, gone: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which feature rows are ok and live."""
    ids = rows["image_id"].to_numpy()
    ok = np.asarray(rows["status"].to_numpy() == Status.OK.value, bool)
    return np.asarray(ok & ~np.isin(ids, gone), bool)


@dataclass(frozen=True)
class Population:
    """How to read representatives: the store and the artifacts of one audit."""

    store: Store
    features: FeatureSet
    exact: ExactGroups
    gone: NDArray[np.int64]
    codes: Callable[[int, int], Codes]
    dimension: int

    @cached_property
    def masks(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """`group_masks` of the exact groups, once: every block that is read needs them."""
        return group_masks(self.exact)

    def read(self, lo: int, hi: int) -> Representatives:
        """The representatives of offsets [lo, hi)."""
        if lo >= hi:
            return no_representatives(self.dimension)
        found = read_features(self.store, self.features, lo, hi, ["status"])
        keep = self._keep(found.rows)
        return self._assemble(found, keep, lo, hi)

    def ids(self, lo: int, hi: int) -> NDArray[np.int64]:
        """Ids of the representatives of offsets [lo, hi), without their vectors."""
        rows = read_feature_rows(self.store, self.features, lo, hi, ["image_id", "status"])
        ids: NDArray[np.int64] = rows["image_id"].to_numpy()[self._keep(rows)]
        return ids

    def take(self, ids: NDArray[np.int64]) -> Representatives:
        """The representatives with these ids (sorted, unique)."""
        pieces = []
        for lo in np.unique(ids // TAKE_BLOCK) * TAKE_BLOCK:
            inside = ids[(ids >= lo) & (ids < lo + TAKE_BLOCK)]
            found = self.read(int(inside[0]), int(inside[-1]) + 1)
            at = np.searchsorted(found.ids, inside)
            pieces.append(Representatives(*(getattr(found, name)[at] for name in FIELDS)))
        return concatenate(pieces)

    def _keep(self, rows: pa.Table) -> NDArray[np.bool_]:
        ids = rows["image_id"].to_numpy()
        return np.asarray(usable(rows, self.gone) & (self.exact.representatives_of(ids) == ids), bool)

    def _assemble(self, found: Features, keep: NDArray[np.bool_], lo: int, hi: int) -> Representatives:
        ids = found.rows["image_id"].to_numpy()[keep]
        codes = self.codes(lo, hi)
        masks = split_bits(codes.split[keep])
        heads, group = self.masks
        if len(heads):
            at = np.minimum(np.searchsorted(heads, ids), len(heads) - 1)
            masks = np.where(heads[at] == ids, group[at], masks)
        return Representatives(
            ids, np.asarray(found.embeddings)[keep], np.asarray(found.signatures)[keep], masks, codes.label[keep]
        )


def no_representatives(dimension: int) -> Representatives:
    """None at all, of vectors of so many numbers."""
    return Representatives(
        np.empty(0, np.int64),
        np.empty((0, dimension), np.float16),
        np.empty((0, SIGNATURE_LENGTH), np.uint8),
        np.empty(0, np.uint64),
        np.empty(0, np.int32),
    )


def concatenate(pieces: list[Representatives]) -> Representatives:
    """Representatives of several ranges as one."""
    return Representatives(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in FIELDS))
