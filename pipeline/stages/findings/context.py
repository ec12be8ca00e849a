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
from pipeline.kernels.sorted_ids import distinct, ranges_of
from pipeline.layout.annotations import Codes, Vocabulary, names_of
from pipeline.layout.edge_index import edges_at
from pipeline.layout.exact import ExactGroups, is_live, read_summary, usable
from pipeline.layout.features import read_feature_rows
from pipeline.layout.images import NO_PARENT, paths_of
from pipeline.layout.inputs import Inputs
from pipeline.layout.scores import Scored, read_scores
from pipeline.layout.snapshots import Snapshot
from pipeline.schemas import FEATURE_ROWS, TABLES
from pipeline.stages.findings.edge_index import require_edge_index
from pipeline.storage import Store

NAME_COLUMNS = ("uri", "source", "raw_key", "fragment")


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
    """Groups of the whole data set, read once per process, and verified edges, read as they are asked for."""

    store: Store
    forest: Forest
    edges: str
    exact: ExactGroups
    has_siblings: bool

    def groups_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The group of each id: its own where it is alone."""
        found: NDArray[np.int64] = labels_for(ids, self.forest)
        return found

    @cached_property
    def _by_root(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Children by root, then id, and their roots."""
        order = np.argsort(self.forest.root, kind="stable")  # children ascend
        return self.forest.child[order], self.forest.root[order]

    @cached_property
    def _roots(self) -> NDArray[np.int64]:
        return distinct(self._by_root[1])

    def members(self, groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sorted ids of all images of some groups; a group of one is itself."""
        children, roots = self._by_root
        at = ranges_of(np.searchsorted(roots, groups, "left"), np.searchsorted(roots, groups, "right"))
        return np.union1d(groups, children[at])

    def roots_in(self, lo: int, hi: int) -> NDArray[np.int64]:
        """Groups of two or more whose id is in [lo, hi), ascending."""
        return self._roots[slice(*np.searchsorted(self._roots, [lo, hi]))]

    def edges_at(self, ids: NDArray[np.int64]) -> pa.Table:
        """The edges with an end among some representatives, each once."""
        return edges_at(self.store, self.edges, ids)


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
        return is_live(self.features["image_id"].to_numpy(), self.spec.inputs.gone())

    @cached_property
    def ok(self) -> NDArray[np.bool_]:
        """Which rows are ok and live."""
        return usable(self.features, self.spec.inputs.gone())

    @cached_property
    def representatives(self) -> NDArray[np.int64]:
        """The representative of every ok row."""
        ids = self.features["image_id"].to_numpy()[self.ok]
        return self.graph.exact.representatives_of(ids)

    @cached_property
    def edges(self) -> pa.Table:
        """The edges of the representatives of the ok rows."""
        return self.graph.edges_at(self.representatives)

    @cached_property
    def scored(self) -> tuple[Scored, NDArray[np.int64]]:
        """Scores of the representatives of the ok rows, each once, and which of them is that of each ok row."""
        unique, row = np.unique(self.representatives, return_inverse=True)
        return read_scores(self.store, self.spec.scores, unique), row.ravel()

    @cached_property
    def subjects(self) -> pa.Table:
        """image_id, uri, split, label and source of every row of the range."""
        return self._named(np.arange(self.spec.lo, self.spec.hi), self.catalog, self.codes)

    @cached_property
    def catalog(self) -> pa.Table:
        """Names of the range."""
        return self.spec.inputs.catalog_rows(self.spec.lo, self.spec.hi, NAME_COLUMNS).combine_chunks()

    def paths(self) -> pa.Array:
        """Where every image of the range is."""
        return paths_of(self.catalog, self.snapshot)

    @cached_property
    def codes(self) -> Codes:
        """Split and label codes of the range."""
        return self.spec.inputs.codes(self.spec.lo, self.spec.hi)

    def subjects_of(self, ids: NDArray[np.int64]) -> pa.Table:
        """image_id, uri, split, label and source of some ids, row-aligned (any order, repeats allowed)."""
        inputs = self.spec.inputs
        return self._named(ids, inputs.catalog_rows_of(ids, NAME_COLUMNS), inputs.codes_for(ids))

    def parents_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """What some ids are frames or boxes of, row-aligned: see `layout.images.parents_of`."""
        if not self.graph.has_siblings:
            return np.full(len(ids), NO_PARENT, np.int64)
        return self.spec.inputs.parents_for(ids)

    def uris_of(self, ids: NDArray[np.int64]) -> pa.Array:
        """Names of images; null for id -1."""
        known = ids >= 0
        names = self.spec.inputs.catalog_rows_of(ids[known], NAME_COLUMNS[:1])["uri"].combine_chunks()
        return names.take(pa.array(np.cumsum(known) - 1, mask=~known))

    def _named(self, ids: NDArray[np.int64], rows: pa.Table, codes: Codes) -> pa.Table:
        return pa.table(
            {
                "image_id": ids,
                "uri": rows["uri"],
                "split": names_of(codes.split, self.vocabulary.splits),
                "label": names_of(codes.label, self.vocabulary.labels),
                "source": rows["source"],
            }
        )


@lru_cache(maxsize=1)
def open_graph(inputs: Inputs, edges: str, groups: str) -> Graph:
    """The graph of an audit."""
    store = inputs.root.open()
    require_edge_index(store, edges)
    exact = inputs.exact_groups()
    has_siblings = bool(read_summary(store, inputs.exact).parents or (exact.parent_id >= 0).any())
    return Graph(store, inputs.forest(groups), edges, exact, has_siblings)


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
