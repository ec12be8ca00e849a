"""Pairs stage: the candidates found from either side, once each, and the saturated clusters against their medoid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.components import Forest, labels_for, merge_forests
from pipeline.kernels.space import CopySpace, pair_similarities, project_copy
from pipeline.layout.exact import FIELDS, Representatives
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import CANDIDATE_SCHEMA, CANDIDATES, PAIRS, SATURATED
from pipeline.layout.parts import list_parts
from pipeline.layout.spaces import read_space
from pipeline.layout.tables import read_table, write_table
from pipeline.runner import Counters

VERSION = 3
NEAREST_IN_CLUSTER = 2
THINNED_FROM = 64  # members: smaller clusters have at most k candidates each, which is little work anyway
SAMPLED_MEMBERS = 65_536
BATCH_MEMBERS = 65_536  # 60 MB of features; cluster by cluster, 385 members of 38 clusters took 2.7 s
MEMBERS_AT_ONCE = 4096  # their float64 vectors and the medoid's, 20 KB a pair


Take = Callable[[NDArray[np.int64]], Representatives]


@dataclass(frozen=True)
class PairsSpec:
    """A folder of candidates, to be reduced to the pairs that are verified."""

    inputs: Inputs
    space: str
    candidates: str
    threshold: float
    folder: str


def collect_pairs(spec: PairsSpec) -> Counters:
    """Commits unordered pairs (smaller id first, sorted), so that a task of the verify stage reads an image once.

    Inside a saturated cluster only each member's pair with the medoid and with its two nearest of every split are kept:
    linear in the members, where all pairs would be quadratic; and no leak hides behind nearer images of its own split.
    """
    store = spec.inputs.root.open()
    found = [read_table(store, part.key) for part in list_parts(store, spec.candidates, CANDIDATES)]
    forests = [read_table(store, part.key) for part in list_parts(store, spec.candidates, SATURATED)]
    saturated = merge_forests([Forest(f["image_id"].to_numpy(), f["group_id"].to_numpy()) for f in forests])
    directed = pa.concat_tables(found) if found else CANDIDATE_SCHEMA.empty_table()
    kept = directed.filter(pa.array(_worth_verifying(spec, directed, saturated)))
    tables = [_smaller_first(kept), *_medoid_pairs(spec, saturated)]
    pairs = _unique(pa.concat_tables(tables))
    write_table(store, f"{spec.folder}/{PAIRS}", pairs)
    return {"pairs": pairs.num_rows, "saturated": len(saturated.child)}


def _worth_verifying(spec: PairsSpec, directed: pa.Table, saturated: Forest) -> NDArray[np.bool_]:
    query, match = directed["image_id"].to_numpy(), directed["match_id"].to_numpy()
    if not len(saturated.child):
        return np.ones(len(query), bool)
    root_q, root_m = labels_for(query, saturated), labels_for(match, saturated)
    roots, children = np.unique(saturated.root, return_counts=True)
    inside = (root_q == root_m) & np.isin(root_q, roots[children >= THINNED_FROM])
    split = spec.inputs.codes_for(match).split
    order = np.lexsort((match, -directed["similarity"].to_numpy(), split, query, ~inside))
    lists = np.stack([query, split, inside], axis=1)[order]
    starts = np.flatnonzero(np.r_[True, (lists[1:] != lists[:-1]).any(axis=1)])
    rank = np.empty(len(query), np.int64)
    rank[order] = np.arange(len(query)) - np.repeat(starts, np.diff(np.r_[starts, len(query)]))
    return np.asarray(~inside | (rank < NEAREST_IN_CLUSTER), bool)


def _medoid_pairs(spec: PairsSpec, saturated: Forest) -> list[pa.Table]:
    if not len(saturated.child):
        return []
    space = read_space(spec.inputs.root.open(), spec.space)
    order = np.argsort(saturated.root, kind="stable")
    roots, first = np.unique(saturated.root[order], return_index=True)
    children = np.split(saturated.child[order], first[1:])
    # a root is the smallest id of its cluster, and children ascend
    clusters = [np.r_[root, own] for root, own in zip(roots, children, strict=True)]
    population, tables = spec.inputs.population(), []
    for batch in _batches(clusters):
        take = population.take if len(batch) == 1 else _among(population.take(np.unique(np.concatenate(batch))))
        tables += [_against_medoid(spec, space, members, take) for members in batch]
    return tables


def _batches(clusters: list[NDArray[np.int64]]) -> Iterator[list[NDArray[np.int64]]]:
    """The clusters in their order, so many together that each part of the features is read once for all of them."""
    batch: list[NDArray[np.int64]] = []
    size = 0
    for members in clusters:
        if batch and size + len(members) > BATCH_MEMBERS:
            yield batch
            batch, size = [], 0
        batch.append(members)
        size += len(members)
    if batch:
        yield batch


def _among(rows: Representatives) -> Take:
    def take(ids: NDArray[np.int64]) -> Representatives:
        at = np.searchsorted(rows.ids, ids)
        return Representatives(*(getattr(rows, name)[at] for name in FIELDS))

    return take


def _against_medoid(spec: PairsSpec, space: CopySpace, members: NDArray[np.int64], take: Take) -> pa.Table:
    """The member nearest to the centroid of the cluster (ties: smaller id), and its pair with every other."""
    sample = members if len(members) <= SAMPLED_MEMBERS else members[:: len(members) // SAMPLED_MEMBERS + 1]
    rows = take(sample)
    vectors = project_copy(space, rows.embeddings, rows.signatures)
    centroid = vectors.mean(axis=0, dtype=np.float64)
    medoid = int(np.argmax(np.round(vectors @ centroid, 6)))
    tables = []
    for at in range(0, len(members), MEMBERS_AT_ONCE):
        block = take(members[at : at + MEMBERS_AT_ONCE])
        count = len(block.ids)
        embeddings = np.repeat(rows.embeddings[medoid : medoid + 1], count, axis=0)
        signatures = np.repeat(rows.signatures[medoid : medoid + 1], count, axis=0)
        found = pair_similarities(space, embeddings, signatures, block.embeddings, block.signatures)
        ids = np.full(count, sample[medoid])
        columns = [ids, block.ids, found.copy, found.semantic, found.signature]
        is_candidate = (ids != block.ids) & (found.copy >= spec.threshold)
        tables.append(pa.table(columns, schema=CANDIDATE_SCHEMA).filter(pa.array(is_candidate)))
    return _smaller_first(pa.concat_tables(tables))


def _smaller_first(table: pa.Table) -> pa.Table:
    a, b = table["image_id"].to_numpy(), table["match_id"].to_numpy()
    columns = [np.minimum(a, b), np.maximum(a, b), *table.columns[2:]]
    return pa.table(columns, schema=CANDIDATE_SCHEMA)


def _unique(table: pa.Table) -> pa.Table:
    a, b = table["image_id"].to_numpy(), table["match_id"].to_numpy()
    order = np.lexsort((b, a))
    a, b = a[order], b[order]
    first = np.r_[True, (a[1:] != a[:-1]) | (b[1:] != b[:-1])] if len(a) else np.empty(0, bool)
    return table.take(pa.array(order[first]))
