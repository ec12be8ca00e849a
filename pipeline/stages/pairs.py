"""Pairs stages: the candidates found from either side, once each, and the saturated clusters against their medoid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.components import Forest, labels_for
from pipeline.kernels.space import CopySpace, compare_rows, exact_vectors, project_copy
from pipeline.layout.exact import FIELDS, Representatives
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import CANDIDATE_SCHEMA, CANDIDATES
from pipeline.layout.pairs import pairs_key
from pipeline.layout.parts import part_name
from pipeline.layout.shuffle import read_column, write_batches
from pipeline.layout.spaces import read_space
from pipeline.layout.tables import read_table, write_table
from pipeline.runner import Counters
from pipeline.stages.clusters import read_clusters

VERSION = 4
NEAREST_IN_CLUSTER = 2
THINNED_FROM = 64  # members: smaller clusters have at most k candidates each, which is little work anyway
SAMPLED_MEMBERS = 65_536
BATCH_MEMBERS = 65_536  # 60 MB of features; cluster by cluster, 385 members of 38 clusters took 2.7 s
PAIRS_READ = 65_536  # 117 MB of features; 4,096 at a time opened each part of them over and over
PAIRS_AT_ONCE = 4096
"""Pairs whose float64 vectors are held at once, 7 KB an image: 46,000 candidates of 8,400 images took 0.7 GB."""
SHUFFLED = pa.schema([pa.field("image_id", pa.int64()), pa.field("match_id", pa.int64())])

Pairs = NDArray[np.int64]
Take = Callable[[NDArray[np.int64]], Representatives]


@dataclass(frozen=True)
class ThinSpec:
    """Range `number` of the candidates, and the clusters whose smallest id is in it."""

    inputs: Inputs
    space: str
    candidates: str
    folder: str
    ranges: tuple[tuple[int, int], ...]
    number: int


@dataclass(frozen=True)
class PairsSpec:
    """Pairs whose smaller id is in range `number`, of what `thin` shuffled into a folder."""

    inputs: Inputs
    space: str
    thinned: str
    threshold: float
    folder: str
    ranges: tuple[tuple[int, int], ...]
    number: int


def thinned_key(folder: str, lo: int, hi: int) -> str:
    """Key of the pairs that the queries of a range hand on."""
    return f"{folder}/thinned-{lo:012d}-{hi:012d}.shuffle"


def thin(spec: ThinSpec) -> Counters:
    """Commits the pairs that are worth a comparison, by the range of their smaller id.

    Inside a saturated cluster only each member's pair with the medoid and with its two nearest of every split are kept:
    linear in the members, where all pairs would be quadratic; and no leak hides behind nearer images of its own split.
    """
    store = spec.inputs.root.open()
    lo, hi = spec.ranges[spec.number]
    directed = read_table(store, f"{spec.candidates}/{part_name(CANDIDATES, lo, hi)}")
    clusters = read_clusters(store, spec.candidates)
    kept = directed.filter(pa.array(_worth_comparing(directed, clusters)))
    found = np.stack([kept["image_id"].to_numpy(), kept["match_id"].to_numpy()], axis=1)
    pairs = np.unique(np.sort(np.concatenate([found, *_medoid_pairs(spec, clusters, lo, hi)]), axis=1), axis=0)
    bounds = np.searchsorted(pairs[:, 0], np.array(spec.ranges).reshape(-1, 2))
    batches = [pa.record_batch(list(pairs[start:stop].T), schema=SHUFFLED) for start, stop in bounds.tolist()]
    write_batches(store, thinned_key(spec.folder, lo, hi), batches, "zstd")
    return {"pairs": len(pairs), "thinned": directed.num_rows - kept.num_rows}


def collect_pairs(spec: PairsSpec) -> Counters:
    """Commits pairs (smaller id first, sorted) at or over the threshold, so that a task of verify reads an image once.

    Their similarities are made of the stored features, whatever precision was searched.
    """
    store = spec.inputs.root.open()
    keys = [thinned_key(spec.thinned, lo, hi) for lo, hi in spec.ranges]
    batches = [pa.table([*batch.columns], schema=SHUFFLED) for batch in read_column(store, keys, spec.number)]
    rows = pa.concat_tables(batches)
    pairs = np.unique(np.stack([rows["image_id"].to_numpy(), rows["match_id"].to_numpy()], axis=1), axis=0)
    space = read_space(store, spec.space)
    blocks = [pairs[at : at + PAIRS_READ] for at in range(0, len(pairs), PAIRS_READ)]
    tables = [table for block in blocks for table in _compared(spec.inputs, space, block, spec.threshold)]
    table = pa.concat_tables([CANDIDATE_SCHEMA.empty_table(), *tables])
    write_table(store, pairs_key(spec.folder, *spec.ranges[spec.number]), table)
    return {"pairs": table.num_rows}


def _worth_comparing(directed: pa.Table, clusters: Forest) -> NDArray[np.bool_]:
    """Which candidates (nearest first per query and split) are not left out inside a large cluster."""
    query, match = directed["image_id"].to_numpy(), directed["match_id"].to_numpy()
    root_q, root_m = labels_for(query, clusters), labels_for(match, clusters)
    roots, children = np.unique(clusters.root, return_counts=True)
    inside = (root_q == root_m) & np.isin(root_q, roots[children >= THINNED_FROM])
    split = directed["split"].to_numpy()
    at = np.flatnonzero(inside)
    is_first = np.ones(len(at), bool)
    is_first[1:] = (query[at][1:] != query[at][:-1]) | (split[at][1:] != split[at][:-1])
    starts = np.flatnonzero(is_first)
    rank = np.arange(len(at)) - np.repeat(starts, np.diff(np.append(starts, len(at))))
    worth = np.ones(len(query), bool)
    worth[at[rank >= NEAREST_IN_CLUSTER]] = False
    return worth


def _medoid_pairs(spec: ThinSpec, clusters: Forest, lo: int, hi: int) -> Iterator[Pairs]:
    """Pairs of the medoid with every other member, of the clusters whose smallest id is in [lo, hi)."""
    ours = np.flatnonzero((clusters.root >= lo) & (clusters.root < hi))
    if not len(ours):
        return
    space = read_space(spec.inputs.root.open(), spec.space)
    order = ours[np.argsort(clusters.root[ours], kind="stable")]
    roots, first = np.unique(clusters.root[order], return_index=True)
    # a root is the smallest id of its cluster, and children ascend
    members = [np.r_[root, own] for root, own in zip(roots, np.split(clusters.child[order], first[1:]), strict=True)]
    population = spec.inputs.population()
    for batch in _batches(members):
        take = population.take if len(batch) == 1 else _among(population.take(np.unique(np.concatenate(batch))))
        for ids in batch:
            others = ids[ids != (medoid := _medoid(space, ids, take))]
            yield np.stack([np.full(len(others), medoid), others], axis=1)


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


def _medoid(space: CopySpace, members: NDArray[np.int64], take: Take) -> int:
    """The member nearest to the centroid of the cluster (ties: smaller id), among a sample of large ones."""
    sample = members if len(members) <= SAMPLED_MEMBERS else members[:: len(members) // SAMPLED_MEMBERS + 1]
    rows = take(sample)
    vectors = project_copy(space, rows.embeddings, rows.signatures)
    centroid = vectors.mean(axis=0, dtype=np.float64)
    return int(sample[np.argmax(np.round(vectors @ centroid, 6))])


def _compared(inputs: Inputs, space: CopySpace, pairs: Pairs, threshold: float) -> Iterator[pa.Table]:
    """The pairs (n, 2) at or over the threshold, with their canonical similarities."""
    take = _among(inputs.population().take(np.unique(pairs)))
    for at in range(0, len(pairs), PAIRS_AT_ONCE):
        block = pairs[at : at + PAIRS_AT_ONCE]
        ids, place = np.unique(block, return_inverse=True)
        rows = take(ids)
        vectors = exact_vectors(space, rows.embeddings, rows.signatures)
        found = compare_rows(vectors, vectors, *place.reshape(block.shape).T)
        columns = [block[:, 0], block[:, 1], found.copy, found.semantic, found.signature]
        yield pa.table(columns, schema=CANDIDATE_SCHEMA).filter(pa.array(found.copy >= threshold))
