"""The nearest by another distance than the cosine, as hits: siblings are fetched as well and left out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.kernels.database import DECIMALS, Database, Int64, unit_scale, unit_vectors
from pipeline.kernels.hits import Hits, by_query, concatenate_hits, rank_in_run
from pipeline.kernels.metrics import nearest_by_metric, similarity_of_distance
from pipeline.kernels.siblings import are_siblings
from pipeline.kernels.visits import Routed

_MOST_FOUND = 4_000_000
"""Rows that are fetched at once, 16 bytes each: a query fetches as many more as it has siblings."""


def metric_hits(database: Database, queries: Routed, metric: str, k: int) -> Hits:
    """Return the k nearest of everything, in one split, by similarity 1 / (1 + distance) of unit vectors."""
    if queries.parent is None or database.parent is None:
        return _hits(database, queries, metric, k)
    known = np.sort(database.parent)
    siblings = np.searchsorted(known, queries.parent, "right") - np.searchsorted(known, queries.parent, "left")
    siblings[queries.parent < 0] = 0
    order = np.argsort(database.ids)
    parent_of, ids = database.parent[order], database.ids[order]
    parts = []
    for rows in _chunks(siblings, k):
        asked = queries.take(rows)
        hits = _hits(database, asked, metric, k + int(siblings[rows].max()))
        by_id = np.argsort(asked.ids)
        query = by_id[np.searchsorted(asked.ids[by_id], hits.query_id)]
        parents = queries.parent[rows][query], parent_of[np.searchsorted(ids, hits.match_id)]
        hits = hits.take(~are_siblings(*parents))
        parts.append(hits.take(rank_in_run(hits.query_id) < k))
    return by_query(concatenate_hits(parts))


def _chunks(siblings: Int64, k: int) -> Iterator[Int64]:
    """Yield the queries by how many siblings they have, so many together as are fetched at once."""
    order = np.argsort(siblings, kind="stable")
    alone = int((siblings == 0).sum())
    if alone:
        yield order[:alone]
    start = alone
    while start < len(order):
        widths = (np.arange(1, len(order) - start + 1)) * (k + siblings[order[start:]])
        stop = start + max(1, int(np.searchsorted(widths, _MOST_FOUND, "right")))
        yield order[start:stop]
        start = stop


def _hits(database: Database, queries: Routed, metric: str, k: int) -> Hits:
    unit = unit_vectors(queries.vectors, unit_scale(queries.vectors, "join queries"))
    rows = database.unit(slice(None))
    found, distance = nearest_by_metric(unit, queries.ids, rows, database.ids, metric, k)
    count, width = found.shape
    is_found = found.ravel() >= 0
    similarity = np.round(similarity_of_distance(distance), DECIMALS).astype(np.float32)
    query = np.repeat(queries.ids, width)
    one = np.zeros(count * width, np.int8)
    hits = Hits(query, found.ravel(), similarity.ravel(), one, one == 0).take(is_found)
    return hits.take(np.lexsort((hits.match_id, -hits.similarity, hits.query_id)))
