"""S3 Inventory: the manifest of a listing that S3 itself made, and its data files in CSV, Parquet or ORC."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import NotFound, UsageError
from pipeline.sources.inventory_data import FORMATS, DataRows, canonical, data_rows, require_same
from pipeline.sources.listed import Origin, Tally, batch_of, non_empty
from pipeline.sources.table_columns import counts_of
from pipeline.storage import StorageConfig, is_remote, open_store

OLD, DELETED, FOLDERS = "older versions", "delete markers", "folder markers"
MAX_MANIFEST = 2**26
SHOWN = 80
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]+")


class DataFile(NamedTuple):
    """A data file as the manifest has it: key in the destination bucket, bytes, MD5 in hex."""

    key: str
    size: int
    md5: str


@dataclass(frozen=True)
class Inventory:
    """A manifest. format: csv, parquet or orc; columns: of CSV files, which have no header, as `canonical` has them."""

    bucket: str
    format: str
    columns: tuple[str, ...]
    files: tuple[DataFile, ...]


def read_manifest(data: bytes, origin: Origin) -> Inventory:
    """What a manifest.json of S3 Inventory names. Raises UsageError for anything else."""
    try:
        value = json.loads(data) if len(data) <= MAX_MANIFEST else None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{origin.address} is no JSON: {error}") from error
    names = ("sourceBucket", "fileFormat", "fileSchema", "files")
    if not isinstance(value, Mapping) or not all(name in value for name in names):
        seen = ", ".join(map(str, value))[:SHOWN] if isinstance(value, Mapping) else repr(value)[:SHOWN]
        raise UsageError(
            f"{origin.address} has {seen}; wanted the manifest.json of an S3 Inventory: {', '.join(names)}"
        )
    bucket, kind, schema = (str(value[name]) for name in names[:3])
    if kind.lower() not in FORMATS:
        raise UsageError(f"{origin.address}: fileFormat {kind[:SHOWN]!r}; wanted CSV, Parquet or ORC")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{origin.address}: sourceBucket {bucket[:SHOWN]!r} is no bucket")
    columns = tuple(canonical(name) for name in schema.split(",")) if kind.lower() == "csv" else ()
    if kind.lower() == "csv" and "key" not in columns:
        raise UsageError(f"{origin.address}: fileSchema {schema[:SHOWN]!r} names no Key")
    return Inventory(bucket, kind.lower(), columns, _files(value["files"], origin))


def read_inventory(
    inventory: Inventory, opened: Callable[[str], BinaryIO], origin: Origin, tally: Tally
) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED: the newest versions of the objects, with size, etag and time; `row` is the line or row of a
    data file.

    opened: opens a data file by its key, seekable; each is read twice, first for its MD5. Left out and counted: older
    versions, delete markers, and empty objects whose key ends in `/`. Raises UsageError for a data file that is not
    what the manifest says, or whose rows are none of an inventory.
    """
    server = origin.base.partition("://")[2].partition("/")[0] + "/" if origin.base.startswith("minio://") else ""
    root = f"{'minio' if server else 's3'}://{server}{inventory.bucket}/"
    for file in inventory.files:
        place = Origin(f"{origin.address}, {file.key}", origin.base, origin.unit)
        with opened(file.key) as stream:
            require_same(stream, file.size, file.md5, place)
            for columns in data_rows(inventory.format, stream, inventory.columns, place):
                yield _rows(columns, root, place, tally)


def data_opener(address: str, config: StorageConfig) -> Callable[[str], BinaryIO]:
    """What opens the data files of the manifest at an address: in its bucket; on disk, below any folder above it, or
    where a copy of the inventory has them (beside it, and in `../data`).
    """
    folder = address.rpartition("/")[0]
    if is_remote(address):
        scheme, _, rest = address.partition("://")
        root = "/".join(rest.split("/")[: 2 if scheme == "minio" else 1])
        return open_store(f"{scheme}://{root}", config).open
    above = folder.split("/")
    roots = ["/".join(above[:count]) or "/" for count in range(len(above), 0, -1)]

    def opened(key: str) -> BinaryIO:
        name = key.rpartition("/")[2]
        tried = [*((root, key) for root in roots), (folder, name), (roots[min(1, len(roots) - 1)], f"data/{name}")]
        for root, below in tried:
            if (store := open_store(root or "/", config)).exists(below):
                return store.open(below)
        raise NotFound(f"{address} names {key}, which is not below {folder or '/'}: copy the data files beside it")

    return opened


def _files(value: Any, origin: Origin) -> tuple[DataFile, ...]:
    found = []
    for number, file in enumerate(value if isinstance(value, list) else [value]):
        key, size, md5 = (
            file.get(name) if isinstance(file, Mapping) else None for name in ("key", "size", "MD5checksum")
        )
        if not (isinstance(key, str) and key and isinstance(size, int) and isinstance(md5, str)):
            raise UsageError(
                f"{origin.address}: files[{number}] is {repr(file)[:SHOWN]}; wanted key, size, MD5checksum"
            )
        found.append(DataFile(key, size, md5.lower()))
    return tuple(found)


def _rows(columns: DataRows, root: str, origin: Origin, tally: Tally) -> pa.RecordBatch:
    """The rows of newest versions of objects."""
    arrays, numbers = columns.arrays, np.asarray(columns.numbers)
    size = counts_of(arrays["size"], "size", columns.numbers, origin) if "size" in arrays else None
    is_out = np.zeros(len(numbers), np.bool_)
    is_folder = np.array([key.endswith("/") for key in columns.keys], np.bool_)
    if size is not None:
        is_folder &= pc.equal(pc.fill_null(size, 0), 0).to_numpy(zero_copy_only=False)
    for what, which in (
        (OLD, ~_flags(arrays.get("islatest"), True, len(numbers))),
        (DELETED, _flags(arrays.get("isdeletemarker"), False, len(numbers))),
        (FOLDERS, is_folder),
    ):
        newly = which & ~is_out
        tally.add(what, int(newly.sum()), origin.at(int(numbers[np.argmax(newly)])) if newly.any() else "")
        is_out |= newly
    kept = pa.array(np.flatnonzero(~is_out))
    found = {"size": size.take(kept)} if size is not None else {}
    if "etag" in arrays:
        found["etag"] = pc.utf8_trim(arrays["etag"].take(kept).cast(pa.string()), '"')
    if "lastmodifieddate" in arrays:
        found["mtime_ns"] = _times(arrays["lastmodifieddate"].take(kept), origin)
    keys = [root + columns.keys[place] for place in kept.to_pylist()]
    return batch_of(keys, numbers[~is_out], found)


def _flags(column: pa.Array | None, otherwise: bool, count: int) -> NDArray[np.bool_]:
    """A column of truth, as text in CSV; `otherwise` where it is empty or missing."""
    if column is None:
        return np.full(count, otherwise)
    text = pc.utf8_lower(column.cast(pa.string()))
    is_true = pc.equal(non_empty(text), "true")
    flags: NDArray[np.bool_] = pc.fill_null(is_true, otherwise).to_numpy(zero_copy_only=False)
    return flags


def _times(column: pa.Array, origin: Origin) -> pa.Array:
    """Nanoseconds since 1970."""
    try:
        if pa.types.is_string(column.type):
            column = pc.cast(non_empty(column), pa.timestamp("ns", "UTC"))
        return column.cast(pa.timestamp("ns")).cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(f"{origin.address}: a last modified date cannot be read: {error}") from error
