"""The boxes of an audit as fastdup lists them: `atrain_crops.csv`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import pyarrow as pa

from pipeline.kernels.crop_list import rotated_crops, upright_crops
from pipeline.layout.annotations import names_of
from pipeline.layout.detections import Found, KnownDetections, image_key
from pipeline.layout.images import ImageObject, image_object
from pipeline.layout.inputs import Inputs

BLOCK = 65_536


def crops_of(inputs: Inputs, detections: str, is_rotated: bool) -> Iterator[pa.Table]:
    """The upright or the rotated boxes of the snapshot of an audit, some at a time: columns of `kernels.crop_list`.

    detections: folder of what a detector found for this audit, "" where its boxes are of none.

    The label is what a detector said of the box, with its confidence; else the label of the audit.
    """
    table = rotated_crops if is_rotated else upright_crops
    return (table(rows) for rows in _boxes(inputs, detections))


def _boxes(inputs: Inputs, detections: str) -> Iterator[pa.Table]:
    snapshot, store = inputs.opened_snapshot(), inputs.root.open()
    known = KnownDetections(store, detections) if detections else None
    gone = inputs.gone()
    yield _table([], [], [], [])
    for lo in range(0, snapshot.total, BLOCK):
        hi = min(lo + BLOCK, snapshot.total)
        rows = inputs.catalog_rows(lo, hi).to_pylist()
        given = names_of(inputs.codes(lo, hi).label, inputs.vocabulary().labels).to_pylist()
        images = [(lo + at, image_object(row, snapshot)) for at, row in enumerate(rows)]
        removed = set(gone[slice(*gone.searchsorted((lo, hi)))].tolist())
        boxed = [(number, image) for number, image in images if image.box and number not in removed]
        said = _said(boxed, known) if known else {}
        labels = [said[number][0] if number in said else given[number - lo] for number, _ in boxed]
        confidences = [said[number][1] if number in said else None for number, _ in boxed]
        yield _table([number for number, _ in boxed], [rows[n - lo]["uri"] for n, _ in boxed], labels, confidences)


def _said(boxed: list[tuple[int, ImageObject]], known: KnownDetections) -> dict[int, tuple[str, float]]:
    """Label and confidence of the boxes that a detector found, by image_id."""
    said: dict[int, tuple[str, float]] = {}
    wholes = [(whole, [*rows]) for whole, rows in groupby(boxed, lambda item: item[1].whole)]
    keys = [image_key(whole) for whole, _ in wholes]
    for (_, rows), found in zip(wholes, known.of(keys), strict=True):
        said.update(_of_boxes(rows, found) if found else {})
    return said


def _of_boxes(rows: list[tuple[int, ImageObject]], found: Found) -> dict[int, tuple[str, float]]:
    place = {name: at for at, name in enumerate(found.boxes)}
    return {
        number: (found.labels[place[image.box]], found.confidences[place[image.box]])
        for number, image in rows
        if image.box in place
    }


def _table(ids: list[int], uris: list[str], labels: list[str | None], confidences: list[float | None]) -> pa.Table:
    columns = {
        "image_id": pa.array(ids, pa.int64()), "uri": pa.array(uris, pa.string()),
        "label": pa.array(labels, pa.string()), "confidence": pa.array(confidences, pa.float64()),
    }  # fmt: skip
    return pa.table(columns)
