"""Verified pairs at rest: parts of a folder, what was settled of them by later attempts, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ArtifactError
from pipeline.layout.neighbours import edge_slices, read_edges
from pipeline.layout.tables import parquet_bytes, read_metadata, read_table
from pipeline.storage import Store, is_remote, read_ahead

S = TypeVar("S")
T = TypeVar("T")

AGAIN = "again"
UNSETTLED = "unsettled"
MOST_PART_BYTES = 2**20  # a part of 8,192 pairs holds 0.8 MB


def edges_folder(how: str, features: str, name: str) -> str:
    """Folder of the edges of some pairs. `how` pixels are compared; the features folder, for one id may have other
    bytes in another one: a file that was swapped while a run extracted it.
    """
    return f"edges/{how}/{features.rpartition('/')[2]}/{name}"


def features_of(folder: str) -> str:
    """The features folder of a folder of edges."""
    return f"features/{folder.split('/')[-2]}"


def commit_edges(store: Store, key: str, edges: pa.Table, unsettled: str = "") -> None:
    """Commits verified pairs. `unsettled`: why some of them were judged without pixels that another attempt may have.

    Where the part is there already it stays; the pairs and what both attempts decided on pixels must be equal. Raises
    ArtifactError otherwise.
    """
    ours = edges.replace_schema_metadata({UNSETTLED: unsettled} if unsettled else None)
    if store.put_if_absent(key, parquet_bytes(ours)):
        return
    theirs = read_table(store, key)
    names = ["image_id", "match_id"]
    same = _are_equal(theirs.select(names), ours.select(names))
    if same:
        both = pc.and_(theirs["is_verified"], ours["is_verified"])
        same = _are_equal(theirs.filter(both), ours.filter(both))
    if not same:
        raise ArtifactError(
            f"{store.uri}/{key}: two attempts of one part differ in what they saw on the same pixels. Parts of one "
            f"folder must come from one type of CPU and one version; delete {store.uri}/{key.rpartition('/')[0]} and "
            "run again."
        )


def unsettled_cause(store: Store, key: str) -> str:
    """Why pairs of a part were judged without their pixels, "" where none was; only its footer is read."""
    return read_metadata(store, key).get(UNSETTLED.encode(), b"").decode()


def edge_tables(store: Store, folder: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The edges of a folder, part by part, each pair once. Raises ArtifactError."""
    return each_in_order(store, edge_slices(store, folder), lambda piece: read_edges(store, piece, columns))


def each_in_order(store: Store, items: Iterable[S], read: Callable[[S], T]) -> Iterator[T]:
    """What `read` gives for each item, in order; some are read ahead where a store answers in tens of milliseconds."""
    return read_ahead(items, read, lambda _: MOST_PART_BYTES) if is_remote(store.uri) else map(read, items)


def _are_equal(one: pa.Table, other: pa.Table) -> bool:
    """Whether names and values are equal, NaN to NaN."""
    plain = [table.replace_schema_metadata(None).combine_chunks() for table in (one, other)]
    return plain[0].equals(plain[1]) or parquet_bytes(plain[0]) == parquet_bytes(plain[1])
