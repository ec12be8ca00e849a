"""What a Python caller gives in memory: lists of files and annotations, in any number, by several callers at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from audited import LOCAL, noise_jpeg, rows, run, write_files

import pipeline
from pipeline.audit import Audit
from pipeline.errors import IncompleteError, UsageError
from pipeline.given import with_given

FILES = {f"{place}/{at}.jpg": noise_jpeg(10 * at + len(place)) for at in range(3) for place in ("x", "yy")}


def paths(audit: Audit) -> set[str]:
    return {row["path"] for row in rows(audit, "images")}


def test_a_hundred_thousand_names_take_seconds(tmp_path: Path) -> None:
    """With work that grows with the square of the names this test would take minutes."""
    names = [f"/photos/{at // 1000}/{at}.jpg" for at in range(100_000)]
    _, given = with_given([names], {"root": str(tmp_path)})
    (text,) = given.values()
    assert text.decode().splitlines() == sorted(names)


def test_annotations_name_the_files_of_a_list(tmp_path: Path) -> None:
    """By their whole paths, which two of them share the last part of; a file alone has its folder as the base."""
    files = [write_files(tmp_path / "in", FILES) / name for name in FILES]
    table = {"filename": list(map(str, files)), "label": [f"label {at}" for at in range(len(files))]}
    audit = run(files, root=tmp_path / "audit", annotations=table)
    found = {row["path"]: row["label"] for row in rows(audit, "images")}
    assert found == dict(zip(table["filename"], table["label"], strict=True))
    alone = run(files[0], root=tmp_path / "alone", annotations={"filename": [str(files[0])], "label": ["one"]})
    assert [row["label"] for row in rows(alone, "images")] == ["one"]


def test_an_identical_call_prepares_nothing_anew(tmp_path: Path) -> None:
    files = [write_files(tmp_path / "in", FILES) / name for name in FILES]
    first = run(files, root=tmp_path / "audit")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "audit/catalog").rglob("*")}
    second = run(files[::-1], root=tmp_path / "audit")
    assert second.audit_id == first.audit_id
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "audit/catalog").rglob("*")} == before
    stages = {stage["stage"] for stage in second.published.session["stages"] if stage["state"] == "done"}
    assert "prepare lists" not in stages


def test_callers_with_other_lists_audit_their_own(tmp_path: Path) -> None:
    """On one root at once; the list is one source of it, whoever comes later. Where one removes images that the other
    still extracts, that one ends as incomplete and does it again, as its message says.
    """

    def own(files: list[Path]) -> Audit:
        with suppress(IncompleteError):
            return run(files, root=tmp_path / "audit")
        return run(files, root=tmp_path / "audit")

    folder = write_files(tmp_path / "in", FILES)
    lists = [[folder / name for name in FILES if name.startswith(start)] for start in "xy"]
    with ThreadPoolExecutor(2) as pool:
        audits = list(pool.map(own, lists))
    for audit, files in zip(audits, lists, strict=True):
        assert paths(audit) == set(map(str, files))
    again = run(lists[0], root=tmp_path / "audit")
    assert paths(again) == set(map(str, lists[0]))


def test_a_file_that_its_folder_leaves_out_stays(tmp_path: Path) -> None:
    """No image by its name, or hidden: named by itself it is audited; the others are listed once, by their folder."""
    write_files(tmp_path / "mix", {"a.jpg": noise_jpeg(1), "b.bin": noise_jpeg(2), ".c.jpg": noise_jpeg(3)})
    named = [tmp_path / "mix" / name for name in ("", "a.jpg", "b.bin", ".c.jpg")]
    audit = run(named, root=tmp_path / "audit")
    assert sorted(row["path"] for row in rows(audit, "images")) == sorted(map(str, named[1:]))


@pytest.mark.parametrize("config", [{"model": {"path": "none.onnx"}}, {"bounding_box": "xywh_bbox"}, {"treshold": 1}])
def test_a_refused_call_leaves_nothing(config: dict[str, object], tmp_path: Path) -> None:
    photo = write_files(tmp_path / "in", {"a.jpg": noise_jpeg(1)}) / "a.jpg"
    table = {"filename": [str(photo)], "label": ["x"]}
    for source in (tmp_path / "in", [photo]):
        if isinstance(source, list) and "bounding_box" in config:
            continue  # whether a list has boxes is known when it is listed
        with pytest.raises(pipeline.errors.AuditError):
            pipeline.run(source, root=tmp_path / "root", where=LOCAL, annotations=table, **config)
        assert not (tmp_path / "root").exists()
    with pytest.raises(UsageError):
        pipeline.run([photo], root=tmp_path / "root", where=LOCAL, annotations={"filename": [], "label": []})
    assert not (tmp_path / "root").exists()
