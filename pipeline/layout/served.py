"""Served indexes: the representatives of an audit by list, for searches that read only the lists they probe.

One shuffle file per partition holds a batch per list of the partition, by id; `served.json` is written when all are
there. What an audit was made of, so that a later call can serve it, lies beside its run.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ArtifactError, NotFound
from pipeline.kernels.database import Database, ordered_database
from pipeline.kernels.embed import ModelInput
from pipeline.kernels.measure import MeasureParams
from pipeline.layout.audits import audit_folder
from pipeline.layout.fingerprint import plain
from pipeline.layout.indexes import Index, partition_of
from pipeline.layout.inputs import Inputs
from pipeline.layout.local_copy import cache_store, forget, mapped
from pipeline.layout.models import ModelRef
from pipeline.layout.root import Root
from pipeline.layout.shuffle import read_batch
from pipeline.layout.tables import damaged, json_bytes, read_json
from pipeline.storage import Store

SERVED = "served.json"
_INPUTS = ("snapshot", "features", "annotations", "exact", "dimension")


@dataclass(frozen=True)
class Recipe:
    """What an audit was made of: its artifacts, the model and how images are brought to it, the space, both indexes,
    and the folder of what a detector found, "" where its boxes are of none.
    """

    inputs: Inputs
    model: ModelRef
    measure: MeasureParams
    space: str
    copy: Index
    semantic: Index
    representatives: int
    detections: str = ""


@dataclass(frozen=True)
class ServedSpace:
    """The served index of one space: its folder, whose lists it has, length of the vectors.

    space: folder of the copy space, "" for the semantic one.
    """

    root: Root
    folder: str
    space: str
    index: Index
    dimension: int

    @property
    def name(self) -> str:
        """The space: copy or semantic."""
        return "copy" if self.space else "semantic"

    def lists_of(self, partition: int) -> NDArray[np.int64]:
        """The lists of a partition, ascending."""
        return np.flatnonzero(partition_of(self.root.open(), self.index) == partition)

    def read(self, partition: int, lists: NDArray[np.int64] | None = None) -> Database:
        """The rows of some lists of a partition (None: all), in one split; no other list is read.

        Of an exact index, whose partitions are one list each, the latest two stay in this process.
        """
        return self._read(partition, lists) if self.index.folder else _whole(self, partition)

    def _read(self, partition: int, lists: NDArray[np.int64] | None) -> Database:
        store, key = self.root.open(), served_key(self.folder, partition)
        every = self.lists_of(partition)
        wanted = every if lists is None else lists
        batches = [_batch(store, key, int(at)) for at in np.searchsorted(every, wanted)]  # by list, and then by id
        own = np.repeat(wanted, [batch.num_rows for batch in batches]).astype(np.int32)
        ids = [batch.column("image_id").to_numpy() for batch in batches]
        vectors = [_vectors(batch, self.dimension) for batch in batches]
        found = np.concatenate([np.empty(0, np.int64), *ids])
        rows = np.concatenate([np.empty((0, self.dimension), np.float16), *vectors])
        return ordered_database(found, rows, np.ones(len(found), np.uint64), own)


@lru_cache(maxsize=2)
def _whole(served: ServedSpace, partition: int) -> Database:
    return served._read(partition, None)


def served_schema(dimension: int) -> pa.Schema:
    """Schema of the batches: id, splits of the exact group, the searched vector as float16."""
    fields = [("image_id", pa.int64()), ("split_mask", pa.uint64()), ("vector", pa.binary(2 * dimension))]
    return pa.schema([pa.field(*item) for item in fields])


def served_key(folder: str, partition: int) -> str:
    """Key of the lists of a partition."""
    return f"{folder}/lists-{partition:06d}.shuffle"


def list_batch(database: Database, rows: slice) -> pa.RecordBatch:
    """Some rows of a database, as a batch of a partition's file."""
    dimension = database.vectors.shape[1]
    vectors = pa.py_buffer(np.ascontiguousarray(database.vectors[rows], dtype=np.float16))
    ids = pa.array(database.ids[rows])
    vector = pa.Array.from_buffers(pa.binary(2 * dimension), len(ids), [None, vectors])
    return pa.record_batch([ids, pa.array(database.split_mask[rows]), vector], schema=served_schema(dimension))


def write_recipe(store: Store, audit_id: str, recipe: Recipe) -> None:
    """Commits what an audit was made of; the first one stays, and its artifacts give the same rows."""
    value = plain({name: getattr(recipe, name) for name in Recipe.__dataclass_fields__ if name != "inputs"})
    value["inputs"] = {name: getattr(recipe.inputs, name) for name in _INPUTS}
    store.put_if_absent(f"{audit_folder(audit_id)}/{SERVED}", json_bytes(value))


def read_recipe(root: Root, audit_id: str) -> Recipe:
    """What an audit was made of. Raises ArtifactError for one of a version that did not say so."""
    store, key = root.open(), f"{audit_folder(audit_id)}/{SERVED}"
    try:
        value = read_json(store, key)
        indexes = {name: Index(**value[name]) for name in ("copy", "semantic")}
        return Recipe(
            Inputs(root, **value["inputs"]),
            _model(value["model"]),
            MeasureParams(**value["measure"]),
            value["space"],
            indexes["copy"],
            indexes["semantic"],
            value["representatives"],
            value.get("detections", ""),
        )
    except NotFound as error:
        raise ArtifactError(
            f"{store.uri}/{key}: it is not there: an earlier version made this audit. Run it again, with the same "
            "arguments: nothing is computed anew, and it can be searched then."
        ) from error
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{store.uri}/{key}: not what an audit was made of ({error}). Run again.") from error


def _model(value: dict[str, Any]) -> ModelRef:
    given = dict(value.pop("input"))
    given |= {name: tuple(given[name]) for name in ("mean", "std")}
    return ModelRef(input=ModelInput(**given), **value)


def _batch(store: Store, key: str, number: int) -> pa.RecordBatch:
    """A batch of a partition's file, mapped; of an object store, from this machine's copy."""
    if store.local_path(key) is not None:
        return read_batch(store, key, number)
    name = mapped(store, key).name
    try:
        return read_batch(cache_store(), name, number)
    except ArtifactError:  # a copy that was removed since, or is damaged
        forget(store, key)
    try:
        return read_batch(cache_store(), mapped(store, key).name, number)
    except ArtifactError as error:
        raise damaged(store, key, error) from error


def _vectors(batch: pa.RecordBatch, dimension: int) -> NDArray[np.float16]:
    data = np.frombuffer(batch.column("vector").buffers()[1] or b"", dtype=np.float16)
    return data[: batch.num_rows * dimension].reshape(batch.num_rows, dimension)
