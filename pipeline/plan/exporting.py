"""Exporting: the index of a space as one ordinary Faiss file, with a Parquet beside it that says what its ids are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.kernels.faiss_file import flat_pieces, ivf_pieces
from pipeline.layout.annotations import names_of
from pipeline.layout.images import paths_of
from pipeline.layout.indexes import partition_of, read_lists
from pipeline.layout.parts import cut
from pipeline.layout.served import Recipe, ServedSpace
from pipeline.plan.nearest import NAMES, copies_of

NAMED_ROWS = 65_536


def file_bytes(recipe: Recipe, served: ServedSpace) -> int:
    """About the size of the file, and of the memory of who reads it."""
    return recipe.representatives * (4 * served.dimension + 8) + served.index.lists * 4 * served.dimension


def faiss_pieces(served: ServedSpace) -> Iterator[bytes]:
    """The Faiss file: the audit's lists and every representative in its own, or all of them where search is exact."""
    return _ivf(served) if served.index.folder else _flat(served)


def _flat(served: ServedSpace) -> Iterator[bytes]:
    ids = [served.read(partition).ids for partition in range(served.index.count)]
    blocks = (served.read(partition) for partition in range(served.index.count))
    return flat_pieces(np.concatenate(ids), served.dimension, (block.unit(slice(None)) for block in blocks))


def _ivf(served: ServedSpace) -> Iterator[bytes]:
    store = served.root.open()
    trained = read_lists(store, served.index.folder)
    partition = partition_of(store, served.index)
    sizes = np.zeros(len(partition), np.int64)
    for number in range(served.index.count):
        found, counts = np.unique(served.read(number).list_id, return_counts=True)
        sizes[found] = counts

    def lists() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for number, place in enumerate(partition.tolist()):
            rows = served.read(place, np.array([number], np.int64))
            yield rows.ids, rows.unit(slice(None))

    return ivf_pieces(trained.lists.centroids, served.index.probes, sizes, lists())


def named_parts(recipe: Recipe) -> Iterator[pa.Table]:
    """What each id of the file is: a row per representative, by id."""
    inputs = recipe.inputs
    snapshot, vocabulary = inputs.opened_snapshot(), inputs.vocabulary()
    for lo, hi in cut(0, max(snapshot.total, 1), NAMED_ROWS):
        ids = inputs.population().ids(lo, hi)
        names, codes = inputs.catalog_rows_of(ids, NAMES), inputs.codes_for(ids)
        yield pa.table(
            {
                "image_id": ids,
                "uri": names["uri"].cast(pa.string()),
                "path": paths_of(names, snapshot),
                "split": names_of(codes.split, vocabulary.splits),
                "label": names_of(codes.label, vocabulary.labels),
                "copies": copies_of(inputs, ids),
            }
        )
