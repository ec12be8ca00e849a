"""Score stage: what the semantic neighbours say of each representative, and the sums that the tables need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.kernels.components import labels_for
from pipeline.kernels.histogram import histogram, merge_histograms
from pipeline.kernels.labels import (
    LabelRule,
    LabelShares,
    Votes,
    judge,
    label_confidence,
    label_shares,
    merge_confidence,
    vote,
)
from pipeline.kernels.neighbour_lists import Neighbours
from pipeline.kernels.outliers import (
    SCORE_BINS,
    Scores,
    count_by_label,
    merge_label_counts,
    outlier_scores,
)
from pipeline.kernels.quality_checks import AREA_BINS, area_histogram
from pipeline.kernels.sorted_ids import distinct, is_among
from pipeline.layout.exact import ExactGroups
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import NEIGHBOUR_SCHEMA, NEIGHBOURS, TAIL
from pipeline.layout.parts import Part, list_parts, part_name
from pipeline.layout.root import kept
from pipeline.layout.scores import (
    SCHEMA,
    SCORES,
    SUMMED,
    TOTALS,
    Totals,
    totals_from_bytes,
    totals_to_bytes,
    write_heads,
)
from pipeline.layout.tables import read_object, read_table, write_table
from pipeline.runner import Counters
from pipeline.storage import Store

VERSION = 2


@dataclass(frozen=True)
class ScoreSpec:
    """Representatives of offsets [lo, hi). tail "" = every neighbour list is exact.

    neighbours_meant: the outlier score is 1 minus the mean similarity to so many neighbours.
    """

    inputs: Inputs
    groups: str
    neighbours: str
    tail: str
    neighbours_meant: int
    labels: LabelRule
    folder: str
    lo: int
    hi: int


@dataclass(frozen=True)
class SumSpec:
    """A folder of scored ranges, to be added up."""

    inputs: Inputs
    folder: str


def score(spec: ScoreSpec) -> Counters:
    """Commits the scores and the sums of a range."""
    store = spec.inputs.root.open()
    population = spec.inputs.population()
    ids = population.ids(spec.lo, spec.hi)
    table, exact_ids = _neighbour_rows(spec)
    found = _neighbours(spec, ids, table)
    shares = _label_shares(spec.inputs, distinct(found.ids[found.ids >= 0]))
    scores, votes = outlier_scores(found, spec.neighbours_meant), vote(found, shares, spec.labels)
    is_exact = np.isin(ids, exact_ids) if spec.tail else np.ones(len(ids), bool)
    totals = _totals(spec, ids, scores, votes)
    store.put(totals_key(spec.folder, spec.lo, spec.hi), totals_to_bytes(totals))
    write_table(store, f"{spec.folder}/{part_name(SCORES, spec.lo, spec.hi)}", _table(ids, scores, votes, is_exact))
    return {"images": len(ids)}


def totals_key(folder: str, lo: int, hi: int) -> str:
    """Key of the sums of a range."""
    return f"{folder}/{TOTALS}-{lo:012d}-{hi:012d}.npz"


def sum_scores(spec: SumSpec) -> Counters:
    """Commits the scores of who stands for copies, and then the sums over all ranges."""
    store = spec.inputs.root.open()
    write_heads(store, spec.folder, spec.inputs.exact_groups().heads)
    keys = [info.key for info in store.list(f"{spec.folder}/{TOTALS}-")]
    parts = [read_object(store, key, totals_from_bytes) for key in keys]
    labels = len(spec.inputs.vocabulary().labels)
    totals = Totals(
        merge_histograms((part.outliers for part in parts), SCORE_BINS),
        merge_histograms((part.areas for part in parts), AREA_BINS),
        merge_label_counts(part.by_label for part in parts),
        merge_confidence((part.confidence for part in parts), labels),
    )
    store.put(f"{spec.folder}/{SUMMED}", totals_to_bytes(totals))
    return {"scored": int(totals.outliers.sum())}


def _neighbour_rows(spec: ScoreSpec) -> tuple[pa.Table, NDArray[np.int64]]:
    """Neighbour rows of the range; those of the tail are replaced by what was searched until exact."""
    store = spec.inputs.root.open()
    key = f"{spec.neighbours}/{part_name(NEIGHBOURS, spec.lo, spec.hi)}"
    keys = [key] if store.exists(key) else [part.key for part in _parts_of(store, spec)]
    rows = pa.concat_tables([read_table(store, key) for key in keys])
    ids = rows["image_id"].to_numpy()
    if len(ids) and not (spec.lo <= ids.min() and ids.max() < spec.hi):
        rows = rows.filter(pa.array((ids >= spec.lo) & (ids < spec.hi)))
        ids = rows["image_id"].to_numpy()
    if not spec.tail:
        return rows, np.empty(0, np.int64)
    tail = kept(store, f"{spec.tail}/{TAIL}", lambda: _sorted_tail(store, spec.tail))
    first, last = np.searchsorted(tail["image_id"].to_numpy(), [spec.lo, spec.hi])
    ours = tail.slice(first, last - first)
    searched = np.unique(ours["image_id"].to_numpy())
    others = rows.filter(pa.array(~np.isin(ids, searched)))
    return pa.concat_tables([others, ours.cast(others.schema)]), searched


def _sorted_tail(store: Store, folder: str) -> pa.Table:
    """The neighbours of the tail by image, nearest first as they were."""
    rows = read_table(store, f"{folder}/{TAIL}").select(NEIGHBOUR_SCHEMA.names)
    return rows.take(pa.array(np.argsort(rows["image_id"].to_numpy(), kind="stable")))


def _parts_of(store: Store, spec: ScoreSpec) -> list[Part]:
    return [part for part in list_parts(store, spec.neighbours, NEIGHBOURS) if part.lo < spec.hi and spec.lo < part.hi]


def _neighbours(spec: ScoreSpec, ids: NDArray[np.int64], table: pa.Table) -> Neighbours:
    forest = spec.inputs.forest(spec.groups)
    query, match = table["image_id"].to_numpy(), table["match_id"].to_numpy()
    row = np.searchsorted(ids, query)
    order = np.argsort(row, kind="stable")
    row, match, similarity = row[order], match[order], table["similarity"].to_numpy()[order]
    start = np.searchsorted(row, np.arange(len(ids)))
    place = np.arange(len(row)) - start[row] if len(row) else np.empty(0, np.int64)
    width = int(place.max(initial=-1)) + 1
    matches, similarities = np.full((len(ids), width), -1, np.int64), np.zeros((len(ids), width))
    matches[row, place], similarities[row, place] = match, similarity
    groups = labels_for(matches.ravel(), forest).reshape(matches.shape)
    return Neighbours(labels_for(ids, forest), matches, groups, similarities)


def _label_shares(inputs: Inputs, representatives: NDArray[np.int64]) -> LabelShares:
    """The labels of the exact groups of some representatives."""
    owner, label = members_of(inputs, inputs.exact_groups(), representatives)
    return label_shares(owner, label)


def members_of(
    inputs: Inputs, exact: ExactGroups, representatives: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(representative, label code) of every member that the representatives (ascending) stand for."""
    rows = exact.rows_of(representatives)
    grouped = exact.representative_id[rows]
    alone = representatives[~is_among(representatives, exact.heads)]
    owner = np.concatenate([grouped, alone])
    label = np.concatenate([exact.label[rows], inputs.codes_for(alone).label])
    return owner, label


def _totals(spec: ScoreSpec, ids: NDArray[np.int64], scores: Scores, votes: Votes) -> Totals:
    scored = ~np.isnan(scores.score)
    codes = spec.inputs.codes_for(ids)
    owner, label = members_of(spec.inputs, spec.inputs.exact_groups(), ids)
    labels = len(spec.inputs.vocabulary().labels)
    judged = distinct(np.searchsorted(ids, owner[label >= 0]) * max(labels, 1) + label[label >= 0])
    query, given = judged // max(labels, 1), (judged % max(labels, 1)).astype(np.int32)
    return Totals(
        histogram(scores.score[scored], SCORE_BINS),
        _areas(spec),
        count_by_label(codes.label, scores.score),
        label_confidence(judge(votes, query, given), given, labels),
    )


def _areas(spec: ScoreSpec) -> NDArray[np.int64]:
    sizes = spec.inputs.sizes(spec.lo, spec.hi)
    ok = sizes.filter(pc.and_(sizes["is_usable"], pc.is_valid(sizes["width"])))
    counts: NDArray[np.int64] = area_histogram(ok["width"].to_numpy(), ok["height"].to_numpy())
    return counts


def _table(ids: NDArray[np.int64], scores: Scores, votes: Votes, is_exact: NDArray[np.bool_]) -> pa.Table:
    offsets = pa.array(votes.start.astype(np.int32))
    columns = [
        pa.array(ids),
        pa.array(scores.score),
        pa.array(scores.nearest_id),
        pa.array(scores.nearest_similarity),
        pa.array(is_exact),
        pa.array(votes.count.astype(np.int16)),
        pa.ListArray.from_arrays(offsets, pa.array(votes.label.astype(np.int32))),
        pa.ListArray.from_arrays(offsets, pa.array(votes.share)),
    ]
    return pa.table(columns, schema=SCHEMA)
