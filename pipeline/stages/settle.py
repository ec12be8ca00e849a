"""Pairs that an attempt judged without their pixels: which of a part they are, and parts with what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.hits import rows_of_pairs
from pipeline.kernels.verify_params import VerifyParams
from pipeline.layout.edges import commit_edges
from pipeline.layout.neighbours import EDGES, read_edges
from pipeline.layout.parts import Part, Slice, part_name
from pipeline.layout.root import Root
from pipeline.layout.tables import read_table
from pipeline.runner import Counters
from pipeline.stages.verify import unsettled
from pipeline.storage import Store

PAIR = ("image_id", "match_id")


@dataclass(frozen=True)
class SettleSpec:
    """A slice of verified pairs, the later attempts at them, and the folder of both together."""

    root: Root
    piece: Slice
    again: tuple[Part, ...]
    folder: str


def settle(spec: SettleSpec) -> Counters:
    """Commits the pairs of a slice, those that a later attempt compared as it found them."""
    store = spec.root.open()
    edges, settled = _with_later_attempts(store, spec.piece, spec.again)
    commit_edges(store, f"{spec.folder}/{part_name(EDGES, spec.piece.lo, spec.piece.hi)}", edges)
    return {"pairs": edges.num_rows, "settled": settled}


def unsettled_rows(store: Store, piece: Slice, again: Sequence[Part], params: VerifyParams) -> NDArray[np.int64]:
    """Rows of the collected pairs, of a slice, whose pixels no attempt has compared though it should have."""
    edges, _ = _with_later_attempts(store, piece, again)
    return piece.lo + np.flatnonzero(unsettled(edges, params).to_numpy())


def _with_later_attempts(store: Store, piece: Slice, again: Sequence[Part]) -> tuple[pa.Table, int]:
    edges = read_edges(store, piece).replace_schema_metadata(None)
    settled = 0
    for part in again:
        if part.lo < piece.hi and piece.lo < part.hi:
            later = read_table(store, part.key)
            at = rows_of_pairs(*(table[name].to_numpy() for table in (edges, later) for name in PAIR))
            source = np.where(at >= 0, edges.num_rows + at, np.arange(edges.num_rows))
            edges = pa.concat_tables([edges, later]).take(pa.array(source)).combine_chunks()
            settled += int((at >= 0).sum())
    return edges, settled
