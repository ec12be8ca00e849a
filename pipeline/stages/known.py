"""Known stage: of the pairs to verify, those whose pixels an earlier audit of the root compared in the same way.

Ids are never reused and a changed file gets a new one, so a pair of ids has one verdict for given parameters and
decoders, which are in the name of the folder that holds the folders of edges; but a file that was swapped while a run
extracted it has other bytes in another features folder, and its pairs are compared again. Only what was decided on
pixels counts: the rest follows from similarities, which another space changes, or could not be read at the time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import ArtifactError, NotFound
from pipeline.kernels.hits import rows_of_pairs
from pipeline.layout.edges import each_in_order, features_of
from pipeline.layout.features import list_features, same_content
from pipeline.layout.neighbours import KNOWN, VERDICT, edge_slices, read_edges
from pipeline.layout.pairs import read_pairs
from pipeline.layout.parts import Slice, cut
from pipeline.layout.root import Root
from pipeline.layout.tables import parquet_bytes
from pipeline.runner import Counters
from pipeline.schemas import EDGES as EDGES_TABLE
from pipeline.schemas import Kind
from pipeline.storage import Store

log = logging.getLogger(__name__)

BLOCK = 131_072
PAIR = ("image_id", "match_id")
HELD = pa.schema([EDGES_TABLE.schema.field(name).with_nullable(True) for name in (*PAIR, *VERDICT)])


@dataclass(frozen=True)
class KnownSpec:
    """Collected pairs, so many, and the folders of earlier edges, the one that is asked first in front."""

    root: Root
    pairs: str
    count: int
    earlier: tuple[str, ...]
    folder: str


def collect_known(spec: KnownSpec) -> Counters:
    """Commits a verdict per pair, row-aligned with them, null where there is none.

    Both sides are sorted: a block of pairs and the verdicts up to its end are held at once, and 25 bytes per pair.
    """
    store = spec.root.open()
    earlier = [_Earlier(_verdicts(store, folder, spec.folder)) for folder in spec.earlier]
    blocks = [HELD.empty_table().select(VERDICT)]
    for lo, hi in cut(0, spec.count, BLOCK):
        pairs = read_pairs(store, spec.pairs, lo, hi, PAIR)
        blocks.append(_known_of(pairs, [folder.until(_last(pairs)) for folder in earlier]))
    known = pa.concat_tables(blocks)
    store.put_if_absent(f"{spec.folder}/{KNOWN}", parquet_bytes(known))  # of two the first stays: both are right
    return {"pairs": spec.count, "known": known.num_rows - known["kind"].null_count}


def _known_of(pairs: pa.Table, tables: list[pa.Table]) -> pa.Table:
    image_id, match_id = (pairs[name].to_numpy() for name in PAIR)
    found: NDArray[np.int64] = np.full(len(image_id), -1, np.int64)
    start = 0
    for table in tables:
        at = rows_of_pairs(image_id, match_id, *(table[name].to_numpy() for name in PAIR))
        found = np.where((found < 0) & (at >= 0), at + start, found)
        start += table.num_rows
    every = pa.concat_tables([HELD.empty_table(), *tables]).select(VERDICT)
    return every.take(pa.array(found, mask=found < 0))


def _verdicts(store: Store, folder: str, ours: str) -> Iterator[pa.Table]:
    """What a folder of edges decided on pixels, part by part, sorted by pair. Parts of a stopped audit count too."""
    same = _same_bytes(store, features_of(folder), features_of(ours))

    def read(piece: Slice) -> pa.Table:
        try:
            edges = read_edges(store, piece, [*HELD.names, "is_verified"])
        except (ArtifactError, NotFound) as error:  # no artifact of this audit: it can do without
            log.warning("%s Until then its pairs are compared again.", error)
            return HELD.empty_table()
        counted = edges["is_verified"] if same is None else pc.and_(edges["is_verified"], _of_same(edges, same))
        counted = pc.and_(counted, pc.not_equal(edges["kind"], Kind.SAME_PARENT.value))  # of copies that come and go
        return edges.filter(counted).select(HELD.names).cast(HELD)

    return each_in_order(store, edge_slices(store, folder), read)


def _same_bytes(store: Store, then: str, now: str) -> NDArray[np.bool_] | None:
    """Per id whether two features folders were extracted from the same bytes; None = all of them, it is one folder."""
    if then == now:
        return None
    try:
        return same_content(store, list_features(store, then), list_features(store, now))
    except ArtifactError as error:
        log.warning("%s Until then the pairs of that folder are compared again.", error)
        return np.zeros(0, bool)


def _of_same(edges: pa.Table, same: NDArray[np.bool_]) -> pa.Array:
    """Whether both images of each edge have the same bytes in the features of either audit."""
    ids = np.stack([edges[name].to_numpy() for name in PAIR])
    inside = ids < len(same)
    return pa.array((inside & same[np.where(inside, ids, 0)]).all(axis=0) if len(same) else inside.all(axis=0))


def _last(table: pa.Table) -> tuple[int, int]:
    return table["image_id"][-1].as_py(), table["match_id"][-1].as_py()


class _Earlier:
    """The verdicts of an earlier folder, read as far as they are asked for."""

    def __init__(self, parts: Iterator[pa.Table]) -> None:
        self._parts = parts
        self._held = HELD.empty_table()

    def until(self, pair: tuple[int, int]) -> pa.Table:
        """The verdicts up to a pair, and some after it; those before the pair asked for last may be left out."""
        taken = [self._held]
        while not (taken[-1].num_rows and _last(taken[-1]) > pair):
            part = next(self._parts, None)
            if part is None:
                break
            taken.append(part)
        self._held = taken[-1]
        return pa.concat_tables(taken)
