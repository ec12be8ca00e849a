"""Embeddings of the user's own in place of a model: opened before the listing, checked against it, copied once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.config import MOST_BY_DISTANCE, AuditConfig
from pipeline.errors import UsageError
from pipeline.layout.models import ModelRef
from pipeline.layout.own_vectors import import_vectors, write_order
from pipeline.layout.parts import cut
from pipeline.layout.snapshots import Snapshot, catalog_rows, removed_ids
from pipeline.plan.session import Session
from pipeline.sources.fragments import shown_name
from pipeline.sources.vectors import NameIndex, VectorFile, open_vectors
from pipeline.storage import canonical_uri, open_store

NAMED_ROWS = 131_072
SHOWN = 3


def open_embeddings(config: AuditConfig) -> VectorFile | None:
    """The file of the configuration, its header read. Raises UsageError for one that cannot be."""
    if not config.embeddings:
        return None
    place, slash, key = canonical_uri(config.embeddings, config.storage).rpartition("/")
    file = open_vectors(open_store(place or slash, config.storage), key, config.embeddings)
    if file.names is None and not (config.every_source or config.start == "features"):
        raise UsageError(
            f"embeddings {config.embeddings}: a .npy has no names: name the sources whose sorted listing its rows "
            "follow, or give a Parquet with a column of names"
        )
    if config.neighbours.metric and file.count > MOST_BY_DISTANCE:
        raise UsageError(
            f"embeddings {config.embeddings}: {file.count:,} rows; by distance {config.neighbours.distance!r} every "
            f"pair of at most {MOST_BY_DISTANCE:,} is compared: want cosine or euclidean"
        )
    if config.neighbours.metric == "jensenshannon":
        _require_distributions(file)
    return file


def _require_distributions(file: VectorFile) -> None:
    at = 0
    for block in file.blocks():
        bad = np.flatnonzero((block < 0).any(axis=1))
        if len(bad):
            raise UsageError(
                f"embeddings {file.address}: row {at + int(bad[0])} has a number below 0, and distance 'jensenshannon' "
                "compares distributions: want cosine or euclidean"
            )
        at += len(block)


def place_embeddings(session: Session, snapshot: Snapshot, file: VectorFile, model: ModelRef) -> ModelRef:
    """The model with the row of every image; the vectors are in the root then. Raises UsageError for other counts."""
    if file.names is None:
        _require_count(snapshot, file)
        import_vectors(session.store, file, model)
        return model
    rows = _rows_by_name(session, snapshot, file)
    import_vectors(session.store, file, model)
    unused = file.count - int((rows >= 0).sum())
    if unused:
        session.reporter.say(f"{unused:,} of {file.count:,} rows of {file.address} name no image and are not used")
    return replace(model, order=write_order(session.store, model, snapshot.digest, rows))


def _require_count(snapshot: Snapshot, file: VectorFile) -> None:
    if file.count != snapshot.live:
        raise UsageError(
            f"embeddings {file.address}: {file.count:,} rows, and the sorted listing has {snapshot.live:,} images: "
            "want as many, in its order; or give a Parquet with a column of names"
        )
    if snapshot.live != snapshot.total:
        raise UsageError(
            f"embeddings {file.address}: {snapshot.total - snapshot.live:,} images of this root were removed or "
            "replaced since its first listing, so that rows cannot follow the listing: give a Parquet with a column "
            "of names, or take a new --root"
        )


def _rows_by_name(session: Session, snapshot: Snapshot, file: VectorFile) -> NDArray[np.int64]:
    """Row of each offset, -1 for removed ones; by uri, or by the path of the image. Raises UsageError for no row."""
    gone = removed_ids(session.store, snapshot)
    rows = np.full(snapshot.total, -1, np.int64)
    missing, first = 0, ""
    names_of_file = NameIndex(file.names)
    for lo, hi in cut(0, snapshot.total, NAMED_ROWS):
        catalog = catalog_rows(session.store, snapshot, lo, hi)
        names = [*map(shown_name, *(catalog[column].to_pylist() for column in ("uri", "raw_key", "fragment")))]
        paths = [
            "/".join(part.rstrip("/") for part in snapshot.sources[source].located(name))
            for source, name in zip(catalog["source"].to_pylist(), names, strict=True)
        ]
        found = names_of_file.rows_of(names)
        found = np.where(found < 0, names_of_file.rows_of(paths), found)
        found[np.isin(np.arange(lo, hi), gone)] = -1
        is_missing = (found < 0) & ~np.isin(np.arange(lo, hi), gone)
        missing += int(is_missing.sum())
        first = first or next((names[at] for at in np.flatnonzero(is_missing)), "")
        rows[lo:hi] = found
    if missing:
        named = repr(file.names[0].as_py()) if file.names else "none"
        raise UsageError(
            f"embeddings {file.address}: {file.count:,} rows, {snapshot.live:,} images, and {missing:,} of these have "
            f"no row, such as {first!r}; the first name of the file is {named}: names must be the uris (relative to "
            "the source) or whole paths of the images"
        )
    return rows
