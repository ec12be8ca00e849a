"""Indexes at rest: the lists of a space, the partitions that they are grouped into, and how vectors are routed."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.kernels.npz import pack_arrays, unpack_arrays
from pipeline.kernels.routing import Lists, route_lists
from pipeline.kernels.sampling import mix
from pipeline.layout.root import kept
from pipeline.layout.tables import read_object
from pipeline.storage import Store

LISTS = "lists.npz"
_BLOCK_SALT = 5


@dataclass(frozen=True)
class TrainedLists:
    """Lists and how many training rows each has, int64 (nlist,)."""

    lists: Lists
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """How vectors are routed, small enough to travel with every task.

    folder: of the trained lists, "" for exact search; partitions: file in it that maps lists to partitions. Exact
    search has as many lists as partitions, filled by a hash of the ids, and every query probes all of them. links: of a
    row in the graph that each partition is searched by instead, 0 = none. metric: the distance that ranks, "" = cosine.
    """

    folder: str
    partitions: str
    lists: int
    count: int
    probes: int
    links: int = 0
    metric: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether every row is compared with every query."""
        return not self.folder and not self.links


def exact_index(partitions: int, links: int = 0, metric: str = "") -> Index:
    """The index of a search of everything in so many partitions: exact, or by a graph in each."""
    return Index("", "", partitions, partitions, partitions, links, metric)


def partition_of(store: Store, index: Index) -> NDArray[np.int32]:
    """The partition of each list, int32 (lists,)."""
    if not index.folder:
        return np.arange(index.lists, dtype=np.int32)
    return read_partitions(store, f"{index.folder}/{index.partitions}")


def read_partitions(store: Store, key: str) -> NDArray[np.int32]:
    """A committed partition map, read once per process."""
    found: NDArray[np.int32] = kept(store, key, lambda: read_object(store, key, _load_array))
    return found


def read_lists(store: Store, folder: str) -> TrainedLists:
    """The lists of an index folder, read once per process."""
    key = f"{folder}/{LISTS}"
    return kept(store, key, lambda: read_object(store, key, _lists_from_bytes))


def lists_to_bytes(trained: TrainedLists) -> bytes:
    """The lists as npz; equal lists give equal bytes."""
    lists = trained.lists
    arrays = {"centroids": lists.centroids, "supers": lists.supers, "start": lists.start, "rows": trained.rows}
    return pack_arrays(arrays)


def _lists_from_bytes(data: bytes) -> TrainedLists:
    arrays = unpack_arrays(data, ("centroids", "supers", "start", "rows"), "stored lists")
    return TrainedLists(Lists(arrays["centroids"], arrays["supers"], arrays["start"]), arrays["rows"])


def _load_array(data: bytes) -> NDArray[np.int32]:
    array: NDArray[np.int32] = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def route_vectors(
    store: Store, index: Index, ids: NDArray[np.int64], unit: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The own list int32 (n,) and the probed lists int32 (n, probes) of some vectors."""
    if not index.folder:
        own = (mix(ids, _BLOCK_SALT) % np.uint64(index.lists)).astype(np.int32)
        return own, np.broadcast_to(np.arange(index.lists, dtype=np.int32), (len(ids), index.lists))
    return route_lists(unit, read_lists(store, index.folder).lists, min(index.probes, index.lists))
