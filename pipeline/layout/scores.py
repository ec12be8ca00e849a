"""Scores at rest: per representative its outlier score and its vote, and what they add up to over the data set."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.labels import Confidence, Votes
from pipeline.kernels.outliers import LabelCounts
from pipeline.layout.lookups import open_lookup, write_lookup
from pipeline.layout.parts import Part, list_parts
from pipeline.layout.tables import read_table
from pipeline.storage import Store

SCORES, TOTALS = "scores", "totals"
SUMMED = "totals.npz"
HEADS = "heads.arrow"
"""Scores of the representatives that stand for more than themselves: their copies are in every range."""
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64()),
        pa.field("score", pa.float64()),
        pa.field("nearest_id", pa.int64()),
        pa.field("nearest_similarity", pa.float64()),
        pa.field("is_exact", pa.bool_()),
        pa.field("vote_count", pa.int16()),
        pa.field("vote_label", pa.list_(pa.int32())),
        pa.field("vote_share", pa.list_(pa.float64())),
    ]
)
"""A representative: NaN scores and nearest_id -1 where it has no neighbour."""


@dataclass(frozen=True)
class Totals:
    """Sums over representatives: they add up in any order. outliers, areas: histograms; the others per label."""

    outliers: NDArray[np.int64]
    areas: NDArray[np.int64]
    by_label: LabelCounts
    confidence: Confidence


def totals_to_bytes(totals: Totals) -> bytes:
    """The totals as npz without pickle; of histograms, the bins in use: those of 8,192 images are mostly empty."""
    sink = io.BytesIO()
    arrays: dict[str, Any] = {
        "label": totals.by_label.label.astype(np.int32),  # one each per image where labels have a thousand
        "bin": totals.by_label.bin.astype(np.int32),
        "count": totals.by_label.count.astype(np.int32),
        "micros": totals.confidence.micros,
        "judged": totals.confidence.count,
    }
    for name, counts in (("outliers", totals.outliers), ("areas", totals.areas)):
        used = np.flatnonzero(counts)
        arrays |= {f"{name}_bins": np.array(len(counts)), f"{name}_bin": used, f"{name}_count": counts[used]}
    np.savez(sink, **arrays)
    return sink.getvalue()


def totals_from_bytes(data: bytes) -> Totals:
    """The totals of `totals_to_bytes`."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Totals(
            _histogram(arrays, "outliers"),
            _histogram(arrays, "areas"),
            LabelCounts(*(arrays[name].astype(np.int64) for name in ("label", "bin", "count"))),
            Confidence(arrays["micros"], arrays["judged"]),
        )


def _histogram(arrays: Any, name: str) -> NDArray[np.int64]:
    counts = np.zeros(int(arrays[f"{name}_bins"]), np.int64)
    counts[arrays[f"{name}_bin"]] = arrays[f"{name}_count"]
    return counts


@dataclass(frozen=True)
class Scored:
    """Scores of some representatives, row-aligned with the ids asked for."""

    rows: pa.Table

    def column(self, name: str) -> NDArray[Any]:
        """A column as numpy; nulls of numbers become NaN."""
        values: NDArray[Any] = self.rows[name].to_numpy()
        return values

    def votes(self) -> Votes:
        """The votes as the kernel takes them."""
        labels = self.rows["vote_label"].combine_chunks()
        size = labels.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        start = np.concatenate([np.zeros(1, np.int64), np.cumsum(size)])
        flat_label = labels.flatten().to_numpy()
        flat_share = self.rows["vote_share"].combine_chunks().flatten().to_numpy()
        return Votes(start, flat_label, flat_share, self.column("vote_count"))


def write_heads(store: Store, folder: str, heads: NDArray[np.int64]) -> None:
    """Commits the scores of some representatives (ascending) where they are looked up; one pass over all scores."""
    pieces = [SCHEMA.empty_table()]
    for part in list_parts(store, folder, SCORES):
        wanted = heads[slice(*np.searchsorted(heads, [part.lo, part.hi]))]
        if len(wanted):
            pieces.append(_rows_of(store, part, wanted))
    write_lookup(store, f"{folder}/{HEADS}", pa.concat_tables(pieces))


def read_scores(store: Store, folder: str, ids: NDArray[np.int64]) -> Scored:
    """Scores of representatives (ascending, unique). Those that stand for themselves alone should be of one range: the
    whole range is read.
    """
    heads = open_lookup(store, f"{folder}/{HEADS}")
    known = heads["image_id"].to_numpy()
    at = np.searchsorted(known, ids)
    is_head = np.zeros(len(ids), bool)
    is_head[at < len(known)] = known[at[at < len(known)]] == ids[at < len(known)]
    own = ids[~is_head]
    pieces = [pa.Table.from_batches([heads.take(pa.array(at[is_head]))])]
    for part in list_parts(store, folder, SCORES) if len(own) else []:
        wanted = own[slice(*np.searchsorted(own, [part.lo, part.hi]))]
        if len(wanted):
            pieces.append(_rows_of(store, part, wanted))
    order = np.argsort(np.r_[ids[is_head], own])
    return Scored(pa.concat_tables(pieces).combine_chunks().take(pa.array(order)))


def _rows_of(store: Store, part: Part, wanted: NDArray[np.int64]) -> pa.Table:
    table = read_table(store, part.key)
    return table.take(pa.array(np.searchsorted(table["image_id"].to_numpy(), wanted)))
