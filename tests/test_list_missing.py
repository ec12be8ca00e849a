"""Files of a list that are not there, or cannot be looked at: rows with a status, and no reason to lose the others."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from archives_made import tar_of
from audited import by_uri, noise_jpeg, rows, run, write_files

from pipeline.errors import NotFound, UsageError
from pipeline.layout.snapshots import latest_snapshot
from pipeline.storage import open_store

FILES = {f"{number}.jpg": noise_jpeg(number) for number in range(4)}


def set_of(folder: Path, *more: str) -> tuple[Path, Path]:
    """A folder of images, and a list elsewhere that names them by whole paths, and `more` of that folder."""
    photos = write_files(folder / "mount", FILES)
    named = "".join(f"{photos}/{name}\n" for name in (*FILES, *more))
    return photos, write_files(folder / "lists", {"l.txt": named.encode()}) / "l.txt"


def statuses(audit: Any) -> dict[str, str]:
    return {Path(uri).name: row["status"] for uri, row in by_uri(audit, "images").items()}


def test_a_list_whose_files_are_all_away_is_refused(tmp_path: Path) -> None:
    """As a folder is whose mount is away; also where files were added to it meanwhile. Accepted, it stays so."""
    photos, listed = set_of(tmp_path)
    root = tmp_path / "audit"
    first = {row["uri"]: row["image_id"] for row in rows(run(listed, root=root), "images")}
    photos.rename(tmp_path / "away")
    listed.write_text(f"{listed.read_text()}{photos}/new.jpg\n")
    with pytest.raises(NotFound, match=r"no image is left of the 4 that the root .* names 5 .* --accept-empty"):
        run(listed, root=root, max_failed_share=1.0)
    assert latest_snapshot(open_store(root)).live == 4
    (tmp_path / "away").rename(photos)
    again = {row["uri"]: row["image_id"] for row in rows(run(listed, root=root, max_failed_share=0.5), "images")}
    assert first.items() < again.items()

    photos.rename(tmp_path / "away")
    run(listed, root=root, max_failed_share=1.0, accept_empty=True)
    assert set(statuses(run(listed, root=root, max_failed_share=1.0)).values()) == {"missing"}


def test_a_new_list_without_a_file_is_refused(tmp_path: Path) -> None:
    """COCO in its usual layout: the names are of another folder. Where one file is there the others are rows."""
    coco = {"images": [{"id": at, "file_name": name} for at, name in enumerate(FILES)], "annotations": []}
    folder = write_files(tmp_path, {f"images/{name}": data for name, data in FILES.items()})
    listed = write_files(folder / "annotations", {"instances.json": json.dumps(coco).encode()}) / "instances.json"
    with pytest.raises(NotFound, match=r"none of the 4 files .* relative to the folder of the list.* --labels"):
        run(listed, root=tmp_path / "audit")
    write_files(folder / "annotations", {"0.jpg": FILES["0.jpg"]})
    audit = run(listed, root=tmp_path / "audit", max_failed_share=1.0)
    assert statuses(audit) == {name: "ok" if name == "0.jpg" else "missing" for name in FILES}


def test_files_that_are_there_and_not_selected_are_there(tmp_path: Path) -> None:
    """As many are selected as are missing; a list of a mount that is away stays refused, whatever is selected."""
    photos, listed = set_of(tmp_path, "gone.jpg", "lost.jpg")
    few: dict[str, Any] = {"root": tmp_path / "audit", "select": {"num_images": 2}, "max_failed_share": 1.0}
    assert statuses(run(listed, **few)) == dict.fromkeys(["0.jpg", "1.jpg"], "ok")
    photos.rename(tmp_path / "away")
    with pytest.raises(NotFound, match=r"no image is left of the 2 that the root"):
        run(listed, **few)


def test_a_mount_that_is_away_is_told_before_boxes_that_nothing_has(tmp_path: Path) -> None:
    photos, listed = set_of(tmp_path)
    boxes = {"filename": ["0.jpg"], "col_x": [0], "row_y": [0], "width": [20], "height": [20]}
    boxed: dict[str, Any] = {"root": tmp_path / "audit", "bounding_box": "xywh_bbox", "annotations": boxes}
    assert len(rows(run(listed, **boxed), "images")) == 1
    photos.rename(tmp_path / "away")
    with pytest.raises(NotFound, match="no image is left of the 1 that the root"):
        run(listed, **boxed)


def test_files_that_python_listed_are_named_as_such(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "photos", FILES)
    other = write_files(tmp_path / "other", {"x.jpg": noise_jpeg(9)})
    run([folder / "0.jpg", other], root=tmp_path / "audit")
    with pytest.raises(UsageError, match=r"leaves out: the files that pipeline.run\(\[...\]\) listed. Name them too"):
        run([other], root=tmp_path / "audit")


def test_some_files_away_are_rows_until_they_are_back(tmp_path: Path) -> None:
    """An image, its box, and an archive: nothing is kept of the time when they were away."""
    write_files(tmp_path, {**FILES, "a.tar": tar_of([("x/7.jpg", noise_jpeg(7))])})
    table = "filename,label,col_x,row_y,width,height\n0.jpg,,,,,\n1.jpg,,,,,\n1.jpg,b,0,0,20,20\na.tar,,,,,\n"
    listed = write_files(tmp_path, {"l.csv": table.encode()}) / "l.csv"
    before = run(listed, root=tmp_path / "audit")
    first = statuses(before)
    assert first == dict.fromkeys(["0.jpg", "1.jpg", "1.jpg#xywh=0,0,20,20", "7.jpg"], "ok")
    for name in ("1.jpg", "a.tar"):
        (tmp_path / name).rename(tmp_path / f"{name}.away")
    away = run(listed, root=tmp_path / "audit", max_failed_share=1.0)
    assert statuses(away) == {
        "0.jpg": "ok", "1.jpg": "missing", "1.jpg#xywh=0,0,20,20": "missing", "a.tar": "missing",
    }  # fmt: skip
    assert by_uri(away, "images")["1.jpg#xywh=0,0,20,20"]["label"] == "b"
    assert "No such file" in by_uri(away, "invalid")["1.jpg"]["message"]
    for name in ("1.jpg", "a.tar"):
        (tmp_path / f"{name}.away").rename(tmp_path / name)
    after = run(listed, root=tmp_path / "audit")
    assert statuses(after) == first
    assert after.table("images")["image_id"].to_pylist() == before.table("images")["image_id"].to_pylist()


def test_a_loop_of_links_and_a_bad_sector_are_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One odd path of a list, or archive in it, stops no run."""
    photos, listed = set_of(tmp_path, "loop.jpg", "loop.tar", "bad.jpg")
    for name in ("loop.jpg", "loop.tar"):
        (photos / name).symlink_to(name)
    plain = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        if path.name == "bad.jpg":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return plain(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        audit = run(listed, root=tmp_path / "audit", max_failed_share=1.0)
    odd = {"loop.jpg": "missing", "loop.tar": "missing", "bad.jpg": "timeout"}
    assert statuses(audit) == {**dict.fromkeys(FILES, "ok"), **odd}
    assert "Input/output error" in by_uri(audit, "invalid")[f"{photos}/bad.jpg"]["message"]
    write_files(photos, {"bad.jpg": noise_jpeg(9)})
    assert statuses(run(listed, root=tmp_path / "audit", max_failed_share=1.0))["bad.jpg"] == "ok"
