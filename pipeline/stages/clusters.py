"""Clusters stage: the forest of all saturated queries, from what the partitions and the merges joined."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.kernels.components import Forest, empty_forest, merge_forests
from pipeline.layout.edges import each_in_order
from pipeline.layout.neighbours import CLUSTERS
from pipeline.layout.root import Root, kept
from pipeline.layout.tables import read_table, write_table
from pipeline.runner import Counters
from pipeline.stages.join import forest_table
from pipeline.storage import Store

VERSION = 1
EDGES_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class ClustersSpec:
    """Keys of saturated forests, to be merged into a folder: all of them by name, so that none is missing unseen."""

    root: Root
    keys: tuple[str, ...]
    folder: str


def collect_clusters(spec: ClustersSpec) -> Counters:
    """Commits the merged forest of saturated queries: 16 bytes per image in a cluster, 64 MB of edges at once."""
    store = spec.root.open()
    merged, held = empty_forest(), [empty_forest()]
    for part in each_in_order(store, spec.keys, lambda key: _read(store, key)):
        held.append(part)
        if sum(len(forest.child) for forest in held) > EDGES_AT_ONCE:
            merged, held = merge_forests([merged, *held]), []
    merged = merge_forests([merged, *held])
    write_table(store, f"{spec.folder}/{CLUSTERS}", forest_table(merged))
    return {"clustered": len(merged.child)}


def read_clusters(store: Store, folder: str) -> Forest:
    """The forest of saturated queries of a folder, read once per process."""
    key = f"{folder}/{CLUSTERS}"
    return kept(store, key, lambda: _read(store, key))


def _read(store: Store, key: str) -> Forest:
    rows = read_table(store, key)
    return Forest(rows["image_id"].to_numpy(), rows["group_id"].to_numpy())
