"""The model of an audit: the default one of the package, or a user's own, kept in the root for every worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ModelError, NotFound, UsageError
from pipeline.kernels.embed import Embedder, ModelInput, canary_embeddings, compare_canary
from pipeline.layout.fingerprint import fingerprint, plain
from pipeline.layout.root import Root, kept, read_address
from pipeline.layout.tables import has_array, read_array, read_json, write_array, write_json
from pipeline.models import Model, default_model, open_model, parse_input
from pipeline.models.cache import ResolvedModel, resolve_model, say_once
from pipeline.models.named import HIGH_ACCURACY, NamedModel, is_model_name, named_model
from pipeline.storage import StorageConfig, Store

FOLDER = "models"


@dataclass(frozen=True)
class ModelRef:
    """How a worker finds the model: name and sha256, its input, its key in the root ("" = the package's own).

    vectors: folder of a user's own vectors, which take the place of a model; order: key of the row of each image, "" =
    its offset; is_alone: there are no images beside them.
    """

    name: str
    sha256: str
    input: ModelInput
    dimension: int
    key: str = ""
    canary: str = ""
    vectors: str = ""
    order: str = ""
    is_alone: bool = False


def open_chosen(path: str, description: Mapping[str, Any], cache: str, storage: StorageConfig) -> ResolvedModel:
    """The model of a name (docs/models.md; `cache` is where its file is) or at a path, checked, with its licence note.

    Raises ModelError for one that cannot be used: external data, an output that is not one vector per image, an
    input that cannot be inferred; or a named one that is neither in the cache nor can be downloaded.
    """
    if is_model_name(path):
        return resolve_model(path, cache, storage)
    try:
        data = read_address(path, storage)
    except NotFound:
        if "/" in path or "." in path:
            raise
        named_model(path)  # which names those that there are
        raise
    return ResolvedModel(open_model(data, path.rpartition("/")[2], description), "")


def store_model(root: Root, path: str, description: Mapping[str, Any], cache: str = "") -> ModelRef:
    """The default model, or the one of a name or a path, checked and copied into the root once.

    One of a name that the root has is not looked for elsewhere: a later run may have no network and an empty cache.
    """
    if not path:
        model = default_model()
        return ModelRef(model.name, model.sha256, model.input, model.dimension)
    store = root.open()
    record = _record_key(named_model(path)) if is_model_name(path) and path != HIGH_ACCURACY else ""
    if record and (known := _recorded(store, record)):
        say_once(named_model(path).note)
        return known
    model = open_chosen(path, description, cache, root.storage).model
    key = f"{FOLDER}/{model.sha256[:20]}.onnx"
    store.put_if_absent(key, model.data)
    ref = ModelRef(model.name, model.sha256, model.input, model.dimension, key, _write_canary(store, model))
    if record:
        write_json(store, record, plain(ref))
    return ref


def _record_key(named: NamedModel) -> str:
    """Where a root notes which of its files a row of the table became; another one for any other row of that name."""
    row = fingerprint("model", 1, sha256=named.sha256, tensor=named.tensor, token=named.token, input=named.input)
    return f"{FOLDER}/{named.name}-{row}.json"


def _recorded(store: Store, key: str) -> ModelRef | None:
    """What is noted there, its canary made anew where that is lost; None where nothing is, or the model's own file is
    gone.
    """
    ref = _noted(store, key)
    if ref is None or not store.exists(ref.key):
        return None
    if not has_array(store, FOLDER, ref.canary):
        ref = replace(ref, canary=_write_canary(store, read_model(store, ref)))
        write_json(store, key, plain(ref))  # on another type of CPU it has another name
    return ref


def _noted(store: Store, key: str) -> ModelRef | None:
    """The record of a key; None where there is none, or one of a version that notes something else."""
    if not store.exists(key):
        return None
    record = read_json(store, key)
    try:
        return ModelRef(**{**record, "input": parse_input(record["input"])})
    except (TypeError, KeyError, AttributeError, UsageError):
        return None


def _write_canary(store: Store, model: Model) -> str:
    return write_array(store, FOLDER, f"canary-{model.sha256[:20]}", canary_embeddings(model.load()))


def read_model(store: Store, ref: ModelRef) -> Model:
    """The model with its bytes."""
    if not ref.key:
        return default_model()
    if ref.vectors:
        return Model(ref.name, ref.sha256, b"", ref.input, ref.dimension, default_model().signature_moments)
    model = open_model(store.read(ref.key), ref.name, dict(vars(ref.input)))
    if model.sha256 != ref.sha256:
        raise ModelError(
            f"{store.uri}/{ref.key}: its sha256 is {model.sha256}, wanted {ref.sha256}. Delete that file and run again."
        )
    return model


def load_model(store: Store, ref: ModelRef) -> Embedder:
    """A session of this process whose canary images gave what they give elsewhere. Raises ModelError otherwise."""
    return kept(store, f"model {ref.sha256} {ref.input}", lambda: _load(store, ref))


def _load(store: Store, ref: ModelRef) -> Embedder:
    embedder = read_model(store, ref).load()
    if ref.canary:
        expected: npt.NDArray[np.float16] = np.array(read_array(store, FOLDER, ref.canary))
        compare_canary(expected, canary_embeddings(embedder))
    return embedder
