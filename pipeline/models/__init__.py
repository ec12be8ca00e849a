"""The models: the default one that ships in this package, and how any other is opened from its bytes.

A user's own model may come with a description, a JSON object with any of the keys of `ModelInput` (width, height,
layout, dtype, mean, std, channel_order, scale), what is left out is taken from the graph; and with `output`, the tensor
that holds the embedding, and `token`, which vector of it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ArtifactError, ModelError, UsageError
from pipeline.kernels.embed import Embedder, ModelInput, check_canary, load_embedder
from pipeline.kernels.graph_output import with_output
from pipeline.kernels.moments import Moments, moments_from_bytes, moments_to_bytes

DEFAULT_NAME = "efficientnet_lite0_160_int8"
MAX_TOKEN = 2**31
MOMENTS_KEY = "image_audit.embedding_moments"
_EXAMPLE = '{"width": 224, "height": 224, "layout": "NCHW"}'


@dataclass(frozen=True, eq=False)
class Model:
    """A model's bytes and all that is known of it; small enough to be handed to every worker once.

    `embedding_moments` (unless its file holds them) and `canary` (float16 (c, d)) are None for a user's own model,
    `signature_moments` are of the signature alone and hold for any model. `sha256` is of `data`, in hexadecimal.
    """

    name: str
    sha256: str
    data: bytes = field(repr=False)
    input: ModelInput
    dimension: int
    signature_moments: Moments = field(repr=False)
    embedding_moments: Moments | None = field(default=None, repr=False)
    canary: NDArray[np.float16] | None = field(default=None, repr=False)

    def load(self) -> Embedder:
        """A session for this process; its canary is checked where one shipped. ModelError beyond cosine 1e-3."""
        embedder = load_embedder(self.data, self.input)
        if self.canary is not None:
            check_canary(embedder, self.canary)
        return embedder


@lru_cache(maxsize=1)
def default_model() -> Model:
    """The model in this package, checked against its record. ModelError if a file is missing or is another one."""
    record = json.loads(_package_file(f"{DEFAULT_NAME}.json"))
    data = _package_file(f"{DEFAULT_NAME}.onnx")
    statistics = _package_file(f"{DEFAULT_NAME}.npz")
    _check(f"{DEFAULT_NAME}.onnx", data, record["sha256"])
    _check(f"{DEFAULT_NAME}.npz", statistics, record["statistics_sha256"])
    with np.load(io.BytesIO(statistics), allow_pickle=False) as arrays:
        return Model(
            name=record["name"],
            sha256=record["sha256"],
            data=data,
            input=parse_input(record["input"]),
            dimension=int(arrays["emb_mean"].shape[0]),
            signature_moments=_moments(arrays, "sig"),
            embedding_moments=_moments(arrays, "emb"),
            canary=arrays["canary"],
        )


def open_model(data: bytes, name: str, description: ModelInput | Mapping[str, object] | None = None) -> Model:
    """A user's own ONNX or ORT model, from its bytes; `name` is for messages and the run's record.

    Its `data` is the model cut to the output that the description names, if any; moments that `moments_to_metadata` put
    into the file are taken from there. ModelError if it cannot be used or its input cannot be inferred, UsageError for
    a wrong description.
    """
    try:
        if isinstance(description, Mapping):
            data, description = _cut(data, description)
        embedder = load_embedder(data, description)
        moments = moments_from_metadata(embedder.metadata, embedder.dimension)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
    of_signature = default_model().signature_moments
    return Model(name, _sha256(data), data, embedder.input, embedder.dimension, of_signature, moments)


def _cut(data: bytes, description: Mapping[str, object]) -> tuple[bytes, dict[str, object]]:
    """The model with the output that the description asks for, and the rest of the description."""
    rest = dict(description)
    output, token = rest.pop("output", None), rest.pop("token", None)
    if not (output is None or (isinstance(output, str) and output)):
        raise UsageError(f"output is {output!r}, want the name of a tensor of the graph, such as last_hidden_state")
    if not (token is None or (type(token) is int and 0 <= token < MAX_TOKEN)):
        raise UsageError(f"token is {token!r}, want a whole number from 0, the class token of most transformers, on")
    if output is None and token is not None:
        raise UsageError("token says which vector of output is taken, and no output is named: name it too")
    return (data if output is None else with_output(data, output, token)), rest


def moments_to_metadata(moments: Moments) -> dict[str, str]:
    """Moments of normalised embeddings as an entry of a model's own metadata, float32, so that they travel with it."""
    short = Moments(moments.count, moments.mean.astype(np.float32), moments.cov.astype(np.float32))
    return {MOMENTS_KEY: base64.b64encode(moments_to_bytes(short)).decode()}


def moments_from_metadata(metadata: Mapping[str, str], dimension: int) -> Moments | None:
    """The moments that a model's file holds, None for most. ModelError where they are damaged or of another length."""
    if MOMENTS_KEY not in metadata:
        return None
    try:
        found = moments_from_bytes(base64.b64decode(metadata[MOMENTS_KEY], validate=True))
    except (ValueError, ArtifactError, UsageError) as error:
        raise ModelError(f"the moments in its metadata cannot be read ({error}); build it anew") from error
    moments = Moments(found.count, found.mean.astype(np.float64), found.cov.astype(np.float64))
    if moments.mean.shape != (dimension,) or not (np.isfinite(moments.mean).all() and np.isfinite(moments.cov).all()):
        raise ModelError(
            f"the moments in its metadata are of {moments.mean.shape[0]} numbers or not finite, its embedding has "
            f"{dimension}; build it anew"
        )
    return moments


def parse_description(text: bytes, where: str) -> dict[str, object]:
    """The content of a description file. UsageError, naming `where` it came from, if it is not a JSON object."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error}); want an object such as {_EXAMPLE}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{where}: holds a {type(found).__name__}, want an object such as {_EXAMPLE}")
    return found


def parse_input(record: Mapping[str, object]) -> ModelInput:
    """A whole `ModelInput` from its JSON form (`dataclasses.asdict`), as stored in records and manifests."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    return ModelInput(**values)  # type: ignore[arg-type]  # ModelInput checks the values itself


def _moments(arrays: Mapping[str, NDArray[np.generic]], name: str) -> Moments:
    mean, cov = (arrays[f"{name}_{part}"].astype(np.float64) for part in ("mean", "cov"))
    return Moments(int(arrays[f"{name}_count"]), mean, cov)


def _package_file(name: str) -> bytes:
    try:
        return resources.files(__name__).joinpath(name).read_bytes()
    except OSError as error:
        raise ModelError(
            f"{name} is missing from the installed package ({error}); install image-audit again"
        ) from error


def _check(name: str, data: bytes, wanted: str) -> None:
    found = _sha256(data)
    if found != wanted:
        raise ModelError(
            f"{name} in the installed package has sha256 {found}, its record says {wanted}; install image-audit again"
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
