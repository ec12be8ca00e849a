"""Inputs: the artifacts that the stages of one audit share, named once and opened in each worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.components import Forest
from pipeline.layout.annotations import NAMES, Codes, Vocabulary, read_codes, read_vocabulary
from pipeline.layout.exact import (
    PARENT_ID,
    SIZES,
    ExactGroups,
    Population,
    read_exact,
    read_pinned_features,
)
from pipeline.layout.features import FeatureSet
from pipeline.layout.groups import read_forest
from pipeline.layout.lookups import read_between, take_rows
from pipeline.layout.root import Root
from pipeline.layout.snapshots import Snapshot, read_snapshot, removed_ids

READ_BLOCK = 131_072


@dataclass(frozen=True)
class Inputs:
    """Names of the artifacts that the stages after the exact groups read."""

    root: Root
    snapshot: int
    features: str
    annotations: str
    exact: str
    dimension: int

    def opened_snapshot(self) -> Snapshot:
        """The pinned snapshot."""
        return _snapshot(self)

    def population(self) -> Population:
        """The reader of representatives, opened once per process."""
        return _population(self)

    def vocabulary(self) -> Vocabulary:
        """Splits and labels of the snapshot."""
        return _vocabulary(self)

    def exact_groups(self) -> ExactGroups:
        """The exact groups."""
        return _exact_groups(self)

    def forest(self, groups: str) -> Forest:
        """All groups of a groups folder."""
        return read_forest(self.root.open(), groups)

    def sizes_of(self, ids: NDArray[np.int64]) -> pa.Table:
        """Columns of SIZE_SCHEMA of some ids (any order, repeats allowed), row-aligned."""
        return take_rows(self.root.open(), self.exact, SIZES, ids)

    def sizes(self, lo: int, hi: int) -> pa.Table:
        """Columns of SIZE_SCHEMA of a range."""
        return read_between(self.root.open(), self.exact, SIZES, lo, hi)

    def parents(self, lo: int, hi: int) -> NDArray[np.int64]:
        """What each image of a range is a frame or box of, int64 (n,): see `layout.images.parents_of`."""
        found: NDArray[np.int64] = read_between(self.root.open(), self.exact, SIZES, lo, hi, [PARENT_ID])[
            PARENT_ID
        ].to_numpy()
        return found

    def parents_for(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """`parents` of some ids (any order, repeats allowed), row-aligned."""
        found: NDArray[np.int64] = take_rows(self.root.open(), self.exact, SIZES, ids, [PARENT_ID])[
            PARENT_ID
        ].to_numpy()
        return found

    def feature_set(self) -> FeatureSet:
        """The feature parts of this audit."""
        return self.population().features

    def gone(self) -> NDArray[np.int64]:
        """Ids that are not in the snapshot any more."""
        return removed_ids(self.root.open(), self.opened_snapshot())

    def codes(self, lo: int, hi: int) -> Codes:
        """Split and label codes of a range."""
        every = read_codes(self.root.open(), self.annotations)
        return Codes(every.split[lo:hi], every.label[lo:hi])

    def codes_for(self, ids: NDArray[np.int64]) -> Codes:
        """Split and label codes of some ids (any order)."""
        every = read_codes(self.root.open(), self.annotations)
        return Codes(every.split[ids], every.label[ids])

    def catalog_rows(self, lo: int, hi: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Columns of CATALOG_ROWS, image_id excepted, of a range."""
        return read_between(self.root.open(), self.annotations, NAMES, lo, hi, columns)

    def catalog_rows_of(self, ids: NDArray[np.int64], columns: Sequence[str] | None = None) -> pa.Table:
        """Columns of CATALOG_ROWS, image_id excepted, of some ids (any order, repeats allowed), row-aligned."""
        return take_rows(self.root.open(), self.annotations, NAMES, ids, columns)


@lru_cache(maxsize=1)
def _population(inputs: Inputs) -> Population:
    store = inputs.root.open()
    return Population(store, read_pinned_features(store, inputs.exact), inputs.exact, inputs.dimension)


@lru_cache(maxsize=1)
def _exact_groups(inputs: Inputs) -> ExactGroups:
    return read_exact(inputs.root.open(), inputs.exact)


@lru_cache(maxsize=1)
def _snapshot(inputs: Inputs) -> Snapshot:
    return read_snapshot(inputs.root.open(), inputs.snapshot)


@lru_cache(maxsize=1)
def _vocabulary(inputs: Inputs) -> Vocabulary:
    return read_vocabulary(inputs.root.open(), inputs.annotations)
