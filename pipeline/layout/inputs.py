"""Inputs: the artifacts that the stages of one audit share, named once and opened in each worker."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.layout.annotations import Codes, Vocabulary, codes_of, read_annotations, read_vocabulary
from pipeline.layout.exact import (
    ExactGroups,
    Population,
    Representatives,
    concatenate,
    read_exact,
    read_pinned_features,
)
from pipeline.layout.features import FeatureSet
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
        return read_snapshot(self.root.open(), self.snapshot)

    def population(self) -> Population:
        """The reader of representatives, opened once per process."""
        return _population(self)

    def vocabulary(self) -> Vocabulary:
        """Splits and labels of the snapshot."""
        return read_vocabulary(self.root.open(), self.annotations)

    def exact_groups(self) -> ExactGroups:
        """The exact groups."""
        return self.population().exact

    def feature_set(self) -> FeatureSet:
        """The feature parts of this audit."""
        return self.population().features

    def gone(self) -> NDArray[np.int64]:
        """Ids that are not in the snapshot any more."""
        return self.population().gone

    def codes(self, lo: int, hi: int) -> Codes:
        """Split and label codes of a range."""
        return codes_of(read_annotations(self.root.open(), self.annotations, lo, hi), self.vocabulary())

    def codes_for(self, ids: NDArray[np.int64]) -> Codes:
        """Split and label codes of some ids (any order)."""
        split, label = np.empty(len(ids), np.int32), np.empty(len(ids), np.int32)
        for lo in np.unique(ids // READ_BLOCK) * READ_BLOCK:
            inside = (ids >= lo) & (ids < lo + READ_BLOCK)
            wanted = ids[inside]
            found = self.codes(int(lo), int(wanted.max()) + 1)
            split[inside], label[inside] = found.split[wanted - lo], found.label[wanted - lo]
        return Codes(split, label)

    def representatives(self) -> Representatives:
        """All representatives: the whole of one partition."""
        total = self.opened_snapshot().total
        population = self.population()
        return concatenate(
            [population.read(lo, min(lo + READ_BLOCK, total)) for lo in range(0, max(total, 1), READ_BLOCK)]
        )


@lru_cache(maxsize=1)
def _population(inputs: Inputs) -> Population:
    store = inputs.root.open()
    return Population(
        store,
        read_pinned_features(store, inputs.exact),
        read_exact(store, inputs.exact),
        removed_ids(store, inputs.opened_snapshot()),
        inputs.codes,
        inputs.dimension,
    )
