"""Prepare stage: reads a list of images once for as long as it is the same, and stores its rows sorted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.layout.fragments import Parent
from pipeline.layout.lists import ListWriter, list_key, listed_batch
from pipeline.layout.root import Root, opened
from pipeline.runner import Counters
from pipeline.sources.addresses import resolved
from pipeline.sources.inventory import data_opener, read_inventory, read_manifest
from pipeline.sources.list_kinds import HEAD_BYTES, Kind, kind_of, read_list
from pipeline.sources.list_warnings import list_warnings
from pipeline.sources.listed import Origin, Tally
from pipeline.sources.repeats import Repeats
from pipeline.sources.sorted_list import GivenRows, raw_keys, sorted_batches
from pipeline.storage import StorageConfig


@dataclass(frozen=True)
class PrepareSpec:
    """A list to prepare."""

    root: Root
    parent: Parent


def prepare(spec: PrepareSpec) -> Counters:
    """Stores the rows of a list, sorted, each image or box once, and what it gives them.

    Raises UsageError for what is no list, with the line, and a StorageError where it cannot be read.
    """
    repeats, given, writer, tally = Repeats(), GivenRows(), ListWriter(), Tally()
    for batch in sorted_batches(list_batches(spec.parent, spec.root.storage, tally), repeats):
        given.add(batch)
        writer.add(listed_batch(batch, raw_keys(batch)))
    writer.store(spec.root.open(), spec.parent, given.given(), list_warnings(spec.parent.info.key, tally, repeats))
    return {"lists": 1, "rows": writer.count, "repeated": repeats.same}


def part_key(spec: PrepareSpec) -> str:
    """Key of what the spec commits."""
    return list_key(spec.parent)


def list_batches(parent: Parent, storage: StorageConfig, tally: Tally) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED of a list as it is, in its own order, with the uris of `addresses.resolve`."""
    store = opened(parent.place, storage)
    address = f"{parent.place.rstrip('/')}/{parent.info.key}"
    with store.open(parent.info.key) as stream:
        if kind_of(address, stream.read(HEAD_BYTES)) is not Kind.INVENTORY:
            yield from read_list(stream, address, parent.place, tally)
            return
        stream.seek(0)
        manifest = stream.read()
    origin = Origin(address, parent.place, "row")
    inventory = read_manifest(manifest, origin)
    yield from resolved(read_inventory(inventory, data_opener(address, storage), origin, tally), origin)
