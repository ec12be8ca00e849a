"""Join stage: the queries that visit a partition against the vectors that it owns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.kernels.components import Forest, empty_forest
from pipeline.kernels.database import DECIMALS, Database, unit_scale, unit_vectors
from pipeline.kernels.hit_batches import hits_by_range
from pipeline.kernels.hits import Hits, JoinParams, concatenate_hits, empty_hits, saturated_queries
from pipeline.kernels.hnsw import Graphs, build_graphs, join_graphs
from pipeline.kernels.join import join_lists, search_everything
from pipeline.kernels.metrics import nearest_by_metric, similarity_of_distance
from pipeline.kernels.saturated import saturated_forest
from pipeline.kernels.visits import Routed, concatenate_routed
from pipeline.layout.joined import Joined
from pipeline.layout.root import one_kept
from pipeline.layout.shuffle import write_batches
from pipeline.layout.tables import write_table
from pipeline.layout.visits import Visits, partition_database
from pipeline.runner import Counters

VERSION = 3


@dataclass(frozen=True)
class JoinSpec:
    """The queries of ranges [first, last) of the visits at one partition.

    params.threshold: of candidates; None keeps every list whole and joins no saturated queries. is_measured: the
    sampled queries are searched in all of the partition as well. links: of a graph that is searched instead of lists.
    metric: the distance that ranks all rows of the one partition there is, as 1 / (1 + distance); "" = cosine.
    """

    visits: Visits
    joined: Joined
    params: JoinParams
    partition: int
    first: int
    last: int
    is_measured: bool
    links: int = 0
    metric: str = ""


def join(spec: JoinSpec) -> Counters:
    """Commits the hits of each range of queries, then those of the sampled queries found in all of the partition.

    And first the forest of queries whose list is full of candidates in this partition alone.
    """
    store = spec.visits.root.open()
    database = partition_database(spec.visits, spec.partition)
    found, full = _search(spec, database)
    forest = _saturated(spec, database, full)
    where = (spec.partition, spec.first, spec.last)
    write_table(store, spec.joined.saturated_key(*where), forest_table(forest))
    exact = _measured(spec, database)
    batches = [*hits_by_range(found, spec.visits.ranges), *hits_by_range(exact, spec.visits.ranges)]
    write_batches(store, spec.joined.hits_key(*where), batches, "zstd")
    return {"hits": len(found), "saturated": sum(map(len, full))}


def halves(spec: JoinSpec) -> list[JoinSpec]:
    """The spec cut in two; itself where it holds one range. The first half has the sampled queries."""
    middle = (spec.first + spec.last) // 2
    if middle == spec.first:
        return [spec]
    return [replace(spec, last=middle), replace(spec, first=middle, is_measured=False)]


def forest_table(forest: Forest) -> pa.Table:
    """A forest as a table."""
    return pa.table({"image_id": forest.child, "group_id": forest.root})


def _search(spec: JoinSpec, database: Database) -> tuple[Hits, list[Routed]]:
    """All hits by ascending query, and the queries whose list is full of candidates."""
    found: list[Hits] = []
    full: list[Routed] = []
    for queries in spec.visits.queries(spec.partition, spec.first, spec.last):
        if spec.metric:
            hits = _by_metric(database, queries, spec)
        elif spec.links:
            graphs = partition_graphs(spec.visits, spec.partition, spec.params, spec.links)
            hits = join_graphs(graphs, queries.ids, queries.vectors, queries.split_mask)
        else:
            hits = join_lists(database, queries.ids, queries.vectors, queries.split_mask, queries.probes, spec.params)
        found.append(hits)
        if spec.params.threshold is not None:
            ids = saturated_queries(hits, spec.params)
            full.append(queries.take(np.flatnonzero(np.isin(queries.ids, ids))))
    return concatenate_hits(found), full


@one_kept
def partition_graphs(visits: Visits, partition: int, params: JoinParams, links: int) -> Graphs:
    """The graphs of a partition, kept in this process for the next slice of its queries."""
    return build_graphs(partition_database(visits, partition), params, links)


def _by_metric(database: Database, queries: Routed, spec: JoinSpec) -> Hits:
    """The nearest of everything by another distance than the cosine, of unit vectors."""
    unit = unit_vectors(queries.vectors, unit_scale(queries.vectors, "join queries"))
    rows = database.unit(slice(None))
    found, distance = nearest_by_metric(unit, queries.ids, rows, database.ids, spec.metric, spec.params.k)
    count, width = found.shape
    is_found = found.ravel() >= 0
    similarity = np.round(similarity_of_distance(distance), DECIMALS).astype(np.float32)
    query = np.repeat(queries.ids, width)
    one = np.zeros(count * width, np.int8)
    hits = Hits(query, found.ravel(), similarity.ravel(), one, one == 0).take(is_found)
    return hits.take(np.lexsort((hits.match_id, -hits.similarity, hits.query_id)))


def _saturated(spec: JoinSpec, database: Database, full: list[Routed]) -> Forest:
    if spec.params.threshold is None or not full:
        return empty_forest()
    queries = concatenate_routed(full)
    return saturated_forest(database, queries.ids, queries.vectors, queries.probes, spec.params.threshold)


def _measured(spec: JoinSpec, database: Database) -> Hits:
    if not spec.is_measured:
        return empty_hits()
    sampled = spec.visits.sampled()
    return search_everything(database, sampled.ids, sampled.vectors, sampled.split_mask, spec.params)
