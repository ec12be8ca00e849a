"""Writes a synthetic data set into a root as the product's own artifacts: the catalog, and features as if extracted."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.report import say
from benchmarks.synthetic import (
    World,
    block_residuals,
    embeddings_of,
    own_residuals,
    signatures_of,
    white_vectors,
)
from benchmarks.synthetic_plants import Role, plant
from pipeline.kernels.sampling import mix
from pipeline.layout.features import Features, commit_features, list_features, missing_features
from pipeline.layout.parts import cut, part_name
from pipeline.layout.root import Root
from pipeline.layout.snapshots import FOLDER, CatalogPart, Snapshot, SourceRecord, snapshot_key, snapshot_to_json
from pipeline.layout.tables import json_bytes, parquet_bytes
from pipeline.schemas import CATALOG_ROWS, FEATURE_ROWS, Status
from pipeline.stages.rows_by_place import FRAGMENT_COLUMNS
from pipeline.threads import single_thread

TRUTH_KEY = "scale/truth.parquet"
CATALOG_PART = 131_072
CHUNK = 8_192
MOST_ROWS = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Truth:
    """The rows of the truth, as arrays sorted by image_id."""

    image_id: NDArray[np.int64]
    role: NDArray[np.int8]
    set_id: NDArray[np.int64]
    source_id: NDArray[np.int64]
    mix: NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """Where the data set goes: root, the source that is named in it, the features folder and images per shard."""

    root: Root
    source: str
    features: str
    shard: int


def write_synthetic(world: World, frames: int, place: Place, workers: int) -> None:
    """Writes what is missing, in processes of its own: the memory of this one stays what it was."""
    store = place.root.open()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, single_thread) as pool:
        if not store.exists(TRUTH_KEY):
            pool.submit(_write_truth, world, frames, place).result()
        if not store.exists(snapshot_key(1)):
            pool.submit(_write_catalog, world, place).result()
        gaps = missing_features(list_features(store, place.features), 0, world.images)
        waiting = [
            pool.submit(_write_shard, world, place, *bounds) for gap in gaps for bounds in cut(*gap, place.shard)
        ]
        for number, done in enumerate(as_completed(waiting), 1):
            done.result()
            if number % 32 == 0 or number == len(waiting):
                say(f"features: {number} of {len(waiting)} shards")


def read_truth(root: Root) -> Truth:
    """The planted truth of a root."""
    table = pq.read_table(io.BytesIO(root.open().read(TRUTH_KEY)))
    return Truth(*(table[name].to_numpy() for name in table.column_names))


def _write_truth(world: World, frames: int, place: Place) -> None:
    place.root.open().put(TRUTH_KEY, parquet_bytes(plant(world, frames)))


def _write_catalog(world: World, place: Place) -> None:
    store, parts = place.root.open(), []
    for lo, hi in cut(0, world.images, CATALOG_PART):
        data = parquet_bytes(_catalog_rows(world, lo, hi))
        key = f"{FOLDER}/rows-{hashlib.blake2b(data, digest_size=8).hexdigest()}.parquet"
        store.put(key, data)
        parts.append(CatalogPart(lo, hi, key, 1))
    source = SourceRecord(place.source, "")
    snapshot = Snapshot(1, world.images, (source,), tuple(parts), "", 0, "")
    store.put_if_absent(snapshot_key(1), json_bytes(snapshot_to_json(snapshot)))


def _catalog_rows(world: World, lo: int, hi: int) -> pa.Table:
    bits = mix(np.arange(lo, hi), 21)
    columns: dict[str, Any] = {
        "image_id": np.arange(lo, hi),
        "source": np.zeros(hi - lo, np.int16),
        "uri": world.uris(lo, hi),
        "raw_key": pa.nulls(hi - lo, pa.binary()),
        "size_bytes": _sizes(bits),
        "etag": pa.nulls(hi - lo, pa.string()),
        "mtime_ns": (1_300_000_000 * 10**9 + bits % np.uint64(10**17)).astype(np.int64),
    }
    columns |= {name: pa.nulls(hi - lo, CATALOG_ROWS.schema.field(name).type) for name in FRAGMENT_COLUMNS}
    return pa.table(columns, schema=CATALOG_ROWS.schema)


def _sizes(bits: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Sizes of files, about 20 to 400 KB."""
    return np.asarray(np.exp(11.5 + 1.5 * (_unit(bits) - 0.5)), np.int64)


def _unit(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) / 2.0**53)


def _write_shard(world: World, place: Place, lo: int, hi: int) -> None:
    truth = read_truth(place.root)
    pieces = [make_features(world, truth, *bounds) for bounds in cut(lo, hi, CHUNK)]
    features = Features(
        pa.concat_tables([piece.rows for piece in pieces]).combine_chunks(),
        np.concatenate([piece.embeddings for piece in pieces]),
        np.concatenate([piece.signatures for piece in pieces]),
    )
    commit_features(place.root.open(), f"{place.features}/{part_name('rows', lo, hi)}", features)


def make_features(world: World, truth: Truth, lo: int, hi: int) -> Features:
    """Rows, embeddings and signatures of [lo, hi)."""
    ids = np.arange(lo, hi)
    start, stop = np.searchsorted(truth.image_id, (lo, hi))
    planted = Truth(*(getattr(truth, name)[start:stop] for name in Truth.__dataclass_fields__))
    white = white_vectors(world, ids, block_residuals(world, lo, hi))
    at = planted.image_id - lo
    white[at] = _planted_vectors(world, planted)
    embeddings, signatures = embeddings_of(white), signatures_of(white, ids)
    far = planted.image_id[planted.role == Role.OUTLIER]
    isotropic = own_residuals(world, far, 2)[:, : embeddings.shape[1]]
    embeddings[far - lo] = isotropic.astype(np.float16)
    bad = planted.image_id[planted.role == Role.INVALID] - lo
    embeddings[bad], signatures[bad] = 0, 0
    return Features(_feature_rows(ids, planted, lo), embeddings, signatures)


def _planted_vectors(world: World, planted: Truth) -> NDArray[np.float32]:
    """Each planted image: so much of its source, and the rest its own noise. Sources are made anew, once each."""
    sources, inverse = np.unique(planted.source_id, return_inverse=True)
    whole = white_vectors(world, sources, own_residuals(world, sources, 0))
    found: NDArray[np.float32] = whole[inverse.ravel()]
    mixed = np.flatnonzero(planted.mix < 1)
    share = planted.mix[mixed, None]
    noise = own_residuals(world, planted.image_id[mixed], 1)
    found[mixed] = share * found[mixed] + np.sqrt(1 - share * share) * noise
    return found


def _feature_rows(ids: NDArray[np.int64], planted: Truth, lo: int) -> pa.Table:
    """Rows as extraction writes them: exact copies share a hash, or both with `SAME_BYTES`; INVALID is truncated."""
    is_ok = np.ones(len(ids), bool)
    is_ok[planted.image_id[planted.role == Role.INVALID] - lo] = False
    owner, owner_of_bytes = ids.copy(), ids.copy()
    copies = planted.role <= Role.SAME_PIXELS
    owner[planted.image_id[copies] - lo] = planted.source_id[copies]
    copies = planted.role == Role.SAME_BYTES
    owner_of_bytes[planted.image_id[copies] - lo] = planted.source_id[copies]
    bits = [_unit(mix(owner, 30 + number)) for number in range(6)]
    sides = np.array([500, 500, 375, 640, 333, 1024], np.int32)
    columns: dict[str, Any] = {
        "width": sides[(bits[0] * 6).astype(int)],
        "height": sides[(bits[1] * 6).astype(int)],
        "channels": np.full(len(ids), 3, np.int16),
        "frames": np.ones(len(ids), np.int32),
        "pixel_hash": _hashes(owner, 41),
        "mean": 60 + 110 * bits[2],
        "stdv": 25 + 55 * bits[3],
        "min": np.zeros(len(ids), np.int16),
        "max": np.full(len(ids), 255, np.int16),
        "unique": np.full(len(ids), 250, np.int16),
        "contrast": np.ones(len(ids)),
        "blur": np.exp(4 + 6 * bits[4]),
        "blur_blue": np.exp(4 + 6 * bits[4]),
        "channel_difference": 60 * bits[5],
        "entropy": 6 + 1.9 * bits[2],
    }
    columns = {
        name: pa.array(values, FEATURE_ROWS.schema.field(name).type, mask=~is_ok) for name, values in columns.items()
    }
    columns |= {
        "image_id": ids,
        "status": np.where(is_ok, Status.OK.value, Status.TRUNCATED.value).astype(object),
        "message": pa.array(np.full(len(ids), "its data ends early", object), pa.string(), mask=is_ok),
        "format": pa.array(["jpeg"]).take(pa.array(np.zeros(len(ids), np.int8))),
        "size_bytes": _sizes(mix(owner, 21)),
        "content_hash": _hashes(owner_of_bytes, 43),
    }
    schema = FEATURE_ROWS.schema
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _hashes(ids: NDArray[np.int64], salt: int) -> Any:
    """16 bytes of each id."""
    words = np.stack([mix(ids, salt), mix(ids, salt + 1)], axis=1)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(ids), [None, pa.py_buffer(words.tobytes())])
