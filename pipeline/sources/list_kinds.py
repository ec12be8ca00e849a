"""What kind of list a file is, by its content and its name, and the rows of those that are read alone."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from typing import BinaryIO

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.sources.addresses import resolved
from pipeline.sources.arrow_list import read_parquet
from pipeline.sources.coco import read_coco
from pipeline.sources.coco_rows import coco_rows
from pipeline.sources.csv_list import read_csv
from pipeline.sources.listed import Origin, Tally, escape_bytes_anyway, with_problems_told
from pipeline.sources.table_columns import ADDRESSES, plain_names
from pipeline.sources.text_list import read_text

HEAD_BYTES = 65_536
"""As much of a file's start as `kind_of` wants to see."""
_BOM = b"\xef\xbb\xbf"
_PACKED = b"\x1f\x8b"


class Kind(Enum):
    """What a list is. TEXT: a path per line; INVENTORY: the manifest of an S3 Inventory; YOLO: its data YAML."""

    TEXT = "text"
    CSV = "csv"
    PARQUET = "parquet"
    COCO = "coco"
    INVENTORY = "inventory"
    YOLO = "yolo"


_UNITS = {Kind.TEXT: "line", Kind.CSV: "line", Kind.PARQUET: "row", Kind.COCO: "annotation"}
_SUFFIXES = {"csv": Kind.CSV, "parquet": Kind.PARQUET, "yaml": Kind.YOLO, "yml": Kind.YOLO, "json": Kind.COCO}


_LISTS = re.compile(r".\.(txt|lst|list|csv|parquet|json|ya?ml)(\.gz)?$", re.IGNORECASE)


def is_list_name(name: str) -> bool:
    """Whether a file is taken as a list by its name."""
    return bool(_LISTS.search(name))


def kind_of(name: str, head: bytes) -> Kind:
    """The kind of a list from its name and its first HEAD_BYTES (gzip is looked into).

    Parquet and JSON are known by their bytes, an inventory among JSON by its keys; then .csv, .yaml and .yml by their
    suffix; anything else is CSV where its first line is a header with a column of addresses and another one, and text
    where not. Raises UsageError for binary content of no kind.
    """
    if head[:4] == b"PAR1":
        return Kind.PARQUET
    if head[:2] == _PACKED:
        name, head = re.sub(r"\.gz$", "", name, flags=re.IGNORECASE), _unpacked_head(head)
    by_name = _SUFFIXES.get(name.rpartition("/")[2].rpartition(".")[2].lower())
    start = head.removeprefix(_BOM).lstrip()
    if by_name is Kind.COCO or (start[:1] == b"{" and by_name is None and re.match(rb'\{\s*("|\})', start)):
        return Kind.INVENTORY if b'"fileSchema"' in head or b'"sourceBucket"' in head else Kind.COCO
    if by_name is not None:
        return by_name
    if b"\0" in start.partition(b"\n")[0] and head[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise UsageError(
            f"{escape_bytes_anyway(name)} is no list: its bytes are neither text nor Parquet; wanted one path per "
            "line, CSV, Parquet, COCO JSON, the manifest.json of an S3 Inventory or a YOLO YAML"
        )
    first = start.partition(b"\n")[0].decode("utf-8", "replace")
    header = plain_names([field.strip().strip('"') for field in first.split(",")])
    return Kind.CSV if len(header) > 1 and not set(ADDRESSES).isdisjoint(header) else Kind.TEXT


def read_list(stream: BinaryIO, address: str, base: str, tally: Tally) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED with addresses as `addresses.resolve` has them: text, CSV, Parquet or COCO.

    base: canonical uri of the folder that relative addresses lie in. Raises UsageError for what is none of these, and
    as their readers do.
    """
    return _read(stream, Origin(address, base), tally)


def read_annotations(stream: BinaryIO, address: str, base: str, tally: Tally) -> Iterator[pa.RecordBatch]:
    """The same of annotations: whole paths stay whole, for the images may be of a source anywhere below the base."""
    return _read(stream, Origin(address, base, keeps_whole=True), tally)


def _read(stream: BinaryIO, origin: Origin, tally: Tally) -> Iterator[pa.RecordBatch]:
    stream.seek(0)
    kind = kind_of(origin.address, stream.read(HEAD_BYTES))
    stream.seek(0)
    if kind not in _UNITS:
        raise UsageError(f"{origin.address} is of kind {kind.value}; wanted text, CSV, Parquet or COCO")
    origin = replace(origin, unit=_UNITS[kind])
    if kind is Kind.COCO:
        rows = coco_rows(read_coco(stream, origin), origin, tally)
        yield from resolved(with_problems_told(rows, origin, tally), origin)
        return
    reader = {Kind.TEXT: read_text, Kind.CSV: read_csv, Kind.PARQUET: read_parquet}[kind]
    yield from resolved(with_problems_told(reader(stream, origin, tally), origin, tally), origin)


def _unpacked_head(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""
