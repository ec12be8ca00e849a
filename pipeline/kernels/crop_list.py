"""The boxes of an audit as fastdup lists them in `atrain_crops.csv`."""

from __future__ import annotations

from dataclasses import fields

import pyarrow as pa

from pipeline.kernels.boxes import Box, RotatedBox, UprightBox, split_box

_UPRIGHT = {"x": "col_x", "y": "row_y", "width": "width", "height": "height"}


def upright_crops(rows: pa.Table) -> pa.Table:
    """Columns index, filename, crop_filename, col_x, row_y, width, height[, label][, confidence] of upright boxes.

    `rows`: `image_id` and `uri`, and `label` and `confidence` where there are any. Rows that are no upright box are
    left out. The index is the image_id, the filename the parent's uri, the crop_filename the box's own uri: crops
    are cut from their parent when they are needed, and no file of them is kept.
    """
    listed, boxes = _listed(rows, UprightBox)
    sides = {name: [getattr(box, field) for box in boxes] for field, name in _UPRIGHT.items()}
    return _table(listed, sides, ("label", "confidence"))


def rotated_crops(rows: pa.Table) -> pa.Table:
    """Columns index, filename, crop_filename, x1, y1, ..., x4, y4[, confidence][, label] of rotated boxes."""
    listed, boxes = _listed(rows, RotatedBox)
    corners = {field.name: [getattr(box, field.name) for box in boxes] for field in fields(RotatedBox)}
    return _table(listed, corners, ("confidence", "label"))


def _listed(rows: pa.Table, kind: type[Box]) -> tuple[pa.Table, list[Box]]:
    """The rows whose box is of a kind, with their parent's uri, and these boxes."""
    found = [split_box(uri) for uri in rows["uri"].to_pylist()]
    places = [place for place, (_, box) in enumerate(found) if isinstance(box, kind)]
    parents = pa.array([found[place][0] for place in places], pa.string())
    listed = rows.take(pa.array(places, pa.int64())).append_column("parent", parents)
    return listed, [box for _, box in found if isinstance(box, kind)]


def _table(listed: pa.Table, numbers: dict[str, list[float]], more: tuple[str, ...]) -> pa.Table:
    columns = {"index": listed["image_id"], "filename": listed["parent"], "crop_filename": listed["uri"]}
    columns.update({name: pa.array(values, pa.float64()) for name, values in numbers.items()})
    columns.update({name: listed[name] for name in more if name in listed.column_names})
    return pa.table(columns)
