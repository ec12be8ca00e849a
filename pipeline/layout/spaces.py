"""Spaces at rest: moments, trained transforms and the null they were given."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.kernels.moments import Moments
from pipeline.kernels.space import CopySpace, space_from_bytes
from pipeline.kernels.threshold import NullTail
from pipeline.layout.root import kept
from pipeline.layout.tables import read_json, read_object
from pipeline.storage import Store

FOLDER = "spaces"
COPY_SPACE, SPACE, MOMENTS = "copy_space.npz", "space.json", "moments.npz"


@dataclass(frozen=True)
class DataMoments:
    """Moments of a data set's normalised embeddings and signatures."""

    embedding: Moments
    signature: Moments


@dataclass(frozen=True)
class SpaceRecord:
    """What a space was trained on, and how: features, representatives, snapshot, spread of the images, null tail.

    unrelated: how many of the representatives are no siblings of another (`layout.siblings.most_unrelated`); 0 where
    that was not asked yet.
    """

    folder: str
    features: str
    moments: str
    representatives: int
    snapshot: int
    spread: float
    tail: NullTail | None
    params: dict[str, Any]
    unrelated: int = 0


def list_spaces(store: Store) -> list[SpaceRecord]:
    """Every trained space of a root that has both of its files."""
    keys = {info.key for info in store.list(f"{FOLDER}/")}
    folders = sorted({key.rsplit("/", 1)[0] for key in keys})
    whole = [folder for folder in folders if {f"{folder}/{SPACE}", f"{folder}/{COPY_SPACE}"} <= keys]
    return [read_space_record(store, folder) for folder in whole]


def read_space_record(store: Store, folder: str) -> SpaceRecord:
    """The record of a space."""
    value: dict[str, Any] = read_json(store, f"{folder}/{SPACE}")
    tail, params = value.pop("tail"), value.pop("params", {})
    return SpaceRecord(folder=folder, tail=None if tail is None else NullTail(**tail), params=params, **value)


def read_space(store: Store, folder: str) -> CopySpace:
    """The copy space of a spaces folder, read once per process."""
    key = f"{folder}/{COPY_SPACE}"
    return kept(store, key, lambda: read_object(store, key, space_from_bytes))


def data_moments_to_bytes(moments: DataMoments) -> bytes:
    """Moments as npz without pickle."""
    sink = io.BytesIO()
    parts = {"embedding": moments.embedding, "signature": moments.signature}
    arrays = {f"{name}_{field}": getattr(part, field) for name, part in parts.items() for field in _FIELDS}
    np.savez(sink, **arrays)
    return sink.getvalue()


def read_data_moments(store: Store, folder: str) -> DataMoments:
    """The moments of a folder."""
    return read_object(store, f"{folder}/{MOMENTS}", _data_moments_from_bytes)


def _data_moments_from_bytes(data: bytes) -> DataMoments:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return DataMoments(_moments(arrays, "embedding"), _moments(arrays, "signature"))


_FIELDS = ("count", "mean", "cov")


def _moments(arrays: Any, name: str) -> Moments:
    return Moments(int(arrays[f"{name}_count"]), arrays[f"{name}_mean"], arrays[f"{name}_cov"])
