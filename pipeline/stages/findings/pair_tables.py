"""Tables of pairs: duplicates, and leaks across splits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.kernels.leaks import Edges, Members, expand_matches
from pipeline.kernels.siblings import are_siblings
from pipeline.schemas import GROUPING_KINDS, KIND_ORDER, Kind
from pipeline.stages.findings.context import Range, as_table, subject_columns

KIND_NAMES = [kind.value for kind in KIND_ORDER]
MEASURES = ("similarity", "semantic_similarity", "signature_similarity", "correlation", "overlap")


def duplicates_table(found: Range) -> pa.Table:
    """Pairs whose smaller id is in the range: the stars of exact groups, and the verified edges."""
    columns = _concatenated([_exact_pairs(found), _edge_pairs(found)])
    order = np.lexsort((columns["match_id"], columns["image_id"]))
    columns = {name: values.take(pa.array(order)) for name, values in columns.items()}
    grouped = pc.is_in(columns["kind"], value_set=pa.array([kind.value for kind in GROUPING_KINDS]))
    ids, match = columns.pop("image_id").to_numpy(), columns.pop("match_id").to_numpy()
    group = found.graph.groups_of(ids)
    grouped = pc.and_(grouped, pa.array(group == found.graph.groups_of(match)))
    return as_table(
        "duplicates",
        {
            **subject_columns(found.subjects_of(ids)),
            **subject_columns(found.subjects_of(match), "match"),
            **columns,
            "group_id": pc.if_else(grouped, pa.array(group), pa.scalar(None, pa.int64())),
        },
    )


def _exact_pairs(found: Range) -> dict[str, pa.Array]:
    exact, spec = found.graph.exact, found.spec
    head = exact.representative_id
    order, heads = exact.by_representative
    rows = order[slice(*np.searchsorted(heads, [spec.lo, spec.hi]))]
    rows = rows[head[rows] != exact.image_id[rows]]
    content_of_head = exact.content_id[np.searchsorted(exact.image_id, head[rows])]
    same_bytes = exact.content_id[rows] == content_of_head
    parent_of_head = exact.parent_id[np.searchsorted(exact.image_id, head[rows])]
    same_parent = (exact.parent_id[rows] == parent_of_head) & (parent_of_head >= 0)
    kinds = np.where(same_bytes, Kind.SAME_BYTES.value, Kind.SAME_PIXELS.value).astype(object)
    kinds[same_parent] = Kind.SAME_PARENT.value
    count = len(rows)
    columns: dict[str, Any] = {
        "image_id": head[rows],
        "match_id": exact.image_id[rows],
        "kind": kinds,
        **_exact_evidence(count),
    }
    return {name: pa.array(values) for name, values in columns.items()}


def _exact_evidence(count: int) -> dict[str, Any]:
    """Copies agree in everything; they are not aligned."""
    ones = np.ones(count)
    return {
        **dict.fromkeys(MEASURES[:3], ones),
        **{name: pa.nulls(count, pa.float64()) for name in MEASURES[3:]},
        "is_mirrored": pa.nulls(count, pa.bool_()),
        "is_verified": np.ones(count, bool),
    }


def _edge_pairs(found: Range) -> dict[str, pa.Array]:
    edges, spec = found.edges, found.spec
    ids, match = named_ends(found, edges)
    kept = pa.array((ids >= spec.lo) & (ids < spec.hi))
    columns = {name: edges[name].combine_chunks() for name in edges.column_names}
    columns |= {"image_id": pa.array(ids), "match_id": pa.array(match)}
    return {name: column.filter(kept) for name, column in columns.items()}


def named_ends(found: Range, edges: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The images that each edge is said of, the smaller id first: the representatives, but for one of siblings that
    are not together a copy in another file, and for siblings that are, two of one file.
    """
    ids, match = edges["image_id"].to_numpy().copy(), edges["match_id"].to_numpy().copy()
    if not found.graph.has_siblings:
        return ids, match
    exact = found.graph.exact
    parent, match_parent = found.parents_of(ids), found.parents_of(match)
    within = pc.equal(edges["kind"], Kind.SAME_PARENT.value).to_numpy(zero_copy_only=False)
    at = np.flatnonzero(are_siblings(parent, match_parent) != within)
    copy = exact.first_copies(match[at], parent[at], within[at])
    match[at] = np.where(copy >= 0, copy, match[at])
    at = at[copy < 0]
    copy = exact.first_copies(ids[at], match_parent[at], within[at])
    ids[at] = np.where(copy >= 0, copy, ids[at])
    return np.minimum(ids, match), np.maximum(ids, match)


def _concatenated(parts: list[dict[str, pa.Array]]) -> dict[str, pa.Array]:
    types = {name: parts[1][name].type for name in parts[1]}
    return {name: pa.concat_arrays([part[name].cast(kind) for part in parts]) for name, kind in types.items()}


def leaks_table(found: Range) -> pa.Table:
    """Every image of the range with its best match in each other split."""
    asked, edges = _asked(found)
    members = _members(found, asked, edges)
    leaks = expand_matches(members, _as_edges(edges), asked)
    at = leaks.edge
    measured = {name: _of_edge(edges[name], at) for name in (*MEASURES, "is_mirrored", "is_verified")}
    exact = (at < 0) & ~leaks.is_transitive
    for name in MEASURES[:3]:
        measured[name] = pc.if_else(pa.array(exact), pa.scalar(1.0), measured[name])
    # an exact match was decided on hashes, a transitive one on the edges between
    measured["is_verified"] = pc.if_else(pa.array(at < 0), pa.scalar(True), measured["is_verified"])
    grouping = np.array([KIND_NAMES[i] in {kind.value for kind in GROUPING_KINDS} for i in range(len(KIND_NAMES))])
    group = found.graph.groups_of(leaks.image_id)
    same_group = (leaks.is_transitive | grouping[leaks.kind]) & (group == found.graph.groups_of(leaks.match_id))
    return as_table(
        "leaks",
        {
            **subject_columns(found.subjects_of(leaks.image_id)),
            **subject_columns(found.subjects_of(leaks.match_id), "match"),
            "kind": pa.array(KIND_NAMES).take(pa.array(leaks.kind, pa.int32(), mask=leaks.is_transitive)),
            **measured,
            "group_id": pa.array(group, mask=~same_group),
            "severity": leaks.severity,
            "is_label_conflict": leaks.is_label_conflict,
            "is_transitive": leaks.is_transitive,
        },
    )


def _asked(found: Range) -> tuple[NDArray[np.int64], pa.Table]:
    """Images of the range that are in a group or whose representative has an edge, and those edges."""
    ids, edges = found.subjects["image_id"].to_numpy()[found.ok], found.edges
    linked = np.isin(found.representatives, np.r_[edges["image_id"].to_numpy(), edges["match_id"].to_numpy()])
    roots = found.graph.roots_in(found.spec.lo, found.spec.hi)
    grouped = (found.graph.groups_of(ids) != ids) | np.isin(ids, roots)
    return ids[linked | grouped], edges


def _members(found: Range, asked: NDArray[np.int64], edges: pa.Table) -> Members:
    ends = np.r_[edges["image_id"].to_numpy(), edges["match_id"].to_numpy()]
    groups = np.unique(found.graph.groups_of(np.union1d(asked, ends)))
    ids = found.graph.members(groups)
    exact = found.graph.exact
    content = ids.copy()
    at = np.searchsorted(exact.image_id, ids)
    at[at == len(exact.image_id)] = 0
    if len(exact.image_id):
        hit = exact.image_id[at] == ids
        content[hit] = exact.content_id[at[hit]]
    codes = found.spec.inputs.codes_for(ids)
    return Members(
        ids, exact.representatives_of(ids), found.graph.groups_of(ids), content,
        codes.split.astype(np.int16), codes.label, found.parents_of(ids),
    )  # fmt: skip


def _as_edges(edges: pa.Table) -> Edges:
    kinds = pc.index_in(edges["kind"], value_set=pa.array(KIND_NAMES)).to_numpy().astype(np.int8)
    return Edges(edges["image_id"].to_numpy(), edges["match_id"].to_numpy(), kinds, edges["similarity"].to_numpy())


def _of_edge(column: pa.ChunkedArray, at: NDArray[np.int64]) -> pa.Array:
    return column.combine_chunks().take(pa.array(at, mask=at < 0))
