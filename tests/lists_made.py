"""Lists that tests make: of files, of boxes, as S3 Inventory writes them; and what their audits say of each image."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from audited import rows, small_set

from pipeline.audit import Audit
from pipeline.storage import Store

FILES = small_set(10)


NAMES = list(FILES)


def csv_of(columns: dict[str, list[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def parquet_of(columns: dict[str, list[Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def folders_of(names: list[str]) -> dict[str, list[Any]]:
    """The splits and labels that folders give, as columns."""
    parts = [name.split("/") for name in names]
    return {"filename": names, "split": [part[0] for part in parts], "label": [part[1] for part in parts]}


def inventory_of(store: Store, names: list[str]) -> bytes:
    """The manifest of an S3 Inventory of these objects, whose data file is beside it."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    bucket, _, prefix = store.uri.split("/", 3)[3].partition("/")
    for name in names:
        writer.writerow([bucket, f"{prefix}/{name}" if prefix else name, store.stat(name).size, store.stat(name).etag])
    data = gzip.compress(text.getvalue().encode())
    store.put("inventory/data.csv.gz", data)
    key = "/".join(filter(None, [prefix, "inventory/data.csv.gz"]))
    files = [{"key": key, "size": len(data), "MD5checksum": hashlib.md5(data).hexdigest()}]
    schema = "Bucket, Key, Size, ETag"
    value = {"sourceBucket": bucket, "fileFormat": "CSV", "fileSchema": schema, "files": files}
    return json.dumps(value).encode()


def coco_of(files: dict[str, bytes], boxes: list[tuple[str, list[float], str]]) -> dict[str, Any]:
    names, kinds = list(files), sorted({kind for _, _, kind in boxes})
    return {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "categories": [{"id": number, "name": kind} for number, kind in enumerate(kinds, 1)],
        "annotations": [
            {"id": number, "image_id": names.index(name), "category_id": kinds.index(kind) + 1, "bbox": box}
            for number, (name, box, kind) in enumerate(boxes)
        ],
    }


def ids(audit: Audit) -> dict[str, int]:
    return {row["uri"]: row["image_id"] for row in rows(audit, "images")}


def labels(audit: Audit) -> dict[str, str]:
    return {row["uri"]: row["label"] for row in rows(audit, "images")}


def states(audit: Audit) -> dict[str, str]:
    return {stage["stage"]: stage["state"] for stage in audit.published.session["stages"]}
