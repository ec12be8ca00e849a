"""Join stage: the queries that visit a partition against the vectors that it owns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.components import Forest, empty_forest
from pipeline.kernels.database import Database
from pipeline.kernels.hit_batches import hits_by_range
from pipeline.kernels.hits import Hits, JoinParams, concatenate_hits, empty_hits, floors_of, saturated_queries
from pipeline.kernels.hnsw import Graphs, build_graphs, join_graphs
from pipeline.kernels.join import Queries, checked_queries, join_lists, join_queries, search_everything
from pipeline.kernels.metric_hits import metric_hits
from pipeline.kernels.saturated import saturated_forest
from pipeline.kernels.visits import Routed, concatenate_routed
from pipeline.layout.joined import Joined
from pipeline.layout.root import one_kept
from pipeline.layout.shuffle import write_batches
from pipeline.layout.tables import write_table
from pipeline.layout.visits import Visits, partition_database
from pipeline.runner import Counters

VERSION = 3
FLOORS = pa.schema([pa.field("query_id", pa.int64()), pa.field("floor", pa.float32())])


@dataclass(frozen=True)
class JoinSpec:
    """The queries of ranges [first, last) of one column of the visits.

    params.threshold: of candidates; None keeps every list whole and joins no saturated queries. is_measured: the
    sampled queries are searched in all of the partition as well. links: of a graph that is searched instead of lists.
    metric: the distance that ranks all rows of the one partition there is, as 1 / (1 + distance); "" = cosine.
    """

    visits: Visits
    joined: Joined
    params: JoinParams
    column: int
    first: int
    last: int
    is_measured: bool
    links: int = 0
    metric: str = ""

    @property
    def partition(self) -> int:
        """Of the column."""
        return self.column % self.visits.partitions

    @property
    def is_second(self) -> bool:
        """Whether these queries were searched in another partition before."""
        return self.column >= self.visits.partitions


def join(spec: JoinSpec) -> Counters:
    """Commits the hits of each range of queries, then those of the sampled queries found in all of the partition.

    And first the forest of queries whose list is full of candidates in this partition alone, or, in the first of two
    rounds, the similarity that the second must reach.
    """
    store = spec.visits.root.open()
    database = partition_database(spec.visits, spec.partition)
    where = (spec.column, spec.first, spec.last)
    found, full = _search(spec, database)
    if spec.joined.has_floors(spec.column):
        write_batches(store, spec.joined.floors_key(*where), _floors(spec, found), "zstd")
    else:
        forest = _saturated(spec, database, full)
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
    floors = spec.joined.floors(spec.first, spec.last) if spec.is_second else None
    for queries in spec.visits.queries(spec.column, spec.first, spec.last):
        if spec.metric:
            hits = metric_hits(database, queries, spec.metric, spec.params.k)
        elif spec.links:
            graphs = partition_graphs(spec.visits, spec.partition, spec.params, spec.links)
            hits = join_graphs(graphs, queries.ids, queries.vectors, queries.split_mask, queries.parent)
        elif floors is not None:
            hits = _over_floors(database, queries, spec.params, floors)
        elif queries.parent is not None:
            hits = join_queries(database, _asked(database, queries), spec.params)
        else:
            hits = join_lists(database, queries.ids, queries.vectors, queries.split_mask, queries.probes, spec.params)
        found.append(hits)
        if spec.params.threshold is not None:
            ids = saturated_queries(hits, spec.params)
            full.append(queries.take(np.flatnonzero(np.isin(queries.ids, ids))))
    return concatenate_hits(found), full


def _over_floors(
    database: Database, queries: Routed, params: JoinParams, floors: tuple[NDArray[np.int64], NDArray[np.float32]]
) -> Hits:
    """Hits of queries that were searched elsewhere; floors: ids, ascending, and the similarity to reach."""
    asked = _asked(database, queries)
    ids, floor = floors
    at = np.searchsorted(ids, queries.ids)
    is_known = at < len(ids)
    is_known[is_known] = ids[at[is_known]] == queries.ids[is_known]
    asked.floor[is_known] = floor[at[is_known]]
    return join_queries(database, asked, params)


def _asked(database: Database, queries: Routed) -> Queries:
    columns = (queries.ids, queries.vectors, queries.split_mask, queries.probes, queries.parent)
    return checked_queries(database, *columns)


def _floors(spec: JoinSpec, found: Hits) -> list[pa.RecordBatch]:
    """The queries that found enough and the similarity of their last, a batch per range."""
    ids, floor = floors_of(found, spec.params.k)
    bounds = np.searchsorted(ids, np.array(spec.visits.ranges, dtype=np.int64).reshape(-1, 2))
    return [pa.record_batch([ids[lo:hi], floor[lo:hi]], schema=FLOORS) for lo, hi in bounds.tolist()]


@one_kept
def partition_graphs(visits: Visits, partition: int, params: JoinParams, links: int) -> Graphs:
    """The graphs of a partition, kept in this process for the next slice of its queries."""
    return build_graphs(partition_database(visits, partition), params, links)


def _saturated(spec: JoinSpec, database: Database, full: list[Routed]) -> Forest:
    if spec.params.threshold is None or not full:
        return empty_forest()
    queries = concatenate_routed(full)
    return saturated_forest(database, queries.ids, queries.vectors, queries.probes, spec.params.threshold)


def _measured(spec: JoinSpec, database: Database) -> Hits:
    if not spec.is_measured:
        return empty_hits()
    sampled = spec.visits.sampled()
    columns = (sampled.ids, sampled.vectors, sampled.split_mask)
    return search_everything(database, *columns, spec.params, sampled.parent)
