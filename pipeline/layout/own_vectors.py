"""A user's own vectors in the root: copied once from their file, in its order, and read by image_id."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ArtifactError
from pipeline.kernels.embed import ModelInput
from pipeline.layout.models import FOLDER, ModelRef
from pipeline.layout.root import kept
from pipeline.layout.tables import json_bytes, read_array_rows, read_json, read_object, way_out, write_array
from pipeline.sources.vectors import BLOCK_BYTES, VectorFile
from pipeline.storage import Store

VECTORS = "vectors.json"
SIDE = 160  # of the raster that is made in place of a model's input: what the signature is taken of anyway


def own_model(file: VectorFile, is_alone: bool) -> ModelRef:
    """The vectors of a file as the model of an audit, named by the hash of the file.

    is_alone: there are no images, only names.
    """
    digest = hashlib.sha256()
    for piece in _pieces(file):
        digest.update(piece)
    folder = f"{FOLDER}/vectors-{digest.hexdigest()[:20]}"
    name = file.address.rpartition("/")[2]
    measured = ModelInput(SIDE, SIDE)
    key = f"{folder}/{VECTORS}"
    return ModelRef(name, digest.hexdigest(), measured, file.dimension, key, vectors=folder, is_alone=is_alone)


def import_vectors(store: Store, file: VectorFile, ref: ModelRef) -> None:
    """Copies the vectors into the root as they are stored, unless they are there. Raises UsageError for NaN."""
    if store.exists(ref.key):
        return
    names, ends, at = [], [], 0
    for block in file.blocks():
        at += len(block)
        names.append(write_array(store, ref.vectors, "block", block))
        ends.append(at)
    store.put_if_absent(ref.key, json_bytes({"blocks": names, "ends": ends, "dimension": file.dimension}))


def write_order(store: Store, ref: ModelRef, snapshot: str, rows: NDArray[np.int64]) -> str:
    """Commits the row of each image_id of a snapshot (its digest), -1 where it has none; returns the key."""
    sink = io.BytesIO()
    np.save(sink, rows, allow_pickle=False)
    key = f"{ref.vectors}/order-{snapshot}.npy"
    store.put_if_absent(key, sink.getvalue())
    return key


def given_vectors(store: Store, ref: ModelRef, ids: NDArray[np.int64]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Vectors float16 (n, d) of some ids, and which of them have one; the others are zeros."""
    value = read_json(store, ref.key)
    ends = np.array(value["ends"], np.int64)
    rows = ids if not ref.order else _order(store, ref)[ids]
    has_row = (rows >= 0) & (rows < (ends[-1] if len(ends) else 0))
    found = np.zeros((len(ids), ref.dimension), np.float16)
    wanted, inverse = np.unique(rows[has_row], return_inverse=True)
    read = np.zeros((len(wanted), ref.dimension), np.float16)
    block = np.searchsorted(ends, wanted, "right")
    for number in np.unique(block).tolist():
        at = np.flatnonzero(block == number)
        start = int(ends[number - 1]) if number else 0
        try:
            read[at] = read_array_rows(store, ref.vectors, value["blocks"][number], wanted[at] - start)
        except ArtifactError as error:
            raise ArtifactError(f"{error} {way_out(ref.key)}") from error
    found[has_row] = read[inverse.ravel()]
    return found, has_row


def _order(store: Store, ref: ModelRef) -> NDArray[np.int64]:
    rows: NDArray[np.int64] = kept(
        store, ref.order, lambda: read_object(store, ref.order, lambda data: np.load(io.BytesIO(data)))
    )
    return rows


def _pieces(file: VectorFile) -> Iterator[bytes]:
    for at in range(0, file.info.size, BLOCK_BYTES):
        yield file.store.read_range(file.info.key, at, BLOCK_BYTES, expect=file.info)
