"""Assign stages: every representative to the partitions that hold the lists it is near, one file per range."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.database import searchable_rows
from pipeline.kernels.sampling import stable_sample
from pipeline.kernels.space import project_copy, project_semantic
from pipeline.kernels.visits import NOT_OWNED, Routed, asking_batch, by_reference, visits_by_partition, visits_in_rounds
from pipeline.layout.groups import labels_of
from pipeline.layout.indexes import Index, partition_of, route_vectors
from pipeline.layout.inputs import Inputs
from pipeline.layout.shuffle import write_batches
from pipeline.layout.siblings import of_few_siblings
from pipeline.layout.spaces import read_space
from pipeline.layout.visits import Visits, vectors_key, visits_key, write_vectors
from pipeline.runner import Counters
from pipeline.storage import Store

VERSION = 2
RECALL_SALT = 3
ALL_SPLITS = np.uint64(1)


@dataclass(frozen=True)
class AssignSpec:
    """Representatives of offsets [lo, hi), routed in one space. made_of: the copy space's folder, or the groups' that
    leave one representative each in the semantic database. share: of them that recall is measured with; visits: where.
    """

    inputs: Inputs
    made_of: str
    index: Index
    share: float
    visits: Visits
    lo: int
    hi: int


def assign_copy(spec: AssignSpec) -> Counters:
    """Commits the visits of a range in the copy space: vectors as float16, every representative in the database. Its
    siblings are those that are together with it (`layout.siblings`).

    float16 moves a cosine by 2e-5 (1.5e-4 at most); the similarity in tables is made of the features.
    """
    store = spec.inputs.root.open()
    rows = spec.inputs.population().read(spec.lo, spec.hi)
    unit = project_copy(read_space(store, spec.made_of), rows.embeddings, rows.signatures)
    own, probes = _route(store, spec, rows.ids, unit)
    families = spec.inputs.population().families(rows.ids) if spec.visits.has_siblings else None
    return _commit(store, spec, Routed(rows.ids, rows.split_mask, unit.astype(np.float16), own, probes, families))


def assign_semantic(spec: AssignSpec) -> Counters:
    """Commits the visits of a range in the semantic space: stored embeddings, one member per group in the database."""
    store = spec.inputs.root.open()
    rows = spec.inputs.population().read(spec.lo, spec.hi)
    own, probes = _route(store, spec, rows.ids, project_semantic(rows.embeddings))
    is_head = labels_of(store, spec.made_of, rows.ids) == rows.ids
    parents = spec.inputs.parents(spec.lo, spec.hi)[rows.ids - spec.lo] if spec.visits.has_siblings else None
    if parents is not None and spec.index.folder:
        is_head &= of_few_siblings(spec.inputs, rows.ids, parents)
    masks, own = np.full(len(rows.ids), ALL_SPLITS), np.where(is_head, own, NOT_OWNED)
    return _commit(store, spec, Routed(rows.ids, masks, rows.embeddings, own, probes, parents))


def _route(
    store: Store, spec: AssignSpec, ids: NDArray[np.int64], unit: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Own and probed lists; those of rows without a direction (flat and zero) are made up and never used."""
    usable = np.flatnonzero(searchable_rows(unit))
    found_own, found = route_vectors(store, spec.index, ids[usable], unit[usable])
    own = np.full(len(ids), NOT_OWNED, np.int32)
    probes = np.zeros((len(ids), found.shape[1]), np.int32)
    own[usable], probes[usable] = found_own, found
    return own, probes


def _commit(store: Store, spec: AssignSpec, routed: Routed) -> Counters:
    rows = routed.take(searchable_rows(routed.vectors))
    folder, bounds = spec.visits.folder, (spec.lo, spec.hi)
    if spec.visits.is_by_reference:
        write_vectors(store, vectors_key(folder, *bounds), rows.vectors)
        rows = by_reference(rows)
    deal = visits_in_rounds if spec.visits.is_in_rounds else visits_by_partition
    batches = deal(rows, partition_of(store, spec.index), spec.index.count)
    sampled = rows.take(stable_sample(rows.ids, spec.share, RECALL_SALT))
    write_batches(store, visits_key(folder, *bounds), [*batches, asking_batch(sampled)])
    return {"images": len(rows), "visits": sum(batch.num_rows for batch in batches)}
