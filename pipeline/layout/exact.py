"""Exact groups at rest: which images share their bytes or pixels, and what the extracted rows add up to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.kernels.sorted_ids import distinct, ranges_of
from pipeline.layout.features import FeatureSet, pinned_from_json, read_features_of, read_vectors
from pipeline.layout.lookups import FORM, open_lookup
from pipeline.layout.parts import list_parts
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
        pa.field("parent_id", pa.int64()),
    ]
)
"""Every image of a group of two or more, its representative included. content_id: smallest id with the same bytes;
split and label: codes of the vocabulary, -1 without one; parent_id: as `layout.images.parents_of` tells it."""

SIZES = "sizes"
PARENT_ID = "parent_id"
SIZE_SCHEMA = pa.schema(
    [
        pa.field("is_usable", pa.bool_()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("size_bytes", pa.int64()),
        pa.field(PARENT_ID, pa.int64()),
    ]
)
"""Lookup of every offset: whether it is ok and live, its size, null unless ok, and its parent as
`layout.images.parents_of` tells it."""
REPRESENTATIVES, FAMILY = "representatives", "family"
REPRESENTATIVE_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64()),
        pa.field("split_mask", pa.uint64()),
        pa.field("label", pa.int32()),
        pa.field(FAMILY, pa.int64()),
    ]
)
"""Lookups of the representatives of a range, ascending: which splits the group touches, the image's own label code, and
what the group is a frame or box of, as `kernels.siblings.families` tells it."""

LARGE = "large-parents.arrow"
LARGE_SCHEMA = pa.schema([pa.field("parent_id", pa.int64()), pa.field("images", pa.int64())])
LARGE_PARENT = 1024
"""Lookup of the parents that have more representatives than this, ascending; it is there where there are any."""
MAX_SPLITS = 63
NO_SPLIT_BIT = 63
SIGNATURE_LENGTH = 256


@dataclass(frozen=True)
class ExactSummary:
    """What the rows add up to: images per status, representatives, and a digest of ids, statuses and hashes.

    parents: files of which representatives are frames or boxes; files: representatives that are files or members
    themselves; large: parents of more representatives than LARGE_PARENT. None of them where an earlier version grouped.
    """

    digest: str
    live: int
    ok: int
    representatives: int
    statuses: dict[str, int]
    parents: int = 0
    files: int = 0
    large: int = 0

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
    parent_id: NDArray[np.int64]

    @cached_property
    def is_within(self) -> NDArray[np.bool_]:
        """Which rows are of a group that is all frames or boxes of one file: its images are no copies of each other."""
        order, heads = self.by_representative
        parents = self.parent_id[order]
        starts = np.flatnonzero(np.r_[True, heads[1:] != heads[:-1]]) if len(heads) else np.empty(0, np.int64)
        is_same = parents == np.repeat(parents[starts], np.diff(np.r_[starts, len(heads)]))
        within = np.zeros(len(heads), bool)
        if len(starts):
            whole = np.logical_and.reduceat(is_same & (parents >= 0), starts)
            within[order] = np.repeat(whole, np.diff(np.r_[starts, len(heads)]))
        return within

    def representatives_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The representative of each id: itself where it has no copy."""
        found = np.array(ids, np.int64)
        at = np.searchsorted(self.image_id, ids)
        at[at == len(self.image_id)] = 0
        if len(self.image_id):
            hit = self.image_id[at] == ids
            found[hit] = self.representative_id[at[hit]]
        return found

    def first_copies(
        self, ids: NDArray[np.int64], parents: NDArray[np.int64], within: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Of each representative and its copies the smallest id within a parent, or of anything else; -1 for none.

        A representative without a copy has none. (n,) each, any order, repeats cost nothing.
        """
        asked, place = np.unique(np.stack([ids, parents, within.astype(np.int64)]), axis=1, return_inverse=True)
        order, heads = self.by_representative
        start, stop = np.searchsorted(heads, asked[0], "left"), np.searchsorted(heads, asked[0], "right")
        rows = order[ranges_of(start, stop)]
        owner = np.repeat(np.arange(asked.shape[1]), stop - start)
        fits = (self.parent_id[rows] == asked[1, owner]) == asked[2, owner].astype(bool)
        owners, first = np.unique(owner[fits], return_index=True)
        found = np.full(asked.shape[1], -1, np.int64)
        found[owners] = self.image_id[rows[fits][first]]
        return np.asarray(found[place.ravel()])

    @cached_property
    def by_representative(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows by representative, then id, and the representatives in that order; sorted once per process."""
        order = np.argsort(self.representative_id, kind="stable")
        return order, self.representative_id[order]

    @cached_property
    def heads(self) -> NDArray[np.int64]:
        """The representatives, each once, ascending."""
        return distinct(self.representative_id)

    def rows_of(self, representatives: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of the members of some representatives (ascending), by representative, then id."""
        order, heads = self.by_representative
        start, stop = np.searchsorted(heads, representatives, "left"), np.searchsorted(heads, representatives, "right")
        found: NDArray[np.int64] = order[ranges_of(start, stop)]
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


def is_live(ids: NDArray[np.int64], gone: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of some ascending ids are in the snapshot; gone: sorted ids that are not."""
    if not len(ids):
        return np.empty(0, bool)
    lo, hi = np.searchsorted(gone, [ids[0], ids[-1] + 1])
    live = np.ones(len(ids), bool)
    if hi > lo:  # where all ids were sorted, a million removed images cost every range 0.1 s
        at = np.searchsorted(ids, gone[lo:hi])
        live[at[ids[at] == gone[lo:hi]]] = False
    return live


def usable(rows: pa.Table, gone: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which feature rows, ascending, are ok and live."""
    ok = pc.equal(rows["status"], Status.OK.value).to_numpy()
    return np.asarray(ok & is_live(rows["image_id"].to_numpy(), gone), bool)


@dataclass(frozen=True)
class Population:
    """How to read representatives: the store and the artifacts of one audit."""

    store: Store
    features: FeatureSet
    folder: str
    dimension: int

    def read(self, lo: int, hi: int) -> Representatives:
        """The representatives of offsets [lo, hi)."""
        listed = self._listed(lo, hi)
        ids = listed["image_id"].to_numpy()
        if not len(ids):
            return no_representatives(self.dimension)
        embeddings, signatures = read_vectors(self.store, self.features, lo, hi)
        if len(ids) < hi - lo:
            embeddings, signatures = embeddings[ids - lo], signatures[ids - lo]
        return _representatives(listed, embeddings, signatures)

    def ids(self, lo: int, hi: int) -> NDArray[np.int64]:
        """Ids of the representatives of offsets [lo, hi), without their vectors."""
        ids: NDArray[np.int64] = self._listed(lo, hi)["image_id"].to_numpy()
        return ids

    def take(self, ids: NDArray[np.int64]) -> Representatives:
        """The representatives with these ids (sorted, unique); costs by how many they are."""
        if not len(ids):
            return no_representatives(self.dimension)
        return _representatives(self._rows_of(ids), *read_features_of(self.store, self.features, ids))

    def families(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """What some representatives and their copies are frames or boxes of, row-aligned (any order, repeats allowed):
        see `kernels.siblings.families`.
        """
        unique, place = np.unique(ids, return_inverse=True)
        found: NDArray[np.int64] = self._rows_of(unique)[FAMILY].to_numpy()[place.ravel()]
        return found

    def _rows_of(self, ids: NDArray[np.int64]) -> pa.Table:
        pieces = []
        for part in list_parts(self.store, self.folder, REPRESENTATIVES, FORM):
            inside = ids[slice(*np.searchsorted(ids, [part.lo, part.hi]))]
            if len(inside):
                rows = open_lookup(self.store, part.key)
                pieces.append(rows.take(pa.array(np.searchsorted(rows["image_id"].to_numpy(), inside))))
        return pa.Table.from_batches(pieces, REPRESENTATIVE_SCHEMA)

    def _listed(self, lo: int, hi: int) -> pa.Table:
        pieces = []
        for part in list_parts(self.store, self.folder, REPRESENTATIVES, FORM):
            if part.lo < hi and lo < part.hi:
                rows = open_lookup(self.store, part.key)
                start, stop = np.searchsorted(rows["image_id"].to_numpy(), [lo, hi])
                pieces.append(rows.slice(start, stop - start))
        return pa.Table.from_batches(pieces, REPRESENTATIVE_SCHEMA)


def _representatives(listed: pa.Table, embeddings: Any, signatures: Any) -> Representatives:
    ids, masks, label = (listed[name].to_numpy() for name in REPRESENTATIVE_SCHEMA.names[:3])
    return Representatives(ids, embeddings, signatures, masks, label)


def no_representatives(dimension: int) -> Representatives:
    """None at all, of vectors of so many numbers."""
    return Representatives(
        np.empty(0, np.int64),
        np.empty((0, dimension), np.float16),
        np.empty((0, SIGNATURE_LENGTH), np.uint8),
        np.empty(0, np.uint64),
        np.empty(0, np.int32),
    )
