"""Queries: images or vectors that are searched for, brought to the features that an audit stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StorageError
from pipeline.kernels.embed import embed_for_storage
from pipeline.kernels.hashing import content_hash
from pipeline.kernels.measure import Measured, measure
from pipeline.layout.exact import SIGNATURE_LENGTH
from pipeline.layout.models import load_model
from pipeline.layout.root import opened
from pipeline.layout.served import Recipe
from pipeline.runner import FATAL
from pipeline.schemas import Status
from pipeline.stages.reads import failed, status_of
from pipeline.storage import StorageConfig, is_remote, read_ahead

QUERY_BYTES = 2**20  # taken as the size of an image that is read ahead


@dataclass(frozen=True)
class QueryImage:
    """An image to search for: its name in the answer, and its bytes, or the store and key that have them."""

    name: str
    data: bytes | None = None
    place: str = ""
    key: str = ""


@dataclass(frozen=True)
class SearchedFor:
    """What is searched for, (n,) each: names, statuses and messages; content hashes, None for what is no file.

    embeddings float16 (n, d), signatures uint8 (n, 256): zeros where the status is not ok, and signatures too where
    only vectors were given.
    """

    names: tuple[str, ...]
    status: tuple[Status, ...]
    message: tuple[str, ...]
    content: tuple[bytes | None, ...]
    embeddings: NDArray[np.float16]
    signatures: NDArray[np.uint8]


def image_queries(recipe: Recipe, images: Sequence[QueryImage]) -> SearchedFor:
    """The features of some images, read, decoded and embedded as the audit's own were."""
    root = recipe.inputs.root
    read = partial(_measured, recipe, root.storage)
    remote = any(item.data is None and is_remote(item.place) for item in images)
    found = [*(read_ahead(images, read, lambda _: QUERY_BYTES) if remote else map(read, images))]
    embeddings = np.zeros((len(images), recipe.model.dimension), np.float16)
    signatures = np.zeros((len(images), SIGNATURE_LENGTH), np.uint8)
    at = [number for number, item in enumerate(found) if item.model_input is not None]
    if at:
        model = load_model(root.open(), recipe.model)
        given = embed_for_storage(model, np.stack([item.model_input for item in found if item.model_input is not None]))
        embeddings[at] = given.vectors
        is_usable = given.is_finite & np.array([row.any() for row in given.vectors], bool)
        for number, is_finite in zip(at, is_usable.tolist(), strict=True):
            signature = found[number].signature
            if is_finite and signature is not None:
                signatures[number] = signature
            else:
                why = "the model's output holds NaN, infinity or zeros only"
                found[number] = Measured(Status.UNREADABLE, why, content_hash=found[number].content_hash)
    return SearchedFor(
        tuple(item.name for item in images),
        tuple(item.status for item in found),
        tuple(item.message for item in found),
        tuple(item.content_hash for item in found),
        embeddings,
        signatures,
    )


def vector_queries(names: Sequence[str], vectors: NDArray[np.float16]) -> SearchedFor:
    """Given embeddings as queries; one of zeros has no direction and finds nothing."""
    count = len(vectors)
    has_direction = [bool(row.any()) for row in vectors]
    return SearchedFor(
        tuple(names),
        (Status.OK,) * count,
        tuple("" if there else "a vector of zeros is similar to nothing" for there in has_direction),
        (None,) * count,
        vectors,
        np.zeros((count, SIGNATURE_LENGTH), np.uint8),
    )


def _measured(recipe: Recipe, storage: StorageConfig, image: QueryImage) -> Measured:
    data = image.data
    if data is None:
        try:
            store = opened(image.place, storage)
            size, most = store.stat(image.key).size, recipe.measure.max_bytes
            if size > most:
                return Measured(Status.TOO_LARGE, f"{size:,} bytes, files of at most {most:,} are read")
            data = store.read(image.key)
        except FATAL:
            raise
        except StorageError as error:
            return failed(status_of(error), str(error))
    found = measure(data, recipe.measure)
    return found if found.content_hash or not data else found._replace(content_hash=content_hash(data))
