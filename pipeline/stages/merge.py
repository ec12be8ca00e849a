"""Merge stages: what the partitions found for a range of queries, as one list per query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.components import Forest, labels_for, star_forest
from pipeline.kernels.hits import Hits, JoinParams, merge_hits, rows_of_pairs, saturated_queries, stored_threshold
from pipeline.kernels.outliers import nearest_means
from pipeline.kernels.siblings import SIBLING_SPLIT
from pipeline.layout.groups import read_forest
from pipeline.layout.joined import Joined
from pipeline.layout.neighbours import (
    CANDIDATES,
    DIRECTED_SCHEMA,
    FURTHEST,
    FURTHEST_SCHEMA,
    NEIGHBOUR_SCHEMA,
    NEIGHBOURS,
    SATURATED,
    TRUTH,
    TRUTH_SCHEMA,
)
from pipeline.layout.parts import part_name
from pipeline.layout.tables import write_table
from pipeline.runner import Counters
from pipeline.stages.join import forest_table
from pipeline.storage import Store

VERSION = 1
TAIL_MOST = 10_000
"""Images that are searched again exactly, at most; so many of a range may be among them."""


@dataclass(frozen=True)
class CopyMergeSpec:
    """Range `number` of the joined queries; params with the threshold of candidates."""

    joined: Joined
    params: JoinParams
    folder: str
    number: int


@dataclass(frozen=True)
class SemanticMergeSpec:
    """Range `number` of the joined queries: k neighbours outside the own group, neighbours_meant of them scored."""

    joined: Joined
    groups: str
    k: int
    neighbours_meant: int
    folder: str
    number: int


def merge_copy(spec: CopyMergeSpec) -> Counters:
    """Commits the candidates of a range as they were found (directed), with the saturated queries' own, and the truth,
    of which siblings are no part: what is asked is whether copies are found.

    A query that is saturated over all partitions and in none of them alone has all of its candidates among the hits:
    they join its forest here, the other partitions' searches joined the rest.
    """
    store = spec.joined.root.open()
    lo, hi = spec.joined.ranges[spec.number]
    parts = spec.joined.found(spec.number)
    merged = merge_hits([parts], spec.params)
    saturated = saturated_queries(merged, spec.params)
    threshold = stored_threshold(spec.params.threshold or 0.0)
    near = parts.take(np.isin(parts.query_id, saturated) & (parts.similarity >= threshold))
    stars = star_forest(near.query_id, near.match_id)
    truth = spec.joined.true(spec.number, spec.params)
    truth = truth.take((truth.similarity >= threshold) & (truth.split < SIBLING_SPLIT))
    write_table(store, f"{spec.folder}/{part_name(SATURATED, lo, hi)}", forest_table(stars))
    _commit_truth(store, f"{spec.folder}/{part_name(TRUTH, lo, hi)}", truth, merged)
    columns = [merged.query_id, merged.match_id, merged.similarity, merged.split]
    table = pa.table(columns, schema=DIRECTED_SCHEMA)
    write_table(store, f"{spec.folder}/{part_name(CANDIDATES, lo, hi)}", table)
    return {"candidates": table.num_rows, "saturated": len(saturated)}


def merge_semantic(spec: SemanticMergeSpec) -> Counters:
    """Commits the neighbour lists of a range, those of its images that look furthest, and the truth."""
    store = spec.joined.root.open()
    lo, hi = spec.joined.ranges[spec.number]
    forest = read_forest(store, spec.groups)
    params = JoinParams(k=spec.k + 1, k_cross=0)
    merged = outside_group(spec.joined.merged(spec.number, params), forest, spec.k)
    truth = outside_group(spec.joined.true(spec.number, params), forest, spec.k)
    _commit_truth(store, f"{spec.folder}/{part_name(TRUTH, lo, hi)}", truth, merged)
    far = _furthest(merged, spec.neighbours_meant)
    write_table(store, f"{spec.folder}/{part_name(FURTHEST, lo, hi)}", far)
    table = neighbour_table(merged)
    write_table(store, f"{spec.folder}/{part_name(NEIGHBOURS, lo, hi)}", table)
    return {"neighbours": table.num_rows}


def outside_group(hits: Hits, forest: Forest, k: int) -> Hits:
    """The k nearest hits of each query outside its own group; hits as `merge_hits` returns them, of one split."""
    kept = hits.take(labels_for(hits.query_id, forest) != labels_for(hits.match_id, forest))
    is_first = np.ones(len(kept), bool)
    is_first[1:] = kept.query_id[1:] != kept.query_id[:-1]
    starts = np.flatnonzero(is_first)
    rank = np.arange(len(kept)) - np.repeat(starts, np.diff(np.append(starts, len(kept))))
    return kept.take(rank < k)


def neighbour_table(hits: Hits) -> pa.Table:
    """Hits as the neighbour artifact holds them."""
    similarity = np.round(hits.similarity.astype(np.float64), 6)
    return pa.table([hits.query_id, hits.match_id, similarity], schema=NEIGHBOUR_SCHEMA)


def _commit_truth(store: Store, key: str, truth: Hits, found: Hits) -> None:
    """True matches of the sampled queries, each with whether the search from this side found it."""
    true = _pairs(truth)
    have = _pairs(found.take(np.isin(found.query_id, true[:, 0])))
    is_found = rows_of_pairs(true[:, 0], true[:, 1], have[:, 0], have[:, 1]) >= 0
    write_table(store, key, pa.table([true[:, 0], true[:, 1], is_found], schema=TRUTH_SCHEMA))


def _pairs(hits: Hits) -> NDArray[np.int64]:
    """Query and match of the hits, each pair once whatever splits it was found in: int64 (n, 2), sorted."""
    return np.asarray(np.unique(np.stack([hits.query_id, hits.match_id], axis=1), axis=0), dtype=np.int64)


def _furthest(hits: Hits, neighbours: int) -> pa.Table:
    """The images with the lowest mean similarity to their nearest `neighbours`: at most 10,000, by id."""
    ids, mean = nearest_means(hits.query_id, hits.similarity, neighbours)
    chosen = np.sort(np.lexsort((ids, mean))[:TAIL_MOST])
    return pa.table([ids[chosen], mean[chosen]], schema=FURTHEST_SCHEMA)
