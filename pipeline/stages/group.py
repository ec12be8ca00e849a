"""Group stage: connected components of exact copies and verified near-duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.kernels.components import Forest, group_sizes, merge_forests, star_forest
from pipeline.layout.edges import edge_tables
from pipeline.layout.groups import FOREST
from pipeline.layout.inputs import Inputs
from pipeline.layout.tables import write_table
from pipeline.runner import Counters
from pipeline.schemas import GROUPING_KINDS

VERSION = 1


@dataclass(frozen=True)
class GroupSpec:
    """Verified edges and exact groups, to be joined into groups."""

    inputs: Inputs
    edges: str
    folder: str


def group(spec: GroupSpec) -> Counters:
    """Commits the star forest of all groups: every member -> its smallest id."""
    store = spec.inputs.root.open()
    forests = [*map(_edge_forest, edge_tables(store, spec.edges, ["image_id", "match_id", "kind"]))]
    exact = spec.inputs.exact_groups()
    forest = merge_forests([*forests, star_forest(exact.image_id, exact.representative_id)])
    table = pa.table({"image_id": forest.child, "group_id": forest.root})
    write_table(store, f"{spec.folder}/{FOREST}", table)
    sizes = group_sizes(np.r_[forest.root, np.unique(forest.root)]).size
    return {"groups": len(sizes), "images": int(sizes.sum()), "largest": int(sizes.max(initial=0))}


def _edge_forest(edges: pa.Table) -> Forest:
    kinds = pa.array([kind.value for kind in GROUPING_KINDS])
    joined = edges.filter(pc.is_in(edges["kind"], value_set=kinds))
    return star_forest(joined["image_id"].to_numpy(), joined["match_id"].to_numpy())
