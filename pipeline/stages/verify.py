"""Verify stage: decides on the pixels of both images what each candidate pair is.

Under `pixels=False` no image is opened and nothing is asked of the catalog: similarity alone decides, for good.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.kernels.crop import BoxParams
from pipeline.kernels.decode import Thumbnail
from pipeline.kernels.header import ImageError
from pipeline.kernels.verify import Evidence, compare, is_near_without_pixels, kind_without_pixels, may_skip
from pipeline.kernels.verify_params import VerifyParams
from pipeline.layout.edges import AGAIN, commit_edges
from pipeline.layout.images import ImageObject, image_objects_of
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import EDGES
from pipeline.layout.pairs import read_pairs
from pipeline.layout.parts import part_name
from pipeline.layout.pixels import Cutting
from pipeline.layout.root import Root, opened_source
from pipeline.layout.siblings import are_together
from pipeline.layout.tables import parquet_bytes, read_rows
from pipeline.pulse import at_image
from pipeline.runner import Counters
from pipeline.schemas import EDGES as EDGES_TABLE
from pipeline.schemas import Kind, Status
from pipeline.stages.prepared import UNREADABLE, PreparedImages
from pipeline.storage import Store

log = logging.getLogger(__name__)

VERSION = 4
UNREAD = "unreadable"
"""Counter and cause of pairs that were judged without pixels, for want of an image."""
ALIGNED = ("correlation", "overlap", "is_mirrored")
ENDS = ("image_id", "match_id")
_SIBLINGS: dict[str, Any] = {**dict.fromkeys(ALIGNED), "kind": Kind.SAME_PARENT.value, "is_verified": True}


@dataclass(frozen=True)
class VerifySpec:
    """Rows [lo, hi) of the collected pairs. known: key of what earlier audits found of all of them, "" = nothing.

    `only`: rows to try again (a later attempt, committed beside the first); None for all of the range.
    """

    inputs: Inputs
    pairs: str
    folder: str
    params: VerifyParams
    max_pixels: int
    boxes: BoxParams
    known: str
    lo: int
    hi: int
    only: tuple[int, ...] | None = None
    attempt: int = 0


def verify(spec: VerifySpec) -> Counters:
    """Commits the kind and the evidence of a range of pairs; counters hold one count per kind, and `unreadable` ones.

    Raises StorageUnavailable where so many images are gone that their source must be away. Not where pairs are tried
    again: only those whose pixels were compared are committed then, the others stay as they are.
    """
    store = spec.inputs.root.open()
    pairs = _pairs(store, spec)
    if not spec.params.pixels:
        return _by_similarity(store, spec, pairs)
    rows = pairs.to_pylist()
    siblings = _siblings(spec.inputs, pairs)
    known = [_SIBLINGS if same else found for same, found in zip(siblings, _known(store, spec, rows), strict=True)]
    looked_at = [row for row, found in zip(rows, known, strict=True) if not (found or _skips(row, spec.params))]
    ids = (row[name] for row in looked_at for name in ENDS)
    prepared = PreparedImages(spec.inputs, spec.params, _cutting(spec), ids)
    evidence = [found or _evidence(row, prepared, spec.params) for row, found in zip(rows, known, strict=True)]
    edges = _edge_table(pairs, evidence)
    unread = pc.sum(unsettled(edges, spec.params)).as_py() or 0
    if spec.only is None:
        prepared.require_source()
        commit_edges(store, part_key(spec), edges, UNREAD if unread else "")
    else:
        _commit_settled(store, spec, edges)
    kinds = [item["kind"] for item in evidence]
    reused = sum(map(bool, known)) - int(siblings.sum())
    seen = {"pairs": len(rows), "looked_at": len(looked_at), "reused": reused, UNREAD: unread}
    return seen | {kind: kinds.count(kind) for kind in set(kinds)}


def part_key(spec: VerifySpec) -> str:
    """Key of the part that the spec commits."""
    return f"{spec.folder}/{part_name(EDGES if spec.only is None else AGAIN, spec.lo, spec.hi, spec.attempt)}"


def halves(spec: VerifySpec) -> list[VerifySpec]:
    """The spec cut in two; itself where it holds one pair."""
    if spec.only is not None:
        middle = len(spec.only) // 2
        cuts = [spec.only[:middle], spec.only[middle:]]
        return [replace(spec, only=rows, lo=rows[0], hi=rows[-1] + 1) for rows in cuts if rows]
    middle = (spec.lo + spec.hi) // 2
    return [replace(spec, lo=lo, hi=hi) for lo, hi in ((spec.lo, middle), (middle, spec.hi)) if lo < hi]


def quarantine(spec: VerifySpec, cause: str) -> Counters:
    """Commits one pair that killed or hung its process twice: its kind follows from similarity, the log names it, and
    the next run tries it again. What another attempt committed stays.

    Raises StorageUnavailable where a pair hung whose images cannot be had now: it may have been the store that hung.
    """
    if not spec.params.pixels:
        return verify(spec)
    store = spec.inputs.root.open()
    pairs = _pairs(store, spec)
    (row,) = pairs.to_pylist()
    ids = (row["image_id"], row["match_id"])
    images = image_objects_of(spec.inputs, np.array(ids, np.int64))
    if cause == Status.TIMEOUT.value:
        for image_id in ids:
            _look(images[image_id], spec.inputs.root)
    names = " and ".join(f"{images[image_id].name} ({image_id})" for image_id in ids)
    evidence = _unseen(kind_without_pixels(row["similarity"], row["signature_similarity"], spec.params))
    if spec.only is None:
        log.warning("%s: the process that compared their pixels died or hung twice; similarity alone decides", names)
        commit_edges(store, part_key(spec), _edge_table(pairs, [evidence]), cause)
    else:
        log.warning("%s: the process that compared their pixels died or hung once more; nothing changes", names)
    return {"pairs": 1, "looked_at": 0, "reused": 0, evidence["kind"]: 1, cause: 1}


def unsettled(edges: pa.Table, params: VerifyParams) -> pa.ChunkedArray:
    """Which edges were judged without pixels that should have been compared: bool, row-aligned."""
    if not params.pixels:
        return pa.chunked_array([pa.array(np.zeros(edges.num_rows, bool))])
    skipped = pc.and_(
        pc.greater_equal(edges["similarity"], params.skip_similarity),
        pc.greater_equal(edges["signature_similarity"], params.skip_signature),
    )
    return pc.invert(pc.or_(edges["is_verified"], pc.fill_null(skipped, fill_value=False)))


def _by_similarity(store: Store, spec: VerifySpec, pairs: pa.Table) -> Counters:
    """Commits what similarity says of pairs of which no pixels are ever compared."""
    near = is_near_without_pixels(pairs["similarity"].to_numpy(), pairs["signature_similarity"].to_numpy(), spec.params)
    siblings = _siblings(spec.inputs, pairs)
    near &= ~siblings
    kinds = pa.array([Kind.LOOK_ALIKE.value, Kind.NEAR_IDENTICAL.value]).take(pa.array(near.astype(np.int8)))
    kinds = pc.if_else(pa.array(siblings), pa.scalar(Kind.SAME_PARENT.value), kinds)
    nothing = {name: pa.nulls(len(near), EDGES_TABLE.schema.field(name).type) for name in ALIGNED}
    columns = {name: pairs[name] for name in pairs.column_names} | nothing
    columns |= {"kind": kinds, "is_verified": pa.array(siblings)}
    edges = pa.table({name: columns[name] for name in EDGES_TABLE.schema.names}, schema=EDGES_TABLE.schema)
    commit_edges(store, part_key(spec), edges)
    counts: dict[str, float] = {"pairs": len(near), "looked_at": 0, "reused": 0}
    return counts | Counter(kinds.to_pylist())


def _siblings(inputs: Inputs, pairs: pa.Table) -> NDArray[np.bool_]:
    """Which pairs are two frames or boxes of one file: no pixels decide what they are, bool (n,)."""
    return are_together(inputs, *(pairs[end].to_numpy() for end in ENDS))


def _pairs(store: Store, spec: VerifySpec) -> pa.Table:
    pairs = read_pairs(store, spec.pairs, spec.lo, spec.hi)
    return pairs if spec.only is None else pairs.take(pa.array(np.array(spec.only, np.int64) - spec.lo))


def _commit_settled(store: Store, spec: VerifySpec, edges: pa.Table) -> None:
    """Of two the first stays: both are right, and what it lacks is tried by the next run."""
    settled = edges.filter(edges["is_verified"])
    if settled.num_rows:
        store.put_if_absent(part_key(spec), parquet_bytes(settled))


def _known(store: Store, spec: VerifySpec, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What an earlier audit found on the pixels of each pair, empty where there is nothing or it is not asked for."""
    if not spec.known:
        return [{}] * len(rows)
    verdicts = read_rows(store, spec.known, spec.lo, spec.hi).to_pylist()
    return [
        {} if found["kind"] is None or _skips(row, spec.params) else {**found, "is_verified": True}
        for row, found in zip(rows, verdicts, strict=True)
    ]


def _skips(row: dict[str, Any], params: VerifyParams) -> bool:
    return may_skip(row["similarity"], row["signature_similarity"], params)


def _evidence(row: dict[str, Any], prepared: PreparedImages, params: VerifyParams) -> dict[str, Any]:
    if _skips(row, params):
        return _unseen(Kind.NEAR_IDENTICAL)
    a, b = prepared.get(row["image_id"]), prepared.get(row["match_id"])
    if a is None or b is None:
        return _unseen(kind_without_pixels(row["similarity"], row["signature_similarity"], params))
    with at_image():
        found: Evidence = compare(a, b, params)
    return {
        "kind": found.kind.value,
        "correlation": float(found.correlation),
        "overlap": float(found.overlap),
        "is_mirrored": bool(found.mirrored),
        "is_verified": True,
    }


def _unseen(kind: Kind) -> dict[str, Any]:
    return {"kind": kind.value, "correlation": None, "overlap": None, "is_mirrored": None, "is_verified": False}


def _edge_table(pairs: pa.Table, evidence: list[dict[str, Any]]) -> pa.Table:
    columns: dict[str, Any] = {name: pairs[name] for name in pairs.column_names}
    for name in ("kind", "correlation", "overlap", "is_mirrored", "is_verified"):
        columns[name] = [item[name] for item in evidence]
    return pa.table({name: columns[name] for name in EDGES_TABLE.schema.names}, schema=EDGES_TABLE.schema)


def _cutting(spec: VerifySpec) -> Cutting:
    return Cutting(Thumbnail(spec.max_pixels), spec.boxes)


def _look(image: ImageObject, root: Root) -> None:
    """Raises StorageUnavailable where its store does not answer. Decodes nothing: what hung twice would hang here too,
    and nobody watches.
    """
    with suppress(*UNREADABLE, ImageError):
        if image.whole.has_bytes:
            image.whole.read(root)
        else:
            opened_source(image.source, root.storage).read_range(image.info.key, 0, 1, expect=image.expected)
