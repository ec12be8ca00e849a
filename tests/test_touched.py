"""Touched files keep their ids, whatever is known of their bytes, and a touch alone makes no other audit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from audited import by_uri, noise_jpeg, rows, run, small_set, write_files

from pipeline import plan
from pipeline.audit import Audit
from pipeline.errors import ArtifactError
from pipeline.layout.images import ImageObject
from pipeline.layout.snapshots import Snapshot, latest_snapshot
from pipeline.plan.preparing import take_snapshot
from pipeline.plan.session import RunnerStart, Session
from pipeline.plan.touched import KnownContent
from pipeline.stages.catalog import Content, Touched
from pipeline.stages.listing import Listed
from pipeline.storage import ObjectInfo

FILES = small_set(12)


def touch(path: Path, time: int) -> None:
    os.utime(path, ns=(time, time))


def ids(audit: Audit) -> dict[str, int]:
    return {row["uri"]: row["image_id"] for row in rows(audit, "images")}


def number(audit: Audit) -> int:
    """How many snapshots the root has."""
    return latest_snapshot(audit.root.open()).number


def test_a_touched_file_over_the_limit_is_the_same_audit(tmp_path: Path) -> None:
    """It is never read, so there is no hash: its size says all that is known of it. With a higher limit it is read."""
    photos, root = write_files(tmp_path / "photos", FILES), tmp_path / "audit"
    large = max(FILES, key=lambda uri: len(FILES[uri]))
    low = {"measure": {"max_bytes": len(FILES[large]) - 1}}
    first = run(photos, root=root, **low)
    assert by_uri(first, "invalid")[large]["status"] == "too_large"
    for time in (1, 2):
        touch(photos / large, time)
        assert run(photos, root=root, **low).audit_id == first.audit_id
        assert number(first) == 1
    read = run(photos, root=root)
    assert by_uri(read, "quality")[large]["image_id"] == ids(first)[large]
    assert run(photos, root=root, **low).audit_id == first.audit_id
    assert number(first) == 2  # now its bytes are known, and its new time with them


def test_an_image_that_could_not_be_read_keeps_its_id_until_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing when it was read, then back with other bytes: tried again under its id, which from then on they hold."""
    photos, root = write_files(tmp_path / "photos", FILES), tmp_path / "audit"
    uri = "train/a/a02.jpg"

    def take_and_delete(session: Session, start_runner: RunnerStart) -> Snapshot:
        snapshot = take_snapshot(session, start_runner)
        (photos / uri).unlink()
        return snapshot

    with monkeypatch.context() as patch:
        patch.setattr(plan, "take_snapshot", take_and_delete)
        missing = run(photos, root=root, max_failed_share=0.5)
    assert by_uri(missing, "invalid")[uri]["status"] == "missing"
    other = noise_jpeg(5).ljust(len(FILES[uri]), b"\0")
    (photos / uri).write_bytes(other)
    read = run(photos, root=root)
    assert ids(read) == ids(missing)
    assert (by_uri(read, "quality")[uri]["width"], number(read)) == (96, 1)
    assert run(photos, root=root).audit_id == read.audit_id
    assert number(read) == 2  # its bytes were compared, and are never again
    assert run(photos, root=root).audit_id == read.audit_id
    assert number(read) == 2
    (photos / uri).write_bytes(FILES[uri])
    assert ids(run(photos, root=root))[uri] == len(FILES)


def parts(root: Path) -> set[str]:
    """Keys of the feature parts of a root."""
    return {path.relative_to(root).as_posix() for path in root.glob("features/*/rows-*.parquet")}


def test_a_damaged_part_of_other_parameters_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is named, once, and the run goes on: its own features know the bytes. Who needs the part fails with it."""
    photos, root = write_files(tmp_path / "photos", FILES), tmp_path / "audit"
    small = {"measure": {"min_width": 12}}
    run(photos, root=root, **small)
    (damaged,) = parts(root)
    first = run(photos, root=root)
    (root / damaged).write_bytes(b"garbage")
    for uri in ("train/a/a02.jpg", "train/b/b00.jpg"):
        touch(photos / uri, 1)
    again = run(photos, root=root)

    assert again.audit_id == first.audit_id
    assert number(again) == 2
    (said,) = [line for line in caplog.messages if f"{damaged}: it is damaged" in line]
    assert "Delete that file and run again" in said
    with pytest.raises(ArtifactError, match=r"it is damaged .*Delete that file"):
        run(photos, root=root, **small)
    (root / damaged).unlink()
    assert ids(run(photos, root=root, **small)) == ids(first)


def test_ids_stay_where_damage_hides_what_was_read(tmp_path: Path) -> None:
    """The only part that knows the bytes is damaged: a run under other parameters makes no image a new one."""
    photos, root = write_files(tmp_path / "photos", FILES), tmp_path / "audit"
    first = run(photos, root=root)
    (damaged,) = parts(root)
    (root / damaged).write_bytes(b"garbage")
    touch(photos / "train/a/a02.jpg", 1)
    other = run(photos, root=root, measure={"min_width": 12})

    assert {row["image_id"] for row in rows(other, "images")} == set(range(len(FILES)))
    assert number(first) == 1


@pytest.mark.parametrize("ahead", [1, 2**25])
def test_many_touched_files_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """In any order, over parts of several models, with one read in flight or many: same, other, gone, never read."""
    photos, root = write_files(tmp_path / "photos", FILES), tmp_path / "audit"
    audit = run(photos, root=root, shard_size=4)
    run(photos, root=root, shard_size=5, measure={"min_width": 12})
    monkeypatch.setattr("pipeline.storage.ahead.BYTES_AHEAD", ahead)
    listed = sorted(ids(audit).items(), key=lambda item: item[1] % 7)
    infos = [(at, ObjectInfo(uri, len(FILES[uri]), "", 1)) for uri, at in listed] + [
        (99, ObjectInfo("x.jpg", 1, "", 1))
    ]
    files = [
        Touched(at, ImageObject(str(photos), info), Listed((0, info.key.encode(), -1, ""), info)) for at, info in infos
    ]
    uris = [uri for uri, _ in listed]
    (photos / uris[3]).write_bytes(b"other")
    (photos / uris[4]).unlink()
    expected = [Content.SAME] * len(uris) + [Content.OTHER]
    expected[3] = expected[4] = Content.OTHER

    assert KnownContent(audit.root)(files) == expected
    assert KnownContent(audit.root)(files[::-1]) == expected[::-1]
    assert KnownContent(audit.root)(files[5:6]) == [Content.SAME]


def test_a_file_that_two_models_read_differently_is_a_new_one(tmp_path: Path) -> None:
    """It was replaced between their runs, time and size kept: whichever bytes it has now, one of them read others."""
    photos, root = write_files(tmp_path / "photos", FILES), tmp_path / "audit"
    uri, small = "train/a/a02.jpg", {"measure": {"min_width": 12}}
    first = run(photos, root=root)
    time = (photos / uri).stat().st_mtime_ns
    (photos / uri).write_bytes(noise_jpeg(5).ljust(len(FILES[uri]), b"\0"))
    touch(photos / uri, time)
    assert ids(run(photos, root=root, **small)) == ids(first)
    touch(photos / uri, time + 1)
    assert ids(run(photos, root=root, **small))[uri] == len(FILES)
    assert ids(run(photos, root=root))[uri] == len(FILES)
