"""Asking: from what a caller names (images, folders, vectors) to the rows of its nearest images."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import NotFound, UsageError
from pipeline.layout.root import opened
from pipeline.layout.served import Recipe, ServedSpace
from pipeline.plan.nearest import BLOCK, NEAREST, nearest, require_k
from pipeline.plan.serving import SPACES
from pipeline.sources.folder import LeftOut, encode_key, escape_bytes, image_objects
from pipeline.sources.vectors import stored_vectors
from pipeline.stages.queries import QueryImage, SearchedFor, image_queries, vector_queries
from pipeline.storage import StorageConfig, canonical_uri

Image: TypeAlias = str | bytes | os.PathLike[str]
Images: TypeAlias = "Image | Sequence[Image] | NDArray[np.floating[Any]]"
SHOWN = 5
_WANTED = "want a path, bytes, a list of them, or an array of embeddings (n, d)"


def require_call(recipe: Recipe, images: Images, k: int, space: str) -> None:
    """Raises UsageError for a search that cannot be, before anything is read."""
    require_k(k)
    if space not in SPACES:
        raise UsageError(f"space {space!r}, want {' or '.join(SPACES)}")
    if not isinstance(images, np.ndarray):
        _require_images(images)
        if recipe.model.vectors:
            raise UsageError(
                f"the vectors of this audit are your own ({recipe.model.name}), no model embeds an image: search with "
                "vectors (--features, or an array)"
            )
        return
    if space == "copy":
        raise UsageError(
            "space 'copy' compares embeddings and thumbnails, and vectors have no thumbnail: search for images, or "
            "take space 'semantic'"
        )
    if images.ndim != 2:
        raise UsageError(f"vectors are {images.dtype} {images.shape}, want (n, {recipe.inputs.dimension})")
    require_width(recipe, images.shape[1], "the array")


def _require_images(images: Any) -> None:
    """Raises UsageError for what is no image by its type: an open file would be taken for a list of lines."""
    is_one = isinstance(images, (str, bytes, bytearray)) or not isinstance(images, Collection)
    listed = [images] if is_one else images
    for item in listed:
        if not isinstance(item, (str, bytes, os.PathLike)):
            raise UsageError(f"an image is {type(item).__name__}; {_WANTED}")
        if not isinstance(item, bytes) and os.fsdecode(item).endswith((".npy", ".parquet")):
            raise UsageError(f"{os.fsdecode(item)!r} is no image: search with vectors by --features, or give the array")


def require_width(recipe: Recipe, dimension: int, where: str) -> None:
    """Raises UsageError for vectors that are not of the audit's model, as far as their length tells."""
    if dimension != recipe.inputs.dimension:
        raise UsageError(
            f"vectors of {where} have {dimension} numbers, those of this audit {recipe.inputs.dimension} (model "
            f"{recipe.model.name}): search with vectors of the same model"
        )


def ask(recipe: Recipe, served: Callable[[], ServedSpace], images: Images, k: int) -> Iterator[pa.Table]:
    """Rows of NEAREST for the images or vectors, some queries at a time; `served` gives the index when all are known.

    Raises NotFound for a named image that is not there, before any is searched for; one that cannot be read or decoded
    is a row with its status.
    """
    if isinstance(images, np.ndarray):
        names = [f"row {number}" for number in range(len(images))]
        yield from ask_vectors(recipe, served, names, images, k)
        return
    asked = query_images(images, recipe.inputs.root.storage)
    index = served()
    for start in range(0, len(asked), BLOCK):
        yield nearest(recipe, index, image_queries(recipe, asked[start : start + BLOCK]), k)


def ask_vectors(
    recipe: Recipe,
    served: Callable[[], ServedSpace],
    names: Sequence[str],
    vectors: NDArray[np.floating[Any]],
    k: int,
) -> Iterator[pa.Table]:
    """Rows of NEAREST for given embeddings (n, d), named one by one."""
    stored = stored_vectors(np.asarray(vectors), 0, "of the search")
    index = served()
    for start in range(0, len(stored), BLOCK):
        queries: SearchedFor = vector_queries(names[start : start + BLOCK], stored[start : start + BLOCK])
        yield nearest(recipe, index, queries, k)


def together(parts: Iterator[pa.Table]) -> pa.Table:
    """All rows as one table."""
    return pa.concat_tables([NEAREST.empty_table(), *parts]).combine_chunks()


def query_images(images: Image | Sequence[Image], storage: StorageConfig) -> list[QueryImage]:
    """The images that are named: bytes, files or objects, and all of a folder or prefix."""
    listed = [images] if isinstance(images, (str, bytes, os.PathLike)) else [*images]
    found: list[QueryImage] = []
    missing: list[str] = []
    for number, item in enumerate(listed):
        if isinstance(item, bytes):
            found.append(QueryImage(f"image {number}", item))
        else:
            named = _named(os.fspath(item), storage)
            found += named
            missing += [] if named else [os.fspath(item)]
    if missing:
        more = f" (+{len(missing) - SHOWN} more)" if len(missing) > SHOWN else ""
        raise NotFound(f"no image to search for: {', '.join(missing[:SHOWN])}{more}. Check the names.")
    return found


def _named(address: str, storage: StorageConfig) -> list[QueryImage]:
    """The image of an address, or those below it."""
    uri = canonical_uri(address, storage)
    place, slash, key = uri.rpartition("/")
    if key and not place.endswith("/"):
        store = opened(place or slash, storage)
        if store.exists(key):
            return [QueryImage(escape_bytes(address), None, place or slash, key)]
    try:
        listed = image_objects(opened(uri, storage).list(), LeftOut())
        prefix = escape_bytes(address).rstrip("/")
        return [QueryImage(f"{prefix}/{encode_key(info.key)[0]}", None, uri, info.key) for info in listed]
    except NotFound:
        return []
