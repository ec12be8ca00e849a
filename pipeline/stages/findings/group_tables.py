"""Tables of groups: members with their keeper and medoid, and labels that contradict each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.kernels.components import group_sizes
from pipeline.kernels.conflicts import label_conflicts
from pipeline.kernels.groups import (
    LOSES,
    WINS,
    GroupMembers,
    Keepers,
    chained,
    choose_keepers,
    choose_medoids,
    group_minimum,
    has_edge_to,
)
from pipeline.kernels.space import CopySpace, pair_similarities, project_copy
from pipeline.layout.annotations import names_of
from pipeline.layout.exact import Representatives
from pipeline.layout.groups import read_splits
from pipeline.layout.spaces import read_space
from pipeline.stages.findings.context import Range, as_table, subject_columns

PAIR_BLOCK = 4096  # 60 MB in float64


class GroupImages:
    """The images of the groups whose id is in the range, sorted by group, then id."""

    def __init__(self, found: Range) -> None:
        groups = found.graph.roots_in(found.spec.lo, found.spec.hi)
        ids = found.graph.members(groups)
        of = found.graph.groups_of(ids)
        order = np.lexsort((ids, of))
        self.ids: NDArray[np.int64] = ids[order]
        self.groups: NDArray[np.int64] = of[order]
        self.representatives = found.graph.exact.representatives_of(self.ids)
        self.codes = found.spec.inputs.codes_for(self.ids)
        self.subjects = found.subjects_of(self.ids)


def groups_table(found: Range, members: GroupImages) -> pa.Table:
    """Every image in a group of two or more, with the one to keep and its similarity to the medoid."""
    sizes = group_sizes(members.groups)
    keepers = _keepers(found, members)
    medoid_id, similarity = _medoids(found, members)
    linked = has_edge_to(medoid_id, members.representatives, _edges_at(found, medoid_id))
    reasons = pa.array([*WINS, *LOSES]).take(pa.array(keepers.reason + np.where(keepers.is_keeper, 0, len(WINS))))
    return as_table(
        "groups",
        {
            "group_id": members.groups,
            **subject_columns(members.subjects),
            "group_size": sizes.size[np.searchsorted(sizes.label, members.groups)],
            "medoid_id": medoid_id,
            "is_keeper": keepers.is_keeper,
            "keeper_reason": reasons,
            "similarity_to_medoid": similarity,
            "group_min_similarity": group_minimum(members.groups, similarity),
            **_split_columns(found, members.groups),
            "is_chained": chained(similarity, found.spec.rules.threshold, linked),
        },
    )


def _split_columns(found: Range, groups: NDArray[np.int64]) -> dict[str, Any]:
    """Whether each row's group is a piece of a component that was split, and at which similarity."""
    splits = read_splits(found.store, found.spec.groups)
    at = np.minimum(np.searchsorted(splits.group_id, groups), max(0, len(splits.group_id) - 1))
    is_split = splits.group_id[at] == groups if len(splits.group_id) else np.zeros(len(groups), bool)
    similarity = np.full(len(groups), np.nan)
    similarity[is_split] = splits.similarity[at[is_split]]
    return {"is_split": is_split, "split_similarity": similarity}


def label_conflicts_table(found: Range, members: GroupImages) -> pa.Table:
    """Labelled images of whose group another file carries another label."""
    conflicts = label_conflicts(
        members.ids, members.representatives, members.groups, members.codes.label, found.parents_of(members.ids)
    )
    row = conflicts.row
    other = subject_columns(found.subjects_of(conflicts.conflict_id), "conflict")
    return as_table(
        "label_conflicts",
        {
            "group_id": members.groups[row],
            "representative_id": members.representatives[row],
            **subject_columns(members.subjects.take(pa.array(row))),
            "is_certain": conflicts.is_certain,
            **other,
            "label_count": conflicts.label_count,
            "label_share": np.round(conflicts.label_share, 6),
            "majority_label": names_of(conflicts.majority, found.vocabulary.labels),
        },
    )


def _keepers(found: Range, members: GroupImages) -> Keepers:
    ranks = found.spec.rules.keeper.ranks(list(found.vocabulary.splits))
    rows = found.spec.inputs.sizes_of(members.ids)
    rows = pa.table({name: rows[name].fill_null(0) for name in ("width", "height", "size_bytes")})  # names alone
    pixels = rows["width"].to_numpy().astype(np.int64) * rows["height"].to_numpy()
    lengths = pc.utf8_length(members.subjects["uri"]).to_numpy().astype(np.int64)
    ranks_of = ranks[members.codes.split]
    return choose_keepers(
        GroupMembers(members.groups, members.ids, ranks_of, pixels, rows["size_bytes"].to_numpy(), lengths)
    )


def _medoids(found: Range, members: GroupImages) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The medoid of each member's group and the similarity to it; copies count once."""
    is_representative = members.representatives == members.ids
    heads, groups = members.ids[is_representative], members.groups[is_representative]
    if len(heads) == 0:
        return np.empty(0, np.int64), np.empty(0)
    by_id = np.argsort(heads)
    rows = found.spec.inputs.population().take(heads[by_id])
    space, at = read_space(found.store, found.spec.space), np.argsort(by_id)
    medoid = choose_medoids(groups, project_copy(space, rows.embeddings, rows.signatures)[at])
    similarity = _similarities(space, rows, at, at[medoid])
    position = by_id[np.searchsorted(rows.ids, members.representatives)]
    return heads[medoid][position], similarity[position]


def _similarities(
    space: CopySpace, rows: Representatives, i: NDArray[np.int64], j: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Similarity in the copy space of rows i[k] and j[k], as every table has it."""
    found = np.empty(len(i))
    for start in range(0, len(i), PAIR_BLOCK):
        a, b = i[start : start + PAIR_BLOCK], j[start : start + PAIR_BLOCK]
        sides = rows.embeddings[a], rows.signatures[a], rows.embeddings[b], rows.signatures[b]
        found[start : start + PAIR_BLOCK] = pair_similarities(space, *sides).copy
    return found


def _edges_at(found: Range, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The edges with an end among some ids, (e, 2)."""
    edges = found.graph.edges_at(ids)
    return np.stack([edges[name].to_numpy() for name in ("image_id", "match_id")], axis=1)
