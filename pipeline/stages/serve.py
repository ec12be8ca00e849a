"""Serve stages: the representatives of each range by partition, then each partition by list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.kernels.database import searchable_rows
from pipeline.kernels.space import project_copy, project_semantic
from pipeline.kernels.visits import Routed, database_of, visits_by_partition
from pipeline.layout.indexes import partition_of, route_vectors
from pipeline.layout.inputs import Inputs
from pipeline.layout.served import ServedSpace, list_batch, served_key
from pipeline.layout.shuffle import read_column, write_batches
from pipeline.layout.spaces import read_space
from pipeline.layout.visits import visits_key
from pipeline.runner import Counters

VERSION = 1


@dataclass(frozen=True)
class RouteSpec:
    """Representatives of offsets [lo, hi) for a served index, into a folder of intermediates."""

    inputs: Inputs
    served: ServedSpace
    folder: str
    lo: int
    hi: int


@dataclass(frozen=True)
class ServeSpec:
    """One partition of a served index, made of what the ranges sent it."""

    served: ServedSpace
    folder: str
    ranges: tuple[tuple[int, int], ...]
    partition: int


def route_owned(spec: RouteSpec) -> Counters:
    """Commits one batch per partition: the vectors of a range as they are searched, each in its own list alone."""
    store = spec.inputs.root.open()
    rows = spec.inputs.population().read(spec.lo, spec.hi)
    if spec.served.space:
        unit = project_copy(read_space(store, spec.served.space), rows.embeddings, rows.signatures)
        vectors = unit.astype(np.float16)
    else:
        unit, vectors = project_semantic(rows.embeddings), rows.embeddings
    usable = np.flatnonzero(searchable_rows(unit) & searchable_rows(vectors))
    index = spec.served.index
    own, _ = route_vectors(store, index, rows.ids[usable], unit[usable])
    routed = Routed(rows.ids[usable], rows.split_mask[usable], vectors[usable], own, own[:, None])
    batches = visits_by_partition(routed, partition_of(store, index), index.count)
    write_batches(store, visits_key(spec.folder, spec.lo, spec.hi), batches)
    return {"images": len(routed)}


def serve_partition(spec: ServeSpec) -> Counters:
    """Commits a partition: a batch per list, by id."""
    store, served = spec.served.root.open(), spec.served
    keys = [visits_key(spec.folder, lo, hi) for lo, hi in spec.ranges]
    database = database_of(lambda: read_column(store, keys, spec.partition), served.dimension)
    lists = served.lists_of(spec.partition)
    start = np.searchsorted(database.list_id, lists, "left").tolist()
    stop = np.searchsorted(database.list_id, lists, "right").tolist()
    batches = [list_batch(database, slice(lo, hi)) for lo, hi in zip(start, stop, strict=True)]
    write_batches(store, served_key(served.folder, spec.partition), batches)
    return {"images": len(database)}
