"""Edge index stage: the verified pairs of an audit, to be found by either image."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.layout.edge_index import index_files, write_edge_index
from pipeline.layout.root import Root
from pipeline.runner import Counters
from pipeline.storage import Store


@dataclass(frozen=True)
class EdgeIndexSpec:
    """A folder of edges to which nothing is added any more."""

    root: Root
    edges: str


def index_edges(spec: EdgeIndexSpec) -> Counters:
    """Commits the index beside the edges."""
    return {"edges": write_edge_index(spec.root.open(), spec.edges)}


def require_edge_index(store: Store, edges: str) -> None:
    """Makes the index where nobody did."""
    if not all(store.exists(f"{edges}/{name}") for name in index_files(store, edges)):
        write_edge_index(store, edges)
