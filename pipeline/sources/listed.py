"""What every list and annotation table becomes: record batches of one schema, a row per image or box that it names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.sources.folder import escape_bytes

LISTED = pa.schema(
    [
        pa.field("address", pa.string(), nullable=False),
        pa.field("raw_address", pa.binary()),
        pa.field("split", pa.string()),
        pa.field("label", pa.string()),
        pa.field("fragment", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("problem", pa.string()),
        pa.field("row", pa.int64(), nullable=False),
    ]
)
"""address: path or URL; raw_address: its own bytes where they are not UTF-8 (each of them is `%XX` in `address`).
fragment: a box as `xywh=x,y,w,h` or `corners=x1,y1,...,x4,y4`, null for the whole image. size: bytes. mtime_ns: since
1970. problem: why the box of this row is bad. row: `Origin.unit` in the file, for messages."""

BLANK, COMMENTS = "blank lines", "comments"
"""Kinds of a Tally that are meant to be left out."""
BAD = "bad boxes"
"""Kind of a Tally that is not left out: rows with a problem."""
_REST = tuple(name for name in LISTED.names if name not in ("address", "raw_address", "row"))


@dataclass(frozen=True)
class Origin:
    """Where rows come from. address: of the file, for messages; base: canonical uri of the folder that relative
    addresses lie in; unit: what `row` counts; keeps_whole: a whole path or URL below the base stays what it is.
    """

    address: str
    base: str
    unit: str = "line"
    keeps_whole: bool = False

    def at(self, row: int) -> str:
        """`labels.csv line 3`."""
        return f"{escape_bytes(self.address)} {self.unit} {row:,}"


@dataclass
class Tally:
    """What a file holds beside the rows that were read: how many of each kind, and where the first one is."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, count: int, where: str) -> None:
        """Counts `count` things of one kind, of which the first is at `where`."""
        if count:
            self.counts[kind] += count
            self.first.setdefault(kind, where)

    def __str__(self) -> str:
        """`12 crowds (first: coco.json annotation 3); 4 blank lines (first: ...)`."""
        return self.only(self.counts)

    def only(self, kinds: Iterable[str]) -> str:
        """The same of some kinds."""
        return "; ".join(f"{self.counts[kind]:,} {kind} (first: {self.first[kind]})" for kind in sorted(kinds))


def batch_of(
    addresses: Sequence[str] | pa.Array, rows: Sequence[int] | NDArray[np.int64], columns: Mapping[str, pa.Array]
) -> pa.RecordBatch:
    """A batch of LISTED. addresses: text (n,), with surrogates for bytes that are not UTF-8; columns: others by name.

    Raises UsageError for a surrogate that stands for no byte.
    """
    address, raw = (addresses, None) if isinstance(addresses, pa.Array) else _texts(addresses)
    empty = {name: pa.nulls(len(address), LISTED.field(name).type) for name in _REST if name not in columns}
    found = {**empty, **columns, "address": address, "row": pa.array(rows, pa.int64())}
    found["raw_address"] = pa.nulls(len(address), pa.binary()) if raw is None else raw
    return pa.record_batch([found[name] for name in LISTED.names], schema=LISTED)


def addresses_of(batch: pa.RecordBatch) -> list[str]:
    """The addresses as `os.fsdecode` spells them: surrogates for bytes that are not UTF-8."""
    texts: list[str] = batch["address"].to_pylist()
    if batch["raw_address"].null_count == len(texts):
        return texts
    raws = batch["raw_address"].to_pylist()
    return [
        text if raw is None else raw.decode("utf-8", "surrogateescape") for text, raw in zip(texts, raws, strict=True)
    ]


def with_problems_told(batches: Iterable[pa.RecordBatch], origin: Origin, tally: Tally) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED; their bad boxes are counted, with the place and the problem of the first one."""
    for batch in batches:
        if count := batch.num_rows - batch["problem"].null_count:
            first = int(np.argmax(batch["problem"].is_valid().to_numpy(zero_copy_only=False)))
            tally.add(BAD, count, f"{origin.at(batch['row'][first].as_py())}: {batch['problem'][first]}")
        yield batch


def text_column(values: Sequence[str | None], name: str, numbers: Sequence[int], origin: Origin) -> pa.Array:
    """Strings (n,), null where empty or None. Raises UsageError that names the row of a value that is not UTF-8."""
    try:
        return pa.array([value or None for value in values], pa.string())
    except UnicodeEncodeError:
        pass
    number, value = next(pair for pair in zip(numbers, values, strict=True) if not _is_utf8(pair[1] or ""))
    shown = escape_bytes_anyway(value or "")
    raise UsageError(f"{origin.at(number)}: {name} {shown!r} is not UTF-8: save the file as UTF-8")


def non_empty(text: pa.Array) -> pa.Array:
    """Strings with null for each empty one.

    Not by if_else: beside a null, Arrow (17 to 22 at least) reads the text of a sliced array out of bounds.
    """
    is_empty = pc.fill_null(pc.equal(text, ""), False)
    return pc.replace_with_mask(text, is_empty, pa.scalar(None, text.type))


def trimmed(text: pa.Array) -> pa.Array:
    """Strings without the white space around them, null for each that is empty then: `cat, train` means `train`."""
    return non_empty(pc.utf8_trim_whitespace(text))


def no_nan(column: pa.Array) -> pa.Array:
    """A column with null for each NaN, which is how pandas writes that a number is missing."""
    return pc.if_else(pc.is_nan(column), None, column) if pa.types.is_floating(column.type) else column


def escape_bytes_anyway(text: str) -> str:
    r"""A text for messages: `%XX` for bytes that are not UTF-8, `\udXXX` for what stands for no byte."""
    try:
        return escape_bytes(text)
    except UsageError:
        return text.encode("utf-8", "backslashreplace").decode()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(addresses: Sequence[str]) -> tuple[pa.Array, pa.Array | None]:
    try:
        return pa.array(addresses, pa.string()), None
    except UnicodeEncodeError:
        pass
    shown = [escape_bytes(address) for address in addresses]
    raws = [
        None if text == address else address.encode("utf-8", "surrogateescape")
        for text, address in zip(shown, addresses, strict=True)
    ]
    return pa.array(shown, pa.string()), pa.array(raws, pa.binary())
