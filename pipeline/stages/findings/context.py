"""What every table of a range needs: names of images, their splits and labels, groups and edges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.components import Forest, labels_for
from pipeline.kernels.groups import KeeperPolicy
from pipeline.kernels.labels import LabelRule
from pipeline.kernels.outliers import OutlierRule
from pipeline.kernels.quality_checks import QualityLimits
from pipeline.layout.annotations import Vocabulary, names_of
from pipeline.layout.edges import edge_tables
from pipeline.layout.exact import ExactGroups, usable
from pipeline.layout.features import read_feature_rows
from pipeline.layout.groups import read_forest
from pipeline.layout.images import paths_of
from pipeline.layout.inputs import Inputs
from pipeline.layout.snapshots import Snapshot, catalog_rows, catalog_rows_of
from pipeline.schemas import EDGES as EDGES_TABLE
from pipeline.schemas import FEATURE_ROWS, TABLES
from pipeline.storage import Store


@dataclass(frozen=True)
class Rules:
    """The parameters of every finding."""

    outliers: OutlierRule
    labels: LabelRule
    quality: QualityLimits
    keeper: KeeperPolicy
    threshold: float


@dataclass(frozen=True)
class FindingsSpec:
    """Offsets [lo, hi) of the tables of one audit."""

    inputs: Inputs
    space: str
    edges: str
    groups: str
    scores: str
    rules: Rules
    folder: str
    lo: int
    hi: int


@dataclass(frozen=True)
class Graph:
    """Groups and verified edges of the whole data set, read once per process."""

    forest: Forest
    by_root: NDArray[np.int64]
    edges: pa.Table
    exact: ExactGroups

    def groups_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The group of each id: its own where it is alone."""
        found: NDArray[np.int64] = labels_for(ids, self.forest)
        return found

    def members(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sorted ids of all images of some groups; a group of one is itself."""
        roots = self.forest.root[self.by_root]
        start, stop = np.searchsorted(roots, groups, "left"), np.searchsorted(roots, groups, "right")
        size = stop - start
        at = np.arange(size.sum()) + np.repeat(start - (np.cumsum(size) - size), size)
        return np.union1d(groups, self.forest.child[self.by_root[at]])

    def roots_in(self, lo: int, hi: int) -> NDArray[np.int64]:
        """Groups of two or more whose id is in [lo, hi)."""
        roots = np.unique(self.forest.root)
        return roots[(roots >= lo) & (roots < hi)]


class Range:
    """The images of [lo, hi) and what is known of them; columns are read when first asked for."""

    def __init__(self, spec: FindingsSpec) -> None:
        self.spec = spec
        self.store: Store = spec.inputs.root.open()
        self.snapshot: Snapshot = spec.inputs.opened_snapshot()
        self.vocabulary: Vocabulary = spec.inputs.vocabulary()
        self.graph = open_graph(spec.inputs, spec.edges, spec.groups)

    @cached_property
    def features(self) -> pa.Table:
        """Feature rows of the range."""
        features = self.spec.inputs.feature_set()
        return read_feature_rows(self.store, features, self.spec.lo, self.spec.hi, FEATURE_ROWS.schema.names)

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """Which rows are in the snapshot."""
        return ~np.isin(self.features["image_id"].to_numpy(), self.spec.inputs.gone())

    @cached_property
    def ok(self) -> NDArray[np.bool_]:
        """Which rows are ok and live."""
        return usable(self.features, self.spec.inputs.gone())

    @cached_property
    def subjects(self) -> pa.Table:
        """image_id, uri, split, label and source of every row of the range."""
        codes = self.spec.inputs.codes(self.spec.lo, self.spec.hi)
        return self._named(self.catalog, codes.split, codes.label)

    @cached_property
    def catalog(self) -> pa.Table:
        """Catalog rows of the range."""
        return catalog_rows(self.store, self.snapshot, self.spec.lo, self.spec.hi)

    def paths(self) -> pa.Array:
        """Where every image of the range is."""
        return paths_of(self.catalog, self.snapshot)

    @cached_property
    def codes(self) -> Any:
        """Split and label codes of the range."""
        return self.spec.inputs.codes(self.spec.lo, self.spec.hi)

    def subjects_of(self, ids: NDArray[np.int64]) -> pa.Table:
        """image_id, uri, split, label and source of some ids, row-aligned (any order, repeats allowed)."""
        codes = self.spec.inputs.codes_for(ids)
        return self._named(catalog_rows_of(self.store, self.snapshot, ids), codes.split, codes.label)

    def _named(self, rows: pa.Table, split: NDArray[np.int32], label: NDArray[np.int32]) -> pa.Table:
        return pa.table(
            {
                "image_id": rows["image_id"],
                "uri": rows["uri"],
                "split": names_of(split, self.vocabulary.splits),
                "label": names_of(label, self.vocabulary.labels),
                "source": rows["source"],
            }
        )


@lru_cache(maxsize=1)
def open_graph(inputs: Inputs, edges: str, groups: str) -> Graph:
    """The graph of an audit."""
    store = inputs.root.open()
    forest = read_forest(store, groups)
    parts = [*edge_tables(store, edges)]
    table = pa.concat_tables(parts).combine_chunks() if parts else EDGES_TABLE.empty()
    return Graph(forest, np.lexsort((forest.child, forest.root)), table, inputs.exact_groups())


def subject_columns(subjects: pa.Table, prefix: str = "") -> dict[str, Any]:
    """The subject columns, or the same of a match (prefix "match" renames image_id to match_id)."""
    names = {"image_id": f"{prefix}_id", "uri": f"{prefix}_uri", "split": f"{prefix}_split", "label": f"{prefix}_label"}
    return {names[name] if prefix else name: subjects[name] for name in names}


def as_table(name: str, columns: dict[str, Any]) -> pa.Table:
    """The columns in the order and the types of a table's schema."""
    schema = TABLES[name].schema
    return pa.table({field.name: pa_array(columns[field.name], field.type) for field in schema}, schema=schema)


def pa_array(values: Any, kind: pa.DataType) -> Any:
    """An Arrow column: NaN becomes null, Arrow values are cast."""
    if isinstance(values, np.ndarray):
        return pa.array(values, from_pandas=True).cast(kind)
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        return values.cast(kind)
    return pa.array(values, kind)
