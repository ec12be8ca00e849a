"""Train lists: those of a space from a stable sample, in one task or, from 4,096 lists on, super list by super list.

Of two audits that train one thing at once the first stays: tasks of the other may have read it already.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.database import searchable_rows
from pipeline.kernels.npz import pack_arrays, unpack_arrays
from pipeline.kernels.routing import one_level, partition_lists, route, split_long_lists, train_centroids
from pipeline.kernels.sampling import stable_sample_limit
from pipeline.kernels.space import project_copy, project_semantic
from pipeline.kernels.two_level import (
    expected_rows,
    stack_lists,
    sublist_counts,
    super_rows,
    train_sublists,
    train_super,
)
from pipeline.kernels.visits import Routed, concatenate_routed, visits_by_partition, visits_of
from pipeline.layout.groups import read_forest
from pipeline.layout.indexes import LISTS, TrainedLists, lists_to_bytes, read_lists
from pipeline.layout.inputs import Inputs
from pipeline.layout.parts import cut
from pipeline.layout.shuffle import read_column, write_batches
from pipeline.layout.siblings import without_many_siblings
from pipeline.layout.spaces import read_space
from pipeline.layout.tables import read_object
from pipeline.runner import Counters
from pipeline.stages.train import head_ids, sample_ids

VERSION = 3
ROWS_PER_LIST = 64
TRAINED_TWICE_FROM = 1024
"""Lists from which on k-means is of super lists and then of each one's rows, whatever is compared in a search: 2,400
lists take 4 s instead of 35, and 16 of 1,500 hold .985 of the ten nearest instead of .988."""
SEED = 7
SUPERS, SAMPLE = "supers.npz", "sample"
DEAL_ROWS = 262_144  # 0.2 GB of 320-d; the sample of 29,000 lists is 1.9 million rows, 2.4 GB as float32
BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class ListsSpec:
    """So many lists of a space, into a folder. space: the copy space's folder, "" for the semantic one.

    groups: of which one representative each is in the semantic database; "" where all are. Frames of a still camera
    that took a tenth of the lists, one row each, took the probes too: recall fell from .9997 to .968.
    first, last: super lists of a task that trains their lists, or rows of the sample of one that deals them out.
    """

    inputs: Inputs
    space: str
    groups: str
    nlist: int
    folder: str
    first: int = 0
    last: int = 0

    @property
    def name(self) -> str:
        """Of the space."""
        return "copy" if self.space else "semantic"


@dataclass(frozen=True)
class PartitionsSpec:
    """Lists of a folder, grouped into partitions of at most so many of `representatives`, into file `name`."""

    inputs: Inputs
    folder: str
    representatives: int
    most_rows: int
    name: str


def train_one_level(spec: ListsSpec) -> Counters:
    """Commits all lists at once."""
    vectors, _ = _vectors(spec, _sample_ids(spec))
    centroids = _trained(vectors, min(spec.nlist, len(vectors)))
    own, _ = route(vectors, centroids, 1)
    trained = TrainedLists(one_level(centroids), np.bincount(own, minlength=len(centroids)).astype(np.int64))
    spec.inputs.root.open().put_if_absent(f"{spec.folder}/{LISTS}", lists_to_bytes(trained))
    return {"lists": len(centroids)}


def train_supers(spec: ListsSpec) -> Counters:
    """Commits the super lists, of an even part of the sample, and how many lists each gets."""
    ids = _sample_ids(spec)
    vectors, _ = _vectors(spec, ids[:: max(1, len(ids) // super_rows(spec.nlist))])
    supers = train_super(vectors, spec.nlist, SEED)
    own, _ = route(vectors, supers, 1)
    counts = sublist_counts(np.bincount(own, minlength=len(supers)) * -(-len(ids) // len(own)), spec.nlist)
    spec.inputs.root.open().put_if_absent(f"{spec.folder}/{SUPERS}", pack_arrays({"supers": supers, "counts": counts}))
    return {"supers": len(supers)}


def deal(spec: ListsSpec) -> Counters:
    """Commits rows [first, last) of the sample, a batch per super list."""
    store = spec.inputs.root.open()
    supers, _ = read_supers(spec)
    parts = [visits_of([], supers.shape[1])]
    ids = _sample_ids(spec)[spec.first : spec.last]
    for start in range(0, len(ids), BLOCK_ROWS):
        vectors, kept = _vectors(spec, ids[start : start + BLOCK_ROWS])
        own, probes = route(vectors, supers, 1)
        parts.append(Routed(kept, np.ones(len(kept), np.uint64), vectors.astype(np.float16), own, probes))
    batches = visits_by_partition(concatenate_routed(parts), np.arange(len(supers), dtype=np.int32), len(supers))
    write_batches(store, sample_key(spec.folder, spec.first), batches)
    return {"rows": sum(batch.num_rows for batch in batches)}


def deals(nlist: int) -> list[tuple[int, int]]:
    """The rows of the sample of so many lists, task by task; the last ones may be empty."""
    return cut(0, ROWS_PER_LIST * nlist, DEAL_ROWS)


def sample_key(folder: str, first: int) -> str:
    """Key of the rows of the sample from `first` on."""
    return f"{folder}/{SAMPLE}-{first:012d}.shuffle"


def train_below(spec: ListsSpec) -> Counters:
    """Commits the lists of super lists [first, last)."""
    store = spec.inputs.root.open()
    supers, counts = read_supers(spec)
    keys = [sample_key(spec.folder, first) for first, _ in deals(spec.nlist)]
    last = min(spec.last, len(supers))
    parts = []
    for number in range(spec.first, last):
        rows = visits_of(read_column(store, keys, number), supers.shape[1]).vectors.astype(np.float32)
        parts.append(train_sublists(rows, int(counts[number]), SEED))
    arrays = {
        "centroids": np.concatenate([supers[:0], *(part.centroids for part in parts)]),
        "rows": np.concatenate([counts[:0], *(part.rows for part in parts)]),
        "size": np.array([len(part.centroids) for part in parts], np.int64),
    }
    store.put_if_absent(below_key(spec.folder, spec.first), pack_arrays(arrays))
    return {"lists": len(arrays["rows"])}


def stack(spec: ListsSpec) -> Counters:
    """Commits the lists of all super lists as one, and lets go of the sample."""
    store = spec.inputs.root.open()
    supers, _ = read_supers(spec)
    keys = [info.key for info in store.list(f"{spec.folder}/below-")]
    parts: list[NDArray[np.float32]] = []
    rows: list[NDArray[np.int64]] = []
    for key in keys:
        arrays = read_object(store, key, lambda data: unpack_arrays(data, ("centroids", "rows", "size"), "lists"))
        parts += np.split(arrays["centroids"], np.cumsum(arrays["size"])[:-1])
        rows.append(arrays["rows"])
    trained = TrainedLists(stack_lists(supers, parts), np.concatenate(rows))
    store.put_if_absent(f"{spec.folder}/{LISTS}", lists_to_bytes(trained))
    for info in [*store.list(f"{spec.folder}/{SAMPLE}-")]:
        store.delete(info.key)
    return {"lists": len(trained.rows)}


def partition(spec: PartitionsSpec) -> Counters:
    """Commits the partition of each list, int32 (nlist,)."""
    store = spec.inputs.root.open()
    trained = read_lists(store, spec.folder)
    expected = expected_rows(trained.rows, spec.representatives)
    found = partition_lists(trained.lists.centroids, expected, spec.most_rows)
    sink = io.BytesIO()
    np.save(sink, found, allow_pickle=False)
    store.put_if_absent(f"{spec.folder}/{spec.name}", sink.getvalue())
    return {"partitions": int(found.max(initial=-1)) + 1}


def below_key(folder: str, first: int) -> str:
    """Key of the lists of some super lists."""
    return f"{folder}/below-{first:06d}.npz"


def read_supers(spec: ListsSpec) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Super lists float32 (s, d) and how many lists each gets, int64 (s,)."""
    store = spec.inputs.root.open()
    names = ("supers", "counts")
    arrays = read_object(store, f"{spec.folder}/{SUPERS}", lambda data: unpack_arrays(data, names, "super lists"))
    return arrays["supers"], arrays["counts"]


def _trained(vectors: NDArray[np.float32], nlist: int) -> NDArray[np.float32]:
    if nlist < TRAINED_TWICE_FROM:
        return split_long_lists(vectors, train_centroids(vectors, nlist, SEED), SEED)
    supers = train_super(vectors, nlist, SEED)
    own, _ = route(vectors, supers, 1)
    counts = sublist_counts(np.bincount(own, minlength=len(supers)), nlist)
    parts = [train_sublists(vectors[own == number], int(count), SEED) for number, count in enumerate(counts)]
    return np.concatenate([part.centroids for part in parts])


def _sample_ids(spec: ListsSpec) -> NDArray[np.int64]:
    if not spec.groups:
        return sample_ids(spec.inputs, ROWS_PER_LIST * spec.nlist, 1)
    every = head_ids(spec.inputs, read_forest(spec.inputs.root.open(), spec.groups))
    every = without_many_siblings(spec.inputs, every, spec.groups)
    return np.asarray(every[stable_sample_limit(every, ROWS_PER_LIST * spec.nlist, 1)])


def _vectors(spec: ListsSpec, ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit vectors of those that have a direction, and their ids; a made-up one where none has, for a list that nothing
    is in.
    """
    rows = spec.inputs.population().take(ids)
    if spec.space:
        space = read_space(spec.inputs.root.open(), spec.space)
        vectors = project_copy(space, rows.embeddings, rows.signatures)
    else:
        vectors = project_semantic(rows.embeddings)
    usable = searchable_rows(vectors)
    if not usable.any():
        return np.eye(1, vectors.shape[1], dtype=np.float32), np.zeros(1, np.int64)
    return vectors[usable], rows.ids[usable]
