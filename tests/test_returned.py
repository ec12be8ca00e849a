"""Images that were gone for a while: they come back under the ids and with the features that they had."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from archives_made import tar_of
from audited import LOCAL, noise_jpeg, rows, run, write_files
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.audit import Audit

PHOTOS = {f"{number}.jpg": noise_jpeg(number) for number in range(8)}


def ids(audit: Audit) -> dict[str, int]:
    return {row["uri"]: row["image_id"] for row in rows(audit, "images")}


def statuses(audit: Audit) -> dict[str, str]:
    return {row["uri"]: row["status"] for row in rows(audit, "images")}


def extracted(audit: Audit) -> int:
    """Images that the latest session extracted."""
    stages = audit.published.session["stages"]
    return sum(stage["items"] for stage in stages if stage["stage"] == "extract" and stage["attempts"])


def test_another_selection_and_back(tmp_path: Path) -> None:
    """All, two of them, all: the third is the first, artifact by artifact."""
    folder, root = write_files(tmp_path / "photos", PHOTOS), tmp_path / "audit"
    first = run(folder, root=root)
    few = run(folder, root=root, select={"num_images": 2})
    again = run(folder, root=root)
    assert ids(few) == {uri: first_id for uri, first_id in ids(first).items() if first_id < 2}
    assert ids(again) == ids(first)
    assert (extracted(few), extracted(again)) == (0, 0)
    assert again.published.audit_id == first.published.audit_id


def test_images_that_come_back_have_the_space_that_they_trained(tmp_path: Path) -> None:
    """Whatever was trained in between, the tables are those that they had."""
    folder, root = write_files(tmp_path / "photos", PHOTOS), tmp_path / "audit"
    first = run(folder, root=root)
    few = run(folder, root=root, select={"num_images": 4}, neighbours={"space": "new"})
    again = run(folder, root=root)
    assert few.summary()["space"] != first.summary()["space"]
    assert again.published.audit_id == first.published.audit_id


def test_boxes_and_back(tmp_path: Path) -> None:
    folder, root = write_files(tmp_path / "photos", PHOTOS), tmp_path / "audit"
    first = run(folder, root=root)
    assert len(ids(run(folder, root=root, bounding_box="row_y=0,col_x=0,height=32,width=32"))) == len(PHOTOS)
    again = run(folder, root=root)
    assert (ids(again), extracted(again)) == (ids(first), 0)


def test_what_was_never_extracted_is_extracted_when_it_is_back(tmp_path: Path) -> None:
    """Gone before it was read: its part says so, and is tried again."""
    folder, root = write_files(tmp_path / "photos", PHOTOS), tmp_path / "audit"
    assert pipeline.run(folder, root=root, where=LOCAL, until="features") is None
    other = {"max_pixels": 10**7}
    run(folder, root=root, select={"num_images": 4}, measure=other)
    audit = run(folder, root=root, measure=other)
    assert statuses(audit) == dict.fromkeys(PHOTOS, "ok")
    assert sorted(ids(audit).values()) == list(range(len(PHOTOS)))


def test_another_file_of_the_name_is_another_image(tmp_path: Path) -> None:
    """Replaced and put back: the first id. Put back with another time: compared, and a new one."""
    folder, root = write_files(tmp_path / "photos", PHOTOS), tmp_path / "audit"
    os.utime(folder / "3.jpg", ns=(5, 5))
    first = ids(run(folder, root=root))
    (folder / "3.jpg").write_bytes(noise_jpeg(33))
    second = ids(run(folder, root=root))
    assert {uri for uri in first if second[uri] != first[uri]} == {"3.jpg"}
    (folder / "3.jpg").write_bytes(PHOTOS["3.jpg"])
    os.utime(folder / "3.jpg", ns=(5, 5))
    assert ids(run(folder, root=root)) == first
    (folder / "3.jpg").unlink()
    assert "3.jpg" not in ids(run(folder, root=root))
    (folder / "3.jpg").write_bytes(PHOTOS["3.jpg"])
    os.utime(folder / "3.jpg", ns=(6, 6))
    assert ids(run(folder, root=root))["3.jpg"] > max(second.values())


def test_an_archive_that_can_be_read_again_loses_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row that said why goes with the reason, though the file is as it was."""
    folder = write_files(tmp_path / "photos", PHOTOS | {"set.tar": tar_of([("a.jpg", noise_jpeg(90))])})
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.expand.archive_kind", _denied)
        denied = {
            row["uri"]: row["status"]
            for row in rows(run(folder, root=tmp_path / "audit", max_failed_share=1.0), "images")
        }
    assert denied["set.tar"] == "denied"
    found = {row["uri"]: row["status"] for row in rows(run(folder, root=tmp_path / "audit"), "images")}
    assert found == dict.fromkeys(PHOTOS, "ok") | {"set.tar#a.jpg": "ok"}


def _denied(_: bytes) -> Any:
    from pipeline.errors import AccessDenied

    raise AccessDenied("set.tar: denied")


@settings(max_examples=6, deadline=None)
@given(nights=st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=2, max_size=5))
def test_any_nights_have_what_is_there_and_no_image_two_ids(
    nights: list[set[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Files come and go with their times: the catalog of each night is the folder, and a file keeps its id."""
    place = tmp_path_factory.mktemp("nights")
    store = write_files(place / "store", {f"{number}.jpg": noise_jpeg(number) for number in range(5)})
    known: dict[str, int] = {}
    for night in nights:
        shutil.rmtree(place / "photos", ignore_errors=True)
        (place / "photos").mkdir()
        for number in night:
            shutil.copy2(store / f"{number}.jpg", place / "photos")
        found = ids(run(place / "photos", root=place / "audit"))
        assert set(found) == {f"{number}.jpg" for number in night}
        assert all(known.setdefault(uri, image_id) == image_id for uri, image_id in found.items())
    assert len(set(known.values())) == len(known)
