"""S3 Inventory: manifests and data files of all three formats, from disk and from a server, whole and damaged."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
from s3_servers import moto_port, new_store, quick, use_credentials

from pipeline.errors import NotFound, UsageError
from pipeline.sources.addresses import resolved
from pipeline.sources.inventory import DELETED, FOLDERS, OLD, data_opener, read_inventory, read_manifest
from pipeline.sources.listed import LISTED, Origin, Tally
from pipeline.storage import open_store

TIME = datetime(2026, 11, 21, 18, 40, 0, 250_000, tzinfo=timezone.utc)
TIME_NS = 1_795_286_400_250_000_000
OBJECTS: list[tuple[str, bool, bool, int | None, str | None]] = [
    ("photos/a b+c.jpg", True, False, 10, "e1"),
    ("photos/ü%41.jpg", True, False, 2**40, "e2-7"),
    ("photos/a b+c.jpg", False, False, 9, "e0"),
    ("photos/gone.jpg", True, True, None, None),
    ("photos/", True, False, 0, "e3"),
    ("other/x//y.jpg", True, False, 0, "e4"),
    ('quote",comma.jpg', True, False, 5, "e5"),
    ("photos/gone.jpg", False, True, None, None),
]
WANTED = [
    ("a b+c.jpg", 10, "e1"),
    ("ü%41.jpg", 2**40, "e2-7"),
    ("s3://bkt/other/x//y.jpg", 0, "e4"),
    ('s3://bkt/quote",comma.jpg', 5, "e5"),
]
CSV_SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"
ORIGIN = Origin("manifest.json", "s3://bkt/photos", "row")


def as_csv(objects: list[tuple[Any, ...]]) -> bytes:
    """As S3 writes it: every value in quotes, keys encoded, no header."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for key, is_latest, is_deleted, size, etag in objects:
        flags = [str(is_latest).lower(), str(is_deleted).lower()]
        number = "" if size is None else size
        writer.writerow(
            ["bkt", quote_plus(key), "v", *flags, number, "2026-11-21T18:40:00.250Z", etag or "", "STANDARD"]
        )
    return gzip.compress(text.getvalue().encode())


def as_table(objects: list[tuple[Any, ...]]) -> pa.Table:
    key, is_latest, is_deleted, size, etag = zip(*objects, strict=True)
    return pa.table(
        {
            "bucket": ["bkt"] * len(key),
            "key": key,
            "is_latest": is_latest,
            "is_delete_marker": is_deleted,
            "size": pa.array(size, pa.int64()),
            "last_modified_date": pa.array([TIME.replace(tzinfo=None)] * len(key), pa.timestamp("ms")),
            "e_tag": etag,
        }
    )


def as_parquet(objects: list[tuple[Any, ...]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(as_table(objects), stream, row_group_size=3)
    return stream.getvalue()


def as_orc(objects: list[tuple[Any, ...]]) -> bytes:
    stream = io.BytesIO()
    pyarrow.orc.write_table(as_table(objects), stream)
    return stream.getvalue()


FORMATS: dict[str, Callable[[list[tuple[Any, ...]]], bytes]] = {"CSV": as_csv, "Parquet": as_parquet, "ORC": as_orc}


def manifest(kind: str, files: dict[str, bytes], /, **changes: Any) -> bytes:
    value = {
        "sourceBucket": "bkt",
        "destinationBucket": "arn:aws:s3:::lists",
        "version": "2016-11-30",
        "creationTimestamp": "1514944800000",
        "fileFormat": kind,
        "fileSchema": CSV_SCHEMA if kind == "CSV" else "message s3.inventory { required binary key (UTF8); }",
        "files": [
            {"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()} for key, data in files.items()
        ],
    }
    return json.dumps({**value, **changes}).encode()


def rows_of(
    data: bytes, opened: Callable[[str], BinaryIO], tally: Tally, origin: Origin = ORIGIN
) -> list[dict[str, Any]]:
    batches = list(resolved(read_inventory(read_manifest(data, origin), opened, origin, tally), origin))
    assert all(batch.schema.equals(LISTED) for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()]


def opener(files: dict[str, bytes]) -> Callable[[str], BinaryIO]:
    return lambda key: io.BytesIO(files[key])


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind: str) -> None:
    """Two data files; old versions, delete markers and folder markers are counted."""
    files = {"x/data/1": FORMATS[kind](OBJECTS[:3]), "x/data/2": FORMATS[kind](OBJECTS[3:])}
    tally = Tally()

    rows = rows_of(manifest(kind, files), opener(files), tally)

    assert [(row["address"], row["size"], row["etag"]) for row in rows] == WANTED
    assert {row["mtime_ns"] for row in rows} == {TIME_NS}
    assert [row["row"] for row in rows] == ([1, 2, 3, 4] if kind == "CSV" else [0, 1, 2, 3])
    assert tally.counts == {OLD: 2, DELETED: 1, FOLDERS: 1}
    assert tally.first[OLD] == f"manifest.json, x/data/1 row {3 if kind == 'CSV' else 2}"
    assert {(row["label"], row["fragment"], row["problem"]) for row in rows} == {(None, None, None)}


def test_columns_that_a_configuration_leaves_out() -> None:
    data = gzip.compress(b'"bkt","a%2Fb.jpg"\n"bkt","c.jpg"\n')

    rows = rows_of(manifest("CSV", {"k": data}, fileSchema="Bucket, Key"), opener({"k": data}), Tally())

    assert [(row["address"], row["size"], row["etag"], row["mtime_ns"]) for row in rows] == [
        ("s3://bkt/a/b.jpg", None, None, None), ("s3://bkt/c.jpg", None, None, None),
    ]  # fmt: skip


TEXTS = {
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "dictionary of large_string": pa.dictionary(pa.int8(), pa.large_string()),
    "dictionary of binary": pa.dictionary(pa.int32(), pa.binary()),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("has_times", [True, False])
def test_text_of_every_type(kind: str, has_times: bool) -> None:
    """As pandas, polars and others write it; times and flags may be text as well."""
    table = as_table(OBJECTS)
    texts = ["bucket", "key", "e_tag"]
    if not has_times:
        table = table.set_column(5, "last_modified_date", pa.array(["2026-11-21T18:40:00.250Z"] * len(OBJECTS)))
        for place in (2, 3):
            flags = [str(value).lower() for value in table[place].to_pylist()]
            table = table.set_column(place, table.field(place).name, pa.array(flags))
        texts += ["last_modified_date", "is_latest", "is_delete_marker"]
    for name in texts:
        place = table.column_names.index(name)
        values = table[name].to_pylist()
        plain = pa.array([None if one is None else one.encode() for one in values], pa.binary())
        table = table.set_column(place, name, _as_type(plain, TEXTS[kind]))
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=3)
    assert pq.read_schema(stream).field("key").type == TEXTS[kind] or kind != "large_string"

    rows = rows_of(manifest("Parquet", {"k": stream.getvalue()}), opener({"k": stream.getvalue()}), Tally())

    assert [(row["address"], row["size"], row["etag"]) for row in rows] == WANTED
    assert {row["mtime_ns"] for row in rows} == {TIME_NS}


def _as_type(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_dictionary(kind):
        return texts.cast(kind) if "binary" in str(kind) else texts.cast(pa.string()).cast(kind)
    coded = _as_type(texts, kind.value_type).dictionary_encode()
    return pa.DictionaryArray.from_arrays(coded.indices.cast(kind.index_type), coded.dictionary)


GOOD = as_csv(OBJECTS)


@pytest.mark.parametrize(
    ("data", "files", "said"),
    [
        (b"{", {}, "manifest.json is no JSON"),
        (b"[" * 100_000, {}, "manifest.json is no JSON"),
        (b"\xff\xfe", {}, "manifest.json is no JSON"),
        (b"[1]", {}, r"manifest.json has \[1\]; wanted the manifest.json of an S3 Inventory: sourceBucket"),
        (b'{"files": []}', {}, "manifest.json has files; wanted"),
        (manifest("XLS", {}), {}, "fileFormat 'XLS'; wanted CSV, Parquet or ORC"),
        (manifest("CSV", {}, sourceBucket="../x"), {}, "sourceBucket '../x' is no bucket"),
        (manifest("CSV", {}, fileSchema="Bucket, Size"), {}, "fileSchema 'Bucket, Size' names no Key"),
        (manifest("CSV", {}, files=[{"key": "k"}]), {}, r"files\[0\] is .*wanted key, size, MD5checksum"),
        (manifest("CSV", {}, files="k"), {}, r"files\[0\] is 'k'"),
        (manifest("CSV", {"k": GOOD}), {"k": GOOD[:-9]}, "manifest.json, k: .* bytes with MD5 .*; the manifest says"),
        (manifest("CSV", {"k": GOOD}), {"k": GOOD[:-1] + b"x"}, "bytes with MD5"),
        (manifest("CSV", {"k": b"plain"}), {"k": b"plain"}, "manifest.json, k: a damaged gzip file"),
        (manifest("CSV", {"k": GOOD}, fileSchema="Bucket, Key"), {"k": GOOD}, "k row 1 has 9 values; wanted 2"),
        (manifest("Parquet", {"k": GOOD}), {"k": GOOD}, "manifest.json, k: parquet that cannot be read"),
        (manifest("ORC", {"k": GOOD}), {"k": GOOD}, "manifest.json, k: orc that cannot be read"),
    ],
)  # fmt: skip
def test_one_clear_error(data: bytes, files: dict[str, bytes], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        rows_of(data, opener(files), Tally())


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pa.table({"name": ["a"]}), "has the columns name; wanted a key of text"),
        (pa.table({"key": [1]}), "has a column key of int64; wanted a key of text"),
        (pa.table({"key": [["a"]]}), r"has a column key of list<.*; wanted a key of text"),
        (pa.table({"key": [b"a", b"\xff"]}), r"k: parquet that cannot be read \(.*UTF.?8"),
        (pa.table({"key": ["a"], "e_tag": [b"\xff"]}), r"k: parquet that cannot be read \(.*UTF.?8"),
        (pa.table({"key": ["a", None]}), "row 1 has no key"),
        (pa.table({"key": ["a"], "size": [[1]]}), "column size is list.*; wanted plain values"),
        (pa.table({"key": ["a"], "size": [-1]}), "k row 0: size -1; wanted a whole number"),
        (pa.table({"key": ["a"], "last_modified_date": ["today"]}), "a last modified date cannot be read"),
    ],
)
def test_tables_that_are_no_inventory(table: pa.Table, said: str) -> None:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    files = {"k": stream.getvalue()}

    with pytest.raises(UsageError, match=said):
        rows_of(manifest("Parquet", files), opener(files), Tally())


@pytest.mark.parametrize("place", ["x/bkt/conf/data/1.csv.gz", "x/bkt/conf/2026/1.csv.gz", "deep/x/bkt/data/1.csv.gz"])
def test_a_copy_on_disk(tmp_path: Path, place: str) -> None:
    """Below a folder above the manifest, as in the bucket; or where only part of the folders was copied."""
    key = "x/bkt/conf/data/1.csv.gz" if not place.startswith("deep") else "not/there/1.csv.gz"
    here = tmp_path / ("x/bkt/conf/2026" if not place.startswith("deep") else "deep/x/bkt/2026")
    here.mkdir(parents=True)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(GOOD)
    address = str(here / "manifest.json")

    rows = rows_of(manifest("CSV", {key: GOOD}), data_opener(address, quick()), Tally())

    assert [row["address"] for row in rows] == [address for address, _, _ in WANTED]


def test_a_data_file_that_is_away(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"names x/1\.csv\.gz, which is not below"):
        rows_of(manifest("CSV", {"x/1.csv.gz": GOOD}), data_opener(f"{tmp_path}/manifest.json", quick()), Tally())


@pytest.mark.parametrize("kind", FORMATS)
def test_on_a_server(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data files are keys of the bucket that holds the manifest; objects are named as on that server."""
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "inventory")
    server, bucket, prefix = store.uri.removeprefix("minio://").split("/", 2)
    files = {f"{prefix}/data/1": FORMATS[kind](OBJECTS)}
    for key, data in files.items():
        open_store(f"minio://{server}/{bucket}", quick()).put(key, data)
    address, origin = f"{store.uri}/conf/manifest.json", Origin("m", f"minio://{server}/bkt/photos", "row")

    rows = rows_of(manifest(kind, files), data_opener(address, quick()), Tally(), origin)

    assert [row["address"] for row in rows] == [name.replace("s3://", f"minio://{server}/") for name, _, _ in WANTED]
