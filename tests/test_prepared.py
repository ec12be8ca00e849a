"""Images of a verify task: what boxes are cut out of is decoded once, in its turn, and equal to what was extracted."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives_made import tar_of
from audited import noise_jpeg, rows, run, write_files
from s3_servers import moto_port, new_store, use_credentials

from pipeline.audit import Audit
from pipeline.kernels.crop import BoxParams
from pipeline.kernels.decode import thumbnail_of
from pipeline.kernels.measure import MeasureParams
from pipeline.kernels.pillow_decode import Decoded
from pipeline.kernels.verify import prepare
from pipeline.kernels.verify_params import VerifyParams
from pipeline.layout.images import image_objects_of
from pipeline.layout.pixels import Cutting
from pipeline.layout.served import read_recipe
from pipeline.stages.prepared import PreparedImages
from pipeline.stages.reads import read_images

PARENTS, EACH = 8, 6
CUTTING = Cutting(MeasureParams(), BoxParams(0.0, 0.0))
STORAGE: dict[str, Any] = {"region": "us-east-1", "backoff": 0.0, "read_timeout": 5.0}
FILES = {f"{at}.jpg": noise_jpeg(at) for at in range(PARENTS)}


def boxed(folder: str, tmp_path: Path, prefix: str = "") -> Audit:
    lines = ["filename,col_x,row_y,width,height"]
    lines += [f"{prefix}{at}.jpg,{4 * n},{5 * n},40,44" for at in range(PARENTS) for n in range(EACH)]
    table = tmp_path / "boxes.csv"
    table.write_text("\n".join(lines) + "\n")
    return run(folder, root=tmp_path / "audit", annotations=str(table), boxes=PLAIN, storage=STORAGE)


PLAIN = {"horizontal": 0.0, "vertical": 0.0}


def prepared(audit: Audit, ids: list[int]) -> PreparedImages:
    return PreparedImages(read_recipe(audit.root, audit.audit_id).inputs, VerifyParams(), CUTTING, ids)


def interleaved(audit: Audit) -> list[int]:
    """Boxes in the order of pairs: each next one is of another image; some are asked for again, long after."""
    ids = sorted(row["image_id"] for row in rows(audit, "images") if row["status"] == "ok")
    assert len(ids) == PARENTS * EACH
    order = np.array(ids).reshape(PARENTS, EACH).T.ravel().tolist()
    return [*order, *order[::5]]


@pytest.mark.parametrize("place", ["loose", "in a tar", "touched", "in a bucket"])
def test_boxes_are_cut_out_of_one_decode_of_each_image(
    tmp_path: Path, decodes: Counter[int], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    prefix = "set.tar#" if place == "in a tar" else ""
    files = {"set.tar": tar_of(FILES.items())} if prefix else FILES
    folder = str(write_files(tmp_path / "photos", files))
    if place == "in a bucket":
        use_credentials(monkeypatch)
        store = new_store(moto_port(), "prepared-boxes")
        for name, data in files.items():
            store.put(name, data)
        folder = store.uri
    audit = boxed(folder, tmp_path, prefix)
    order = interleaved(audit)
    if place == "touched":
        for name in files:
            os.utime(Path(folder) / name, ns=(1, 1))
    decodes.clear()
    images = prepared(audit, order)
    first = images.get(order[0])
    assert sum(decodes.values()) == 1  # nothing is decoded before its turn
    found = [first, *map(images.get, order[1:])]
    assert decodes == {hash(data): 1 for data in FILES.values()}

    objects = image_objects_of(read_recipe(audit.root, audit.audit_id).inputs, np.unique(order))
    for image_id, made in zip(order, found, strict=True):
        (content,) = read_images(audit.root, [objects[image_id]], MeasureParams().max_bytes, CUTTING)
        assert isinstance(content, Decoded)
        assert made is not None
        params = VerifyParams()
        assert (made.luminance == prepare(thumbnail_of(content, params.side), params).luminance).all()


def test_boxes_of_an_image_that_was_replaced_are_not_compared(tmp_path: Path) -> None:
    """Of the same size and another time: its boxes alone are lost."""
    folder = write_files(tmp_path / "photos", FILES)
    audit = boxed(str(folder), tmp_path)
    data = bytearray(FILES["3.jpg"])
    at = data.index(b"\xff\xdb") + 5
    data[at : at + 30] = bytes(value % 200 + 20 for value in data[at : at + 30])  # other quantisation: other pixels
    (folder / "3.jpg").write_bytes(bytes(data))
    images = prepared(audit, order := interleaved(audit))
    lost = {image_id for image_id in order if images.get(image_id) is None}
    assert lost == {row["image_id"] for row in rows(audit, "images") if row["uri"].startswith("3.jpg")}
    assert len(lost) == EACH
