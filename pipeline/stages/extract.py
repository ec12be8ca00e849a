"""Extract stage: one read and one decode per image give its row, its embedding and its signature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import NotFound
from pipeline.kernels.crop import BoxParams
from pipeline.kernels.embed import Embedder, embed_for_storage
from pipeline.kernels.measure import Measured, MeasureParams, measure, measure_pixels
from pipeline.layout.features import AGAIN, BASE, Features, commit_features, list_features, read_feature_rows
from pipeline.layout.images import NO_PARENT, PARENT_COLUMNS, image_object, parents_of
from pipeline.layout.models import ModelRef, load_model
from pipeline.layout.own_vectors import given_vectors
from pipeline.layout.parts import part_name
from pipeline.layout.pixels import Cutting
from pipeline.layout.root import Root
from pipeline.layout.snapshots import Snapshot, catalog_rows, catalog_rows_of, read_snapshot, removed_ids
from pipeline.pulse import at_image
from pipeline.runner import Counters
from pipeline.schemas import FEATURE_ROWS, TRANSIENT, Status
from pipeline.stages.reads import Read, failed, read_images
from pipeline.stages.source_files import source_objects

VERSION = 3  # 3: floats, deep AVIF, HEIF, boxes, frames; 2: a raster that does not depend on the model
BATCH = 8  # int8 output is bitwise equal for 1 to 16; larger batches leave the second-level cache
SILENT_IMAGES = 32  # in a row without an answer: is the store there at all?
SIGNATURE_LENGTH = 256


@dataclass(frozen=True)
class ExtractSpec:
    """Offsets [lo, hi) of a snapshot, extracted with a model into a features folder.

    `only`: ids to try again (a later attempt, committed beside the first); None for all of the range.
    """

    root: Root
    snapshot: int
    folder: str
    model: ModelRef
    measure: MeasureParams
    boxes: BoxParams
    lo: int
    hi: int
    only: tuple[int, ...] | None = None
    attempt: int = 0


def extract(spec: ExtractSpec) -> Counters:
    """Extracts and commits a part; counters hold images and one count per status.

    Raises StorageUnavailable where the store gives no answer at all: that is no property of its images.
    """
    store = spec.root.open()
    snapshot = read_snapshot(store, spec.snapshot)
    rows = _wanted_rows(spec, snapshot)
    if spec.model.vectors:
        found = [*_with_given(spec, snapshot, rows)]
    else:
        found = [*_measure_all(spec, snapshot, rows, load_model(store, spec.model))]
    if spec.only is not None and _is_as_before(spec, [item.status for item, _ in found]):
        return {"images": len(found), "transient": len(found)}
    return _commit(spec, rows, found, spec.model.dimension)


def halves(spec: ExtractSpec) -> list[ExtractSpec]:
    """The spec cut in two; itself where it holds one image, or nothing but frames or boxes of one file.

    Such a file is never cut, for it is what kills a process: a video would die once more for each of its frames.
    """
    store = spec.root.open()
    parents = parents_of(_wanted_rows(spec, read_snapshot(store, spec.snapshot), PARENT_COLUMNS))
    ends = 1 + np.flatnonzero((parents[1:] != parents[:-1]) | (parents[1:] == NO_PARENT))
    if not len(ends):
        return [spec]
    middle = int(ends[np.abs(ends - len(parents) / 2).argmin()])
    if spec.only is not None:
        cuts = (spec.only[:middle], spec.only[middle:])
        return [replace(spec, only=ids, lo=ids[0], hi=ids[-1] + 1) for ids in cuts]
    at = spec.lo + middle
    return [replace(spec, lo=lo, hi=hi) for lo, hi in ((spec.lo, at), (at, spec.hi))]


def quarantine(spec: ExtractSpec, cause: str) -> Counters:
    """Commits one image, or the frames or boxes of one file, that killed or hung its process twice, with that status
    and no features.
    """
    store = spec.root.open()
    rows = _wanted_rows(spec, read_snapshot(store, spec.snapshot))
    status = Status(cause)
    if spec.only is not None and _is_as_before(spec, [status] * rows.num_rows):
        return {"images": rows.num_rows, "transient": rows.num_rows}
    found = [failed(status, "its process died or hung twice while it was decoded")] * rows.num_rows
    return _commit(spec, rows, [(item, None) for item in found], spec.model.dimension)


def part_key(spec: ExtractSpec) -> str:
    """Key of the part that the spec commits."""
    return f"{spec.folder}/{part_name(BASE if spec.only is None else AGAIN, spec.lo, spec.hi, spec.attempt)}"


def _wanted_rows(spec: ExtractSpec, snapshot: Snapshot, columns: Sequence[str] | None = None) -> pa.Table:
    store = spec.root.open()
    if spec.only is None:
        return catalog_rows(store, snapshot, spec.lo, spec.hi, columns)
    return catalog_rows_of(store, snapshot, np.array(spec.only, np.int64), columns)


def _is_as_before(spec: ExtractSpec, statuses: list[Status]) -> bool:
    """Whether another attempt met the same causes again: a part of it would only make later stages look stale."""
    store = spec.root.open()
    before = read_feature_rows(store, list_features(store, spec.folder), spec.lo, spec.hi, ["image_id", "status"])
    known = dict(zip(before["image_id"].to_pylist(), before["status"].to_pylist(), strict=True))
    return all(known[image_id] == status.value for image_id, status in zip(spec.only or (), statuses, strict=True))


def _measure_all(
    spec: ExtractSpec, snapshot: Snapshot, rows: pa.Table, model: Embedder
) -> Iterator[tuple[Measured, np.ndarray[Any, Any] | None]]:
    """Every row measured, with its embedding where it is ok, in order; inputs are embedded in batches."""
    pending: list[Measured] = []
    # map keeps no bytes: a variable here would hold an image while the next one is read
    measured = map(partial(_measured, spec.measure), _read_all(spec, snapshot, rows))
    for item in _while_there(spec, snapshot, measured):
        pending.append(item)
        if len(pending) == BATCH:
            yield from _embed(pending, model)
            pending = []
    yield from _embed(pending, model)


def _with_given(
    spec: ExtractSpec, snapshot: Snapshot, rows: pa.Table
) -> Iterator[tuple[Measured, np.ndarray[Any, Any] | None]]:
    """Every row with the user's own vector; measured where there are images, and no model runs."""
    vectors, has_row = given_vectors(spec.root.open(), spec.model, rows["image_id"].to_numpy())
    if spec.model.is_alone:
        alone = (Measured(Status.OK), failed(Status.MISSING, "no longer in its source"))
        measured: Iterator[Measured] = (alone[not there] for there in has_row.tolist())
    else:
        read = map(partial(_measured, spec.measure), _read_all(spec, snapshot, rows))
        measured = _while_there(spec, snapshot, read)
    for item, vector in zip(measured, vectors, strict=True):
        yield item._replace(model_input=None), vector if item.status is Status.OK else None


def _measured(params: MeasureParams, read: Read) -> Measured:
    if isinstance(read, Measured):
        return read
    with at_image():
        return measure(read, params) if isinstance(read, bytes) else measure_pixels(read, params)


def _embed(pending: list[Measured], model: Embedder) -> Iterator[tuple[Measured, np.ndarray[Any, Any] | None]]:
    inputs = [item.model_input for item in pending if item.model_input is not None]
    if not inputs:
        yield from ((item, None) for item in pending)
        return
    embedded = embed_for_storage(model, np.stack(inputs))
    at = 0
    for item in pending:
        if item.model_input is None:
            yield item, None
            continue
        vector, is_finite = embedded.vectors[at], embedded.is_finite[at]
        at += 1
        item = item._replace(model_input=None)  # noqa: PLW2901 - 77 KB each: a shard of 16,384 would hold 1.3 GB
        if is_finite and vector.any():
            yield item, vector
        else:
            bad = failed(Status.UNREADABLE, "the model's output holds NaN, infinity or zeros only")
            yield bad._replace(format=item.format, content_hash=item.content_hash), None


def _read_all(spec: ExtractSpec, snapshot: Snapshot, rows: pa.Table) -> Iterator[Read]:
    """The bytes of every row, or why they could not be had."""
    ids = rows["image_id"].to_numpy()
    gone = frozenset(ids[np.isin(ids, removed_ids(spec.root.open(), snapshot))].tolist())
    wanted = [None if row["image_id"] in gone else image_object(row, snapshot) for row in rows.to_pylist()]
    return read_images(spec.root, wanted, spec.measure.max_bytes, Cutting(spec.measure, spec.boxes))


def _while_there(spec: ExtractSpec, snapshot: Snapshot, found: Iterator[Measured]) -> Iterator[Measured]:
    """What was found, as long as the sources answer: after many images in a row without one a listing must have one.

    Not while images are tried again: their statuses stay as they are, and nothing is lost.
    """
    silent = 0
    for item in found:
        silent = silent + 1 if item.status is Status.TIMEOUT else 0
        if silent == SILENT_IMAGES and spec.only is None:
            silent = 0
            for source in snapshot.sources:
                with suppress(NotFound):  # an answer too: a source that was accepted as gone
                    next(iter(source_objects(source, spec.root.storage)), None)
        yield item


def _commit(
    spec: ExtractSpec, rows: pa.Table, found: list[tuple[Measured, np.ndarray[Any, Any] | None]], dimension: int
) -> Counters:
    embeddings = np.zeros((len(found), dimension), np.float16)
    signatures = np.zeros((len(found), SIGNATURE_LENGTH), np.uint8)
    for at, (item, vector) in enumerate(found):
        if vector is not None:
            embeddings[at] = vector
        if vector is not None and item.signature is not None:
            signatures[at] = item.signature
    table = feature_table(rows, [item for item, _ in found])
    commit_features(spec.root.open(), part_key(spec), Features(table, embeddings, signatures))
    statuses = Counter(item.status for item, _ in found)
    counters: dict[str, float] = {"images": len(found), "bytes": float(pc.sum(table["size_bytes"]).as_py() or 0)}
    counters |= {status.value: count for status, count in statuses.items()}
    counters["transient"] = sum(count for status, count in statuses.items() if status in TRANSIENT)
    return counters


def feature_table(rows: pa.Table, found: list[Measured]) -> pa.Table:
    """Feature rows of catalog rows and what was measured on them."""
    columns: dict[str, Any] = {"image_id": rows["image_id"]}
    columns["status"] = [item.status.value for item in found]
    columns["message"] = [item.message for item in found]
    sizes = rows["size_bytes"].to_pylist()
    columns["size_bytes"] = [size if _was_read(item) else None for item, size in zip(found, sizes, strict=True)]
    columns["format"] = [item.format or None for item in found]
    columns["content_hash"] = [item.content_hash for item in found]
    for name in FEATURE_ROWS.schema.names:
        if name not in columns:
            columns[name] = [getattr(item, name) if _has_pixels(item) else None for item in found]
    return pa.table({name: columns[name] for name in FEATURE_ROWS.schema.names}, schema=FEATURE_ROWS.schema)


def _has_pixels(item: Measured) -> bool:
    """Whether it is ok and an image, not a name with a vector alone."""
    return item.status is Status.OK and item.width > 0


def _was_read(item: Measured) -> bool:
    return item.status not in TRANSIENT and (item.content_hash is not None or item.status is Status.EMPTY)
