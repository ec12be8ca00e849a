"""The columns of a table of images or boxes: which of them are read, and the rows that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UsageError
from pipeline.sources.box_columns import CORNERS, KINDS, XYWH, Numbers, boxes_of, numbers_of
from pipeline.sources.listed import Origin, batch_of, no_nan, non_empty, text_column, trimmed
from pipeline.sources.splits import canonical_split
from pipeline.storage import is_remote

ADDRESSES = ("filename", "file_name", "path", "image_path", "image", "uri", "key")
"""Names of the column with the path or URL; of several, the first one here is read."""
KEY, BUCKET, SPLIT, LABEL, ETAG, MTIME = "key", "bucket", "split", "label", "etag", "mtime_ns"
SIZES = ("size_bytes", "size")
SHOWN_COLUMNS = 40
_KNOWN = frozenset({*ADDRESSES, BUCKET, SPLIT, LABEL, ETAG, MTIME, *SIZES, *XYWH, *CORNERS})


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read; "" where it has none. boxes: kinds of box, `xywh`, `corners` or both."""

    address: str
    bucket: str
    split: str
    label: str
    size: str
    etag: str
    mtime: str
    boxes: tuple[str, ...]

    @property
    def wanted(self) -> list[str]:
        """Every column that is read."""
        single = (self.address, self.bucket, self.split, self.label, self.size, self.etag, self.mtime)
        return [name for name in single if name] + [name for kind in self.boxes for name in KINDS[kind]]


def plain_names(names: Sequence[str]) -> list[str]:
    """The columns of a header; one that is read as it is spelled here, whatever its case and the white space around it.

    Of `Label` and `label` in one header the second is read.
    """
    spelled = [name.strip().lower() for name in names]
    exact = _KNOWN.intersection(names)
    return [
        plain if plain in _KNOWN and (name == plain or plain not in exact) else name
        for name, plain in zip(names, spelled, strict=True)
    ]


def find_columns(names: Sequence[str], origin: Origin) -> Columns:
    """The columns to read among those of a header (`plain_names`).

    `bucket` counts beside `key` alone. `size` is the file's beside `etag` or `key`, else anything; `size_bytes` always.
    Raises UsageError for a table without a column of addresses, a box of which some columns are missing, and a name
    that stands there twice.
    """
    address = next((name for name in ADDRESSES if name in names), "")
    if not address:
        raise UsageError(
            f"{origin.address} has the columns {several(names)}; wanted one of {', '.join(ADDRESSES)}, and as you "
            f"like {LABEL}, {SPLIT}, a box ({', '.join(XYWH)} or {', '.join(CORNERS)}): rename them; in CSV, separate "
            "them by commas"
        )
    is_listing = ETAG in names or address == KEY
    sizes = [name for name in SIZES if name in names and (is_listing or name != "size")]
    found = Columns(
        address=address,
        bucket=BUCKET if address == KEY and BUCKET in names else "",
        split=SPLIT if SPLIT in names else "",
        label=LABEL if LABEL in names else "",
        size=sizes[0] if sizes else "",
        etag=ETAG if ETAG in names else "",
        mtime=MTIME if MTIME in names else "",
        boxes=_boxes(names, origin),
    )
    twice = sorted({name for name in found.wanted if names.count(name) > 1})
    if twice:
        raise UsageError(f"{origin.address} has the column {', '.join(twice)} more than once: keep one")
    return found


def rows_of(
    columns: Columns, values: Mapping[str, Sequence[str] | pa.Array], numbers: Sequence[int], origin: Origin
) -> pa.RecordBatch:
    """A batch of LISTED. values: a column of text or an Arrow array by name; numbers: the row of each, for messages.

    Raises UsageError for a row without an address, and a size or time that is no count.
    """
    addresses = values[columns.address]
    for name in filter(None, (columns.address, columns.bucket)):
        _require(values[name], name, numbers, origin)
    if columns.address == KEY:
        addresses = _of_bucket(addresses, values.get(BUCKET) if columns.bucket else None, origin.base)
    found: dict[str, pa.Array] = {}
    for name in filter(None, (columns.split, columns.label)):
        found[name] = trimmed(_text(values[name], name, numbers, origin))
    if columns.etag:
        found[ETAG] = _text(values[columns.etag], columns.etag, numbers, origin)
        found[ETAG] = non_empty(pc.utf8_trim(found[ETAG], '"'))  # some tools keep the quotes of the header
    if columns.split:
        found[SPLIT] = _canonical(found[SPLIT])
    for target, name in (("size", columns.size), ("mtime_ns", columns.mtime)):
        if name:
            found[target] = counts_of(values[name], name, numbers, origin)
    if columns.boxes:
        boxes = {name: _numbers(values[name], name, numbers, origin) for kind in columns.boxes for name in KINDS[kind]}
        found["fragment"], found["problem"] = boxes_of(boxes, len(numbers))
    return batch_of(addresses, numbers, found)


def _boxes(names: Sequence[str], origin: Origin) -> tuple[str, ...]:
    found = []
    for kind, wanted in KINDS.items():
        has = [name for name in wanted if name in names]
        # an image's width and height often stand beside it, and are no box
        telling = [name for name in has if kind != "xywh" or name in XYWH[:2]]
        if telling and len(has) < len(wanted):
            missing = ", ".join(name for name in wanted if name not in has)
            raise UsageError(
                f"{origin.address} has the columns {several(has)} of a box, but not {missing}: add or rename them"
            )
        if telling:
            found.append(kind)
    return tuple(found)


def _require(values: Sequence[str] | pa.Array, name: str, numbers: Sequence[int], origin: Origin) -> None:
    if isinstance(values, pa.Array):
        empty = pc.fill_null(pc.equal(values, ""), True).to_numpy(zero_copy_only=False)
        first = int(np.argmax(empty)) if empty.any() else -1
    else:
        first = next((at for at, value in enumerate(values) if not value), -1)
    if first >= 0:
        raise UsageError(f"{origin.at(numbers[first])} has no {name}: fill or remove it")


def _text(values: Sequence[str] | pa.Array, name: str, numbers: Sequence[int], origin: Origin) -> pa.Array:
    if not isinstance(values, pa.Array):
        return text_column(values, name, numbers, origin)
    return non_empty(pc.cast(no_nan(values), pa.string()))


def _canonical(splits: pa.Array) -> pa.Array:
    coded = splits.dictionary_encode()
    names = pa.array([canonical_split(name) for name in coded.dictionary.to_pylist()], pa.string())
    return names.take(coded.indices)


def _numbers(values: Sequence[str] | pa.Array, name: str, numbers: Sequence[int], origin: Origin) -> Numbers:
    return numbers_of(values if isinstance(values, pa.Array) else text_column(values, name, numbers, origin))


def counts_of(values: Sequence[str] | pa.Array, name: str, numbers: Sequence[int], origin: Origin) -> pa.Array:
    """Whole numbers from 0 on, int64 (n,), null where there is none. Raises UsageError for others, with the row."""
    column = values if isinstance(values, pa.Array) else text_column(values, name, numbers, origin)
    column = no_nan(column)
    if pa.types.is_string(column.type):
        column = non_empty(pc.utf8_trim_whitespace(column))
    wrong = 0
    try:
        counts = pc.cast(column, pa.int64())
        negative = pc.fill_null(pc.less(counts, 0), False).to_numpy(zero_copy_only=False)
        if not negative.any():
            return counts
        wrong = int(np.argmax(negative))
    except pa.ArrowInvalid:
        wrong = next(at for at in range(len(column)) if not _is_count(column[at]))
    seen = column[wrong].as_py()
    raise UsageError(f"{origin.at(numbers[wrong])}: {name} {seen!r}; wanted a whole number from 0 on, or nothing")


def _is_count(value: pa.Scalar) -> bool:
    try:
        return bool(value.as_py() is None or pc.cast(value, pa.int64()).as_py() >= 0)
    except pa.ArrowInvalid:
        return False


def _of_bucket(
    keys: Sequence[str] | pa.Array, buckets: Sequence[str] | pa.Array | None, base: str
) -> Sequence[str] | pa.Array:
    """Keys count from the root of their bucket: the one that a column names, else that of the list, if it has one."""
    scheme, _, rest = base.partition("://")
    names = rest.split("/")
    server = f"minio://{names[0]}/" if scheme == "minio" else "s3://"
    if buckets is None:
        if not is_remote(base):
            return keys
        root = server + names[1 if scheme == "minio" else 0]
        return (
            pc.binary_join_element_wise(root, keys, "/")
            if isinstance(keys, pa.Array)
            else [f"{root}/{k}" for k in keys]
        )
    if isinstance(keys, pa.Array):
        return pc.binary_join_element_wise(server, pc.binary_join_element_wise(buckets, keys, "/"), "")
    return [f"{server}{bucket}/{key}" for bucket, key in zip(buckets, keys, strict=True)]


def several(names: Sequence[str]) -> str:
    """Columns, for a message."""
    shown = ", ".join(name[:SHOWN_COLUMNS] for name in names[:SHOWN_COLUMNS])
    return f"{shown} (+{len(names) - SHOWN_COLUMNS} more)" if len(names) > SHOWN_COLUMNS else shown or "(none)"
