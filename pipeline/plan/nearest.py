"""Nearest: the images of an audit that are most similar to some queries, as a table."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.kernels.database import FLOAT16_ERROR, searchable_rows
from pipeline.kernels.hits import MOST_NEIGHBOURS, Hits, JoinParams, concatenate_hits, merge_hits
from pipeline.kernels.join import join_lists
from pipeline.kernels.metrics import nearest_by_metric, similarity_of_distance
from pipeline.kernels.space import ExactVectors, compare_rows, exact_vectors, project_copy, project_semantic
from pipeline.layout.annotations import names_of
from pipeline.layout.exact import Representatives
from pipeline.layout.features import extracted_hashes
from pipeline.layout.images import paths_of
from pipeline.layout.indexes import partition_of, route_vectors
from pipeline.layout.inputs import Inputs
from pipeline.layout.served import Recipe, ServedSpace
from pipeline.layout.spaces import read_space
from pipeline.schemas import Status
from pipeline.stages.queries import SearchedFor

NEAREST = pa.schema(
    [
        pa.field("query", pa.string()),
        pa.field("status", pa.string()),
        pa.field("message", pa.string()),
        pa.field("rank", pa.int32()),
        pa.field("image_id", pa.int64()),
        pa.field("similarity", pa.float64()),
        pa.field("semantic_similarity", pa.float64()),
        pa.field("signature_similarity", pa.float64()),
        pa.field("uri", pa.string()),
        pa.field("path", pa.string()),
        pa.field("split", pa.string()),
        pa.field("label", pa.string()),
        pa.field("copies", pa.int64()),
        pa.field("is_same_bytes", pa.bool_()),
    ]
)
"""A row is a query and an image near it, null from rank on where none is; see docs/search.md."""
BLOCK = 256
"""Queries at once: the rows that they find are 1.6 kB each."""
SPARE = 8
NAMES = ("uri", "raw_key", "source", "fragment")


def require_k(k: int) -> None:
    """Raises UsageError for a number of neighbours that no search gives."""
    if not isinstance(k, Integral) or isinstance(k, bool) or not 1 <= k <= MOST_NEIGHBOURS:
        raise UsageError(f"k {k!r}, want a whole number from 1 to {MOST_NEIGHBOURS}")


def nearest(recipe: Recipe, served: ServedSpace, queries: SearchedFor, k: int) -> pa.Table:
    """The k nearest representatives of each query, nearest first: rows of NEAREST, one without a match where none is.

    Ranked by the similarity that tables carry, ties to the smaller id; all there are where they are fewer than k.
    """
    usable = np.array([status is Status.OK for status in queries.status], bool)
    usable &= searchable_rows(queries.embeddings)
    found = _Found(recipe, served, queries, np.flatnonzero(usable))
    best = found.best(k)
    return _table(recipe, queries, best, found.has_signatures)


class _Best:
    """Neighbours in the order of the table: row of the query int64 (n,), id int64 (n,), similarities float64 (n,)."""

    def __init__(self, row: NDArray[np.int64], ids: NDArray[np.int64], similarities: list[NDArray[np.float64]]) -> None:
        self.row, self.ids, self.similarities = row, ids, similarities


class _Found:
    """A search that is widened until nothing that was not compared exactly can be among the nearest."""

    def __init__(self, recipe: Recipe, served: ServedSpace, queries: SearchedFor, rows: NDArray[np.int64]) -> None:
        store = recipe.inputs.root.open()
        self.recipe, self.served, self.rows = recipe, served, rows
        self.embeddings, self.signatures = queries.embeddings[rows], queries.signatures[rows]
        self.has_signatures = bool(self.signatures.any()) or bool(served.space)
        self.space = read_space(store, recipe.space)
        if served.space:
            self.unit = project_copy(self.space, self.embeddings, self.signatures)
            self.vectors = self.unit.astype(np.float16)
        else:
            self.unit, self.vectors = project_semantic(self.embeddings), self.embeddings
        self.exact = exact_vectors(self.space, self.embeddings, self.signatures)

    def best(self, k: int) -> _Best:
        """The k nearest of every query."""
        if self.served.index.metric:
            return self._by_metric(k)
        pieces, waiting, want = [], np.arange(len(self.rows)), min(k + SPARE, MOST_NEIGHBOURS)
        while len(waiting):
            hits = self._search(waiting, want)
            at = waiting[np.searchsorted(waiting - len(self.rows), hits.query_id)]
            compared = self._compare(at, hits.match_id)
            ranks = compared[0] if self.served.space else compared[1]
            order = np.lexsort((hits.match_id, -ranks, at))
            rank = np.arange(len(order)) - np.searchsorted(at[order], at[order])
            is_near = rank < k
            counts = np.bincount(at, minlength=len(self.rows))
            last = np.full(len(self.rows), -np.inf)
            last[at[order][rank == k - 1]] = ranks[order][rank == k - 1]
            floor = np.full(len(self.rows), np.inf)
            np.minimum.at(floor, at, hits.similarity.astype(np.float64))
            is_open = (counts >= want) & (floor + FLOAT16_ERROR >= last) & (want < MOST_NEIGHBOURS)
            chosen = order[is_near & ~is_open[at[order]]]
            pieces.append((at[chosen], hits.match_id[chosen], [values[chosen] for values in compared]))
            waiting, want = waiting[is_open[waiting]], min(4 * want, MOST_NEIGHBOURS)
        row = np.concatenate([np.empty(0, np.int64), *(piece[0] for piece in pieces)])
        ids = np.concatenate([np.empty(0, np.int64), *(piece[1] for piece in pieces)])
        values = [np.concatenate([np.empty(0), *(piece[2][part] for piece in pieces)]) for part in range(3)]
        order = np.argsort(row, kind="stable")
        return _Best(self.rows[row[order]], ids[order], [value[order] for value in values])

    def _search(self, asking: NDArray[np.int64], want: int) -> Hits:
        """Hits of some queries in the lists that they probe, one partition at a time; queries are ids below zero."""
        index = self.served.index
        ids = asking - len(self.rows)
        _, probes = route_vectors(self.recipe.inputs.root.open(), index, ids, self.unit[asking])
        where = partition_of(self.recipe.inputs.root.open(), index)[probes]
        params, everywhere = JoinParams(k=want, k_cross=0), np.ones(len(ids), np.uint64)
        found: list[Hits] = []
        for partition in np.unique(where).tolist():
            there = np.flatnonzero((where == partition).any(axis=1))
            lists = np.unique(probes[there][where[there] == partition])
            database = self.served.read(partition, lists.astype(np.int64))
            vectors = self.vectors[asking[there]]
            found.append(join_lists(database, ids[there], vectors, everywhere[there], probes[there], params))
        return merge_hits([concatenate_hits(found)], params)

    def _by_metric(self, k: int) -> _Best:
        """The k nearest by the distance of the audit, of unit vectors; there are at most 50,000, in one partition."""
        database = self.served.read(0)
        asking = np.arange(len(self.rows), dtype=np.int64) - len(self.rows)
        rows = database.unit(slice(None))
        found, distance = nearest_by_metric(self.unit, asking, rows, database.ids, self.served.index.metric, k)
        at = np.repeat(np.arange(len(self.rows)), found.shape[1])
        ids = found.ravel()
        copy, _, signature = self._compare(at, ids)
        return _Best(self.rows[at], ids, [copy, similarity_of_distance(distance.ravel()), signature])

    def _compare(self, at: NDArray[np.int64], ids: NDArray[np.int64]) -> list[NDArray[np.float64]]:
        """Copy, semantic and signature similarity of query at[i] and representative ids[i]."""
        wanted, place = np.unique(ids, return_inverse=True)
        rows: Representatives = self.recipe.inputs.population().take(wanted)
        theirs: ExactVectors = exact_vectors(self.space, rows.embeddings, rows.signatures)
        return list(compare_rows(self.exact, theirs, at, place.ravel()))


def _table(recipe: Recipe, queries: SearchedFor, best: _Best, has_signatures: bool) -> pa.Table:
    """Rows of NEAREST: the neighbours of each query in order; a query without one has a row of nulls."""
    count = len(queries.names)
    alone = np.setdiff1d(np.arange(count), best.row)
    row = np.concatenate([best.row, alone])
    order = np.argsort(row, kind="stable")
    matched = _matched(recipe, queries, best, has_signatures).take(
        pa.array(order, mask=order >= len(best.row))  # nulls for the queries that found nothing
    )
    row = row[order]
    columns: dict[str, Any] = {
        "query": pa.array(queries.names, pa.string()).take(pa.array(row)),
        "status": pa.array([status.value for status in queries.status]).take(pa.array(row)),
        "message": pa.array(queries.message, pa.string()).take(pa.array(row)),
    }
    columns |= {name: matched[name] for name in matched.column_names}
    return pa.table({name: columns[name] for name in NEAREST.names}).cast(NEAREST)


def _matched(recipe: Recipe, queries: SearchedFor, best: _Best, has_signatures: bool) -> pa.Table:
    inputs = recipe.inputs
    names = inputs.catalog_rows_of(best.ids, NAMES)
    codes, vocabulary = inputs.codes_for(best.ids), inputs.vocabulary()
    first = np.searchsorted(best.row, best.row)
    nothing = pa.nulls(len(best.ids), pa.float64())
    copy, semantic, signature = (pa.array(value) for value in best.similarities)
    return pa.table(
        {
            "rank": np.arange(len(best.row)) - first + 1,
            "image_id": best.ids,
            "similarity": copy if has_signatures else nothing,
            "semantic_similarity": semantic,
            "signature_similarity": signature if has_signatures else nothing,
            "uri": names["uri"],
            "path": paths_of(names, inputs.opened_snapshot()),
            "split": names_of(codes.split, vocabulary.splits),
            "label": names_of(codes.label, vocabulary.labels),
            "copies": copies_of(inputs, best.ids),
            "is_same_bytes": _same_bytes(recipe, queries, best),
        }
    )


def copies_of(inputs: Inputs, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Images with the same bytes or pixels as each representative, itself counted."""
    heads = inputs.exact_groups().by_representative[1]
    found = np.searchsorted(heads, ids, "right") - np.searchsorted(heads, ids, "left")
    return np.asarray(np.maximum(found, 1), np.int64)


def _same_bytes(recipe: Recipe, queries: SearchedFor, best: _Best) -> pa.Array:
    """Whether a match has the bytes of the query; null where the query is a vector. Only near-equal ones are read."""
    store, features = recipe.inputs.root.open(), recipe.inputs.feature_set()
    same: list[bool | None] = []
    for row, image_id, similarity in zip(best.row.tolist(), best.ids.tolist(), best.similarities[1], strict=True):
        content = queries.content[row]
        if content is None:
            same.append(None)
        else:
            is_close = similarity > 1 - 1e-3
            same.append(bool(is_close and extracted_hashes(store, features, [image_id])[image_id] == content))
    return pa.array(same, pa.bool_())
