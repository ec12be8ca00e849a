"""Hits as record batches: what the join of a partition has for the merge of a range of queries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from pipeline.kernels.hits import Hits, concatenate_hits

SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.int64()),
        pa.field("match_id", pa.int64()),
        pa.field("similarity", pa.float32()),
        pa.field("split", pa.int8()),
        pa.field("is_own", pa.bool_()),
    ]
)


def hits_by_range(hits: Hits, ranges: Sequence[tuple[int, int]]) -> list[pa.RecordBatch]:
    """One batch per range of query ids. hits by ascending query_id; ranges ascending and apart."""
    bounds = np.searchsorted(hits.query_id, np.array(ranges, dtype=np.int64).reshape(-1, 2))
    batch = pa.record_batch([getattr(hits, name) for name in SCHEMA.names], schema=SCHEMA)
    return [batch.slice(first, last - first) for first, last in bounds.tolist()]


def hits_of(batches: Iterable[pa.RecordBatch]) -> Hits:
    """The hits of some batches, one after the other."""
    columns = ([batch.column(name).to_numpy(zero_copy_only=False) for name in SCHEMA.names] for batch in batches)
    return concatenate_hits([Hits(*column) for column in columns])
