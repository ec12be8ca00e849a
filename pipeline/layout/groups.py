"""Groups at rest: the forest of duplicates and near-duplicates."""

from __future__ import annotations

from pipeline.kernels.components import Forest
from pipeline.layout.tables import read_table
from pipeline.storage import Store

FOREST = "forest.parquet"


def read_forest(store: Store, folder: str) -> Forest:
    """The star forest of a groups folder: every member of a group -> its smallest id."""
    rows = read_table(store, f"{folder}/{FOREST}")
    return Forest(rows["image_id"].to_numpy(), rows["group_id"].to_numpy())
