"""The rows of COCO annotations: one per box, or one per image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.sources.box_columns import XYWH, Numbers, boxes_of
from pipeline.sources.coco import HAS_BOX, HAS_NONE, IS_CROWD, NO_ID, Coco
from pipeline.sources.listed import Origin, Tally, batch_of

BATCH_ROWS = 65_536
CROWDS, BOXLESS, ORPHANS = "crowds", "annotations without a box", "annotations of images that are not listed"
EMPTY, NAMELESS = "images without a box", "annotations of categories without a name"
SEVERAL = "images of several categories without a box"


def box_rows(coco: Coco, origin: Origin, tally: Tally) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED, a row per annotation with a box: label = its category; `row` is the annotation, from 0.

    Left out and counted: crowds, which are many objects in one box; annotations without a box, and of images that are
    not listed; images without a box. The label of a category without a name is its id. Raises UsageError where no
    annotation belongs to a listed image.
    """
    image, kinds = _images(coco, origin, tally), np.asarray(coco.kinds)
    is_row = (image >= 0) & (kinds == HAS_BOX)
    for kind, what in ((IS_CROWD, CROWDS), (HAS_NONE, BOXLESS)):
        _count(tally, what, (image >= 0) & (kinds == kind), origin, "annotations")
    has_box = np.zeros(len(coco.file_names), np.bool_)
    has_box[image[is_row]] = True
    _count(tally, EMPTY, ~has_box, origin, "images")
    category = np.asarray(coco.of_category)
    _count(tally, NAMELESS, is_row & _is_nameless(coco, category), origin, "annotations")
    boxes = np.asarray(coco.boxes).reshape(-1, len(XYWH))
    rows = np.flatnonzero(is_row)
    for at in range(0, len(rows), BATCH_ROWS):
        part = rows[at : at + BATCH_ROWS]
        fragment, problem = _boxes(coco, boxes[part], part)
        columns = {"label": _labels(coco, category[part]), "fragment": fragment, "problem": problem}
        yield batch_of([coco.file_names[place] for place in image[part].tolist()], part, columns)


def coco_rows(coco: Coco, origin: Origin, tally: Tally) -> Iterator[pa.RecordBatch]:
    """The rows of boxes where an annotation has one, else those of images."""
    return (box_rows if HAS_BOX in coco.kinds else image_rows)(coco, origin, tally)


def image_rows(coco: Coco, origin: Origin, tally: Tally) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED, a row per image, `row` its place from 0: label = the category of all of its annotations, null
    where they differ, which is counted, or there is none.
    """
    image, category = _images(coco, origin, tally), np.asarray(coco.of_category)
    is_used = (image >= 0) & (category != NO_ID)
    image, category = image[is_used], category[is_used]
    only = np.full(len(coco.file_names), NO_ID, np.int64)
    only[image] = category
    several = np.zeros(len(only), np.bool_)
    several[image[category != only[image]]] = True
    only[several] = NO_ID
    _count(tally, SEVERAL, several, origin, "images")
    _count(tally, NAMELESS, _is_nameless(coco, only), origin, "images")
    for at in range(0, len(only), BATCH_ROWS):
        names = coco.file_names[at : at + BATCH_ROWS]
        columns = {"label": _labels(coco, only[at : at + BATCH_ROWS])}
        yield batch_of(names, range(at, at + len(names)), columns)


def _images(coco: Coco, origin: Origin, tally: Tally) -> NDArray[np.int64]:
    """The image of each annotation, int64 (m,), -1 where it is not listed."""
    ids, wanted = np.asarray(coco.image_ids), np.asarray(coco.of_image)
    order = np.argsort(ids, kind="stable")
    places = np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)
    found = np.where(ids[order[places]] == wanted, order[places], -1)
    if len(found) and (found < 0).all():
        raise UsageError(
            f"{origin.address}: none of its {len(found):,} annotations belongs to one of its {len(ids):,} images; the "
            f"first has the image_id {coco.ids.text(int(wanted[0]))}: are both of the same data set?"
        )
    _count(tally, ORPHANS, found < 0, origin, "annotations")
    return found


def _boxes(coco: Coco, boxes: NDArray[np.float64], rows: NDArray[np.int64]) -> tuple[pa.Array, pa.Array]:
    none = np.zeros(len(rows), np.bool_)
    columns = {name: Numbers(np.ascontiguousarray(boxes[:, at]), none, {}) for at, name in enumerate(XYWH)}
    fragment, problem = boxes_of(columns, len(rows))
    said = pa.array([coco.problems.get(row) for row in rows.tolist()], pa.string())
    return fragment, pc.coalesce(said, problem)


def _labels(coco: Coco, categories: NDArray[np.int64]) -> pa.Array:
    codes, places = np.unique(categories, return_inverse=True)
    names = [None if code == NO_ID else coco.category_names.get(code) or coco.ids.text(code) for code in codes.tolist()]
    return pa.array(names, pa.string()).take(pa.array(places))


def _is_nameless(coco: Coco, categories: NDArray[np.int64]) -> NDArray[np.bool_]:
    known = np.fromiter(coco.category_names, np.int64, len(coco.category_names))
    is_nameless: NDArray[np.bool_] = (categories != NO_ID) & ~np.isin(categories, known)
    return is_nameless


def _count(tally: Tally, what: str, which: NDArray[np.bool_], origin: Origin, array: str) -> None:
    if which.any():
        tally.add(what, int(which.sum()), f"{origin.address}, {array}[{int(np.argmax(which))}]")
