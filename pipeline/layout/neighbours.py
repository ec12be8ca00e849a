"""Neighbour artifacts: candidates and saturated forests of the copy space, neighbour lists of the semantic space."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.layout.parts import Slice, cover, list_parts
from pipeline.layout.tables import read_rows
from pipeline.storage import Store

CANDIDATES, SATURATED, NEIGHBOURS, TRUTH, FURTHEST = "candidates", "saturated", "neighbours", "truth", "furthest"
CLUSTERS = "clusters.parquet"
EDGES = "edges"
KNOWN = "known.parquet"
VERDICT = ("kind", "correlation", "overlap", "is_mirrored")
"""What the pixels of a pair said."""
TAIL = "tail.parquet"
RECALL = "recall.json"

CANDIDATE_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64()),
        pa.field("match_id", pa.int64()),
        pa.field("similarity", pa.float64()),
        pa.field("semantic_similarity", pa.float64()),
        pa.field("signature_similarity", pa.float64()),
    ]
)
"""A pair at or over the threshold, smaller id first."""

DIRECTED_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64()),
        pa.field("match_id", pa.int64()),
        pa.field("similarity", pa.float32()),
        pa.field("split", pa.int8()),
    ]
)
"""A candidate as the join found it, from image to match: similarity of the searched vectors, split of the match, and 64
more where both are of one parent."""

TRUTH_SCHEMA = pa.schema(
    [pa.field("image_id", pa.int64()), pa.field("match_id", pa.int64()), pa.field("is_found", pa.bool_())]
)
"""A true match of a sampled query, and whether the approximate search found it from this side."""

FURTHEST_SCHEMA = pa.schema([pa.field("image_id", pa.int64()), pa.field("similarity", pa.float64())])
"""An image that looks far from all others: mean similarity to its nearest as the approximate search found them."""

NEIGHBOUR_SCHEMA = pa.schema(
    [pa.field("image_id", pa.int64()), pa.field("match_id", pa.int64()), pa.field("similarity", pa.float64())]
)
"""A neighbour outside the image's own group, nearest first."""


def edge_slices(store: Store, folder: str) -> list[Slice]:
    """What holds the edges of a folder, each pair once: a part that was cut may be there whole as well."""
    parts = list_parts(store, folder, EDGES)
    return cover(parts, 0, max((part.hi for part in parts), default=0))


def read_edges(store: Store, piece: Slice, columns: Sequence[str] | None = None) -> pa.Table:
    """The edges of a slice. Raises ArtifactError."""
    return read_rows(store, piece.part.key, piece.lo - piece.part.lo, piece.hi - piece.part.lo, columns)
