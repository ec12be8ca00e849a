"""Neighbour artifacts: candidates and saturated forests of the copy space, neighbour lists of the semantic space."""

from __future__ import annotations

import pyarrow as pa

CANDIDATES, SATURATED, NEIGHBOURS = "candidates", "saturated", "neighbours"
PAIRS = "pairs.parquet"
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
"""A pair at or over the threshold: directed as it was found in the join, smaller id first once collected."""

NEIGHBOUR_SCHEMA = pa.schema(
    [pa.field("image_id", pa.int64()), pa.field("match_id", pa.int64()), pa.field("similarity", pa.float64())]
)
"""A neighbour outside the image's own group, nearest first."""
