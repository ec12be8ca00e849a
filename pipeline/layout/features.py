"""Feature parts: rows (Parquet) that name their vectors and signatures (.npy), row-aligned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import ArtifactError
from pipeline.layout.parts import Part, cover, cut, list_parts, missing
from pipeline.layout.tables import parquet_bytes, read_array, read_array_rows, read_metadata, read_table, way_out
from pipeline.schemas import FEATURE_ROWS, TRANSIENT
from pipeline.storage import Store, is_remote, read_ahead

BASE, AGAIN = "rows", "again"
SETTLED = "settled"
HASHES_AT_ONCE = 131_072  # 4 MB
_ROW_BYTES = 1024  # of both arrays together, about
_NAMED: dict[tuple[Store, str], dict[bytes, bytes]] = {}
_MOST_NAMED = 65_536
_SAME = 1e-3
"""Two attempts of one part may come from two types of CPU: embeddings within this cosine are the same."""

Vectors: TypeAlias = np.ndarray[Any, Any]
ReadArray: TypeAlias = Callable[[Store, str, str], Vectors]


@dataclass(frozen=True)
class FeatureSet:
    """The committed parts of one features folder: base parts by range, and later attempts at single rows."""

    folder: str
    base: tuple[Part, ...]
    again: tuple[Part, ...]


@dataclass(frozen=True)
class Features:
    """Rows of [lo, hi): table of FEATURE_ROWS columns, embeddings float16 (n, d), signatures uint8 (n, 256)."""

    rows: pa.Table
    embeddings: np.ndarray[Any, Any]
    signatures: np.ndarray[Any, Any]


def list_features(store: Store, folder: str) -> FeatureSet:
    """What is committed in a features folder."""
    return FeatureSet(folder, tuple(list_parts(store, folder, BASE)), tuple(list_parts(store, folder, AGAIN)))


def pinned_to_json(features: FeatureSet) -> dict[str, Any]:
    """The document of a feature set, for readers that must not see what is committed later."""
    base, again = ([dict(vars(part)) for part in parts] for parts in (features.base, features.again))
    return {"folder": features.folder, "base": base, "again": again}


def pinned_from_json(value: dict[str, Any]) -> FeatureSet:
    """The feature set of `pinned_to_json`."""
    base, again = (tuple(Part(**part) for part in value[name]) for name in ("base", "again"))
    return FeatureSet(value["folder"], base, again)


def missing_features(features: FeatureSet, lo: int, hi: int) -> list[tuple[int, int]]:
    """Ranges of [lo, hi) that are not extracted yet."""
    return missing(features.base, lo, hi)


def next_attempt(features: FeatureSet, lo: int, hi: int) -> int:
    """The number of another attempt at rows of [lo, hi): above that of every attempt that it may replace."""
    return next_number(features.again, lo, hi)


def next_number(again: Iterable[Part], lo: int, hi: int) -> int:
    """The number above those of all parts that share an offset with [lo, hi); 1 where none does."""
    return 1 + max((part.attempt for part in again if part.lo < hi and lo < part.hi), default=0)


def commit_features(store: Store, key: str, features: Features) -> None:
    """Commits a part: vectors first under a name with their hash, then the rows that name them (the done-marker).

    Where the part is there already, the rows that both attempts settled must have equal statuses and hashes and
    embeddings within cosine 1e-3; the first part stays. Raises ArtifactError otherwise.
    """
    from pipeline.layout.tables import write_array

    folder = key.rsplit("/", 1)[0]
    names = {
        "embeddings": write_array(store, folder, "embeddings", features.embeddings),
        "signatures": write_array(store, folder, "signatures", features.signatures),
    }
    transient = {SETTLED: str(int(_settled(features.rows).all()))}
    table = features.rows.replace_schema_metadata(names | transient)
    if not store.put_if_absent(key, parquet_bytes(table)):
        _check_same(store, key, features)


def is_settled(store: Store, part: Part) -> bool:
    """Whether a part holds no status of an attempt, by its footer alone; parts of earlier versions do not say so."""
    return read_metadata(store, part.key).get(SETTLED.encode()) == b"1"


def read_features(
    store: Store, features: FeatureSet, lo: int, hi: int, columns: Sequence[str] | None = None
) -> Features:
    """Rows, embeddings and signatures of [lo, hi); rows that were tried again hold their last attempt.

    Raises ArtifactError where a range is not extracted.
    """
    wanted = None if columns is None else list(dict.fromkeys(["image_id", *columns]))
    tables, embeddings, signatures = [], [], []
    if gaps := missing(features.base, lo, hi):
        raise _not_extracted(store, features, gaps[0])
    for piece in cover(features.base, lo, hi):
        rows = read_table(store, piece.part.key, wanted)
        start, stop = piece.lo - piece.part.lo, piece.hi - piece.part.lo
        tables.append(rows.slice(start, stop - start).replace_schema_metadata(None))
        embeddings.append(_array(store, piece.part.key, rows, "embeddings")[start:stop])
        signatures.append(_array(store, piece.part.key, rows, "signatures")[start:stop])
    joined = Features(pa.concat_tables(tables).combine_chunks(), _stack(embeddings), _stack(signatures))
    return _with_later_attempts(store, features, joined, lo, hi)


def read_vectors(store: Store, features: FeatureSet, lo: int, hi: int) -> tuple[Vectors, Vectors]:
    """Embeddings and signatures of [lo, hi) without their rows; mapped where one part on a disk holds them all."""
    if gaps := missing(features.base, lo, hi):
        raise _not_extracted(store, features, gaps[0])
    if any(part.lo < hi and lo < part.hi for part in features.again):
        return read_features_of(store, features, np.arange(lo, hi))
    sides: tuple[list[Vectors], list[Vectors]] = ([], [])
    for piece in cover(features.base, lo, hi):
        for side, array in zip(sides, _arrays(store, piece.part.key, read_array), strict=True):
            side.append(array[piece.lo - piece.part.lo : piece.hi - piece.part.lo])
    return _stack(sides[0]), _stack(sides[1])


def read_features_of(store: Store, features: FeatureSet, ids: NDArray[np.int64]) -> tuple[Vectors, Vectors]:
    """Embeddings and signatures of some ids (ascending, unique), their last attempt's; only their rows are read.

    Raises ArtifactError where one is not extracted.
    """
    wanted = [
        (piece.part.key, np.arange(first, last), ids[first:last] - piece.part.lo)
        for piece in cover(features.base, int(ids[0]), int(ids[-1]) + 1)
        for first, last in [np.searchsorted(ids, [piece.lo, piece.hi])]
        if first < last
    ]
    held = np.concatenate([at for _, at, _ in wanted]) if wanted else np.empty(0, np.int64)
    if len(held) < len(ids):
        gap = int(np.setdiff1d(ids, ids[held])[0])
        raise _not_extracted(store, features, (gap, gap + 1))
    for part in _in_order(features.again):
        if part.lo <= ids[-1] and ids[0] < part.hi:
            later = read_table(store, part.key, ["image_id"])["image_id"].to_numpy()
            _, at, rows = np.intersect1d(ids, later, assume_unique=True, return_indices=True)
            if len(at):
                wanted.append((part.key, at, rows))
    return _gathered(store, wanted, len(ids))


def _gathered(
    store: Store, wanted: list[tuple[str, NDArray[np.int64], NDArray[np.int64]]], count: int
) -> tuple[Vectors, Vectors]:
    """(part, places in the result, rows of the part), later ones over earlier ones."""

    def read(item: tuple[str, NDArray[np.int64], NDArray[np.int64]]) -> tuple[Vectors, Vectors]:
        rows = item[2]
        return _arrays(store, item[0], lambda store, folder, name: read_array_rows(store, folder, name, rows))

    pieces = (
        read_ahead(wanted, read, lambda item: _ROW_BYTES * len(item[2])) if is_remote(store.uri) else map(read, wanted)
    )
    first = next(pieces)
    embeddings, signatures = (np.empty((count, piece.shape[1]), piece.dtype) for piece in first)
    for (_, at, _), piece in zip(wanted, chain([first], pieces), strict=True):
        embeddings[at], signatures[at] = piece
    return embeddings, signatures


def read_feature_rows(store: Store, features: FeatureSet, lo: int, hi: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of the rows of [lo, hi), without their vectors. Raises ArtifactError where one is not extracted."""
    wanted = list(dict.fromkeys(["image_id", *columns]))
    if gaps := missing(features.base, lo, hi):
        raise _not_extracted(store, features, gaps[0])
    tables = []
    for piece in cover(features.base, lo, hi):
        rows = read_table(store, piece.part.key, wanted).replace_schema_metadata(None)
        tables.append(rows.slice(piece.lo - piece.part.lo, piece.hi - piece.lo))
    if not tables:
        return FEATURE_ROWS.empty().select(list(columns))
    table = pa.concat_tables(tables).combine_chunks()
    for part in _in_order(features.again):
        if part.lo < hi and lo < part.hi:
            table = _replace_rows(table, read_table(store, part.key, wanted).replace_schema_metadata(None), lo, hi)[0]
    return table.select(list(columns))


def extracted_hashes(store: Store, features: FeatureSet, ids: Sequence[int]) -> dict[int, bytes | None]:
    """Content hash of each of some sorted ids that lie close together, the pixel hash of a frame or box: all rows
    between them are read, once.
    """
    lo = ids[0]
    rows = read_feature_rows(store, features, lo, ids[-1] + 1, ["content_hash", "pixel_hash"])
    hashes = pc.coalesce(rows["content_hash"], rows["pixel_hash"])
    return {image_id: hashes[image_id - lo].as_py() for image_id in ids}


def same_content(store: Store, one: FeatureSet, other: FeatureSet) -> NDArray[np.bool_]:
    """Per offset whether both sets hold the same content hash: bool, as long as the shorter of both; two passes."""
    total = min(max((part.hi for part in features.base), default=0) for features in (one, other))
    same = np.zeros(total, bool)
    for lo, hi in cut(0, total, HASHES_AT_ONCE):
        equal = pc.equal(_hash_column(store, one, lo, hi), _hash_column(store, other, lo, hi))
        same[lo:hi] = equal.fill_null(fill_value=False).to_numpy(zero_copy_only=False)
    return same


def _hash_column(store: Store, features: FeatureSet, lo: int, hi: int) -> pa.ChunkedArray:
    """Content hashes of [lo, hi), null where a row has none or is not extracted."""
    kind = FEATURE_ROWS.schema.field("content_hash").type
    chunks, at = [], lo
    for piece in cover(features.base, lo, hi):
        chunks.append(pa.nulls(piece.lo - at, kind))
        chunks += read_feature_rows(store, features, piece.lo, piece.hi, ["content_hash"])["content_hash"].chunks
        at = piece.hi
    return pa.chunked_array([*chunks, pa.nulls(hi - at, kind)], kind)


def _not_extracted(store: Store, features: FeatureSet, gap: tuple[int, int]) -> ArtifactError:
    return ArtifactError(f"{store.uri}/{features.folder}: offsets [{gap[0]}, {gap[1]}) are not extracted. Run again.")


def _in_order(again: Iterable[Part]) -> list[Part]:
    """Later attempts last: a number is above those of every part that it overlaps (`next_attempt`)."""
    return sorted(again, key=lambda part: (part.attempt, part.lo, part.hi))


def _with_later_attempts(store: Store, features: FeatureSet, found: Features, lo: int, hi: int) -> Features:
    for part in _in_order(features.again):
        if part.lo < hi and lo < part.hi:
            later = read_table(store, part.key, found.rows.column_names)
            embeddings = _array(store, part.key, later, "embeddings")
            signatures = _array(store, part.key, later, "signatures")
            rows, at, chosen = _replace_rows(found.rows, later.replace_schema_metadata(None), lo, hi)
            all_embeddings, all_signatures = np.array(found.embeddings), np.array(found.signatures)
            all_embeddings[at], all_signatures[at] = embeddings[chosen], signatures[chosen]
            found = Features(rows, all_embeddings, all_signatures)
    return found


def _replace_rows(
    table: pa.Table, later: pa.Table, lo: int, hi: int
) -> tuple[pa.Table, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    ids = later["image_id"].to_numpy()
    chosen = np.flatnonzero((ids >= lo) & (ids < hi))
    at = np.searchsorted(table["image_id"].to_numpy(), ids[chosen])
    source = np.arange(table.num_rows)
    source[at] = table.num_rows + chosen
    return pa.concat_tables([table, later]).take(pa.array(source)).combine_chunks(), at, chosen


def _array(store: Store, key: str, rows: pa.Table, which: str) -> Vectors:
    return _named_array(store, key, rows.schema.metadata or {}, which, read_array)


def _arrays(store: Store, key: str, read: ReadArray) -> tuple[Vectors, Vectors]:
    """What `read` gives of both arrays of a part. Their names are kept: a footer of an object store costs two reads."""
    place = (store, key)
    known = _NAMED.get(place)
    named = read_metadata(store, key) if known is None else known
    try:
        found = tuple(_named_array(store, key, named, which, read) for which in ("embeddings", "signatures"))
    except ArtifactError:
        if known is None:
            raise
        del _NAMED[place]  # the part may have been made anew since
        return _arrays(store, key, read)
    if len(_NAMED) >= _MOST_NAMED:
        _NAMED.clear()
    _NAMED[place] = named
    return found[0], found[1]


def _named_array(store: Store, key: str, names: Mapping[bytes, bytes], which: str, read: ReadArray) -> Vectors:
    name = names.get(which.encode())
    if name is None:
        raise ArtifactError(f"{store.uri}/{key}: the part names no {which}. {way_out(key)}")
    try:
        return read(store, key.rsplit("/", 1)[0], name.decode())
    except ArtifactError as error:
        raise ArtifactError(f"{error} Delete {store.uri}/{key}, which names it, and run again.") from error


def _stack(arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _check_same(store: Store, key: str, features: Features) -> None:
    """Compares the rows that both attempts settled; what one could not read is no property of the image."""
    names = ["image_id", "status", "content_hash", "pixel_hash"]
    rows = read_table(store, key)
    theirs, ours = rows.select(names).replace_schema_metadata(None), features.rows.select(names)
    same = theirs["image_id"].equals(ours["image_id"])
    if same:
        both = np.flatnonzero(_settled(theirs) & _settled(ours))
        embeddings = _array(store, key, rows, "embeddings")[both]
        same = theirs.take(both).equals(ours.take(both)) and _are_near(embeddings, features.embeddings[both])
    if not same:
        raise ArtifactError(
            f"{store.uri}/{key}: two attempts of one part differ in ids, statuses, hashes or by more than {_SAME} in "
            "cosine. The images changed between the attempts, or the machines decode differently; the first part "
            "stays. Run again to audit what is there now."
        )


def _settled(rows: pa.Table) -> np.ndarray[Any, Any]:
    transient = [status.value for status in TRANSIENT]
    return ~np.isin(rows["status"].to_numpy().astype(str), transient)


def _are_near(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosine = np.einsum("ij,ij->i", x, y)
    return bool((np.abs(norms - cosine) <= _SAME * np.maximum(norms, 1e-12)).all())
