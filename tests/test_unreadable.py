"""Places and files that may not be read or written: what is named, and with which code a run ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from audited import (
    noise_jpeg,
    run,
    scratch,
    write_files,
)
from outcomes import QUIET, assert_consistent, refused

import pipeline
from pipeline import plan
from pipeline.api import status
from pipeline.layout.snapshots import Snapshot
from pipeline.plan.preparing import take_snapshot
from pipeline.plan.session import RunnerStart, Session

AS_NOBODY = """
import os, sys
from pipeline.cli import main
assert main(["run", sys.argv[1], "--root", sys.argv[2], "--runner", "local", "--quiet"]) == 0  # imports everything
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.environ["HOME"] = "/nonexistent"
sys.exit(main(sys.argv[3:]))
"""


def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A run as a user whom permissions bind."""
    warm = write_files(scratch() / "warm", {"a.jpg": noise_jpeg(1), "b.jpg": noise_jpeg(1)})
    new = tempfile.mkdtemp(dir=scratch())  # a root with nothing left to do would import half
    command = [sys.executable, "-c", AS_NOBODY, str(warm), f"{new}/root", "run", *arguments, *QUIET]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_no_permission(world: Path) -> None:
    """A root that may not be written: 3. A folder that may not be listed any more: 3. A file: a status, 4 over 1%."""
    photos = write_files(world / "photos", {"open/a.jpg": noise_jpeg(1), "open/b.jpg": noise_jpeg(2)})
    for path in (world, photos, photos / "open"):
        path.chmod(0o755)
    (world / "closed").mkdir(mode=0o700)
    unwritable = as_nobody(str(photos), "--root", str(world / "closed/audit"))
    assert unwritable.returncode == 3, unwritable.stderr
    assert str(world / "closed") in unwritable.stderr
    assert f"uid {os.geteuid() or 65534}" in unwritable.stderr

    (world / "roots").mkdir()
    (world / "roots").chmod(0o777)
    root = str(world / "roots/audit")
    (photos / "open/b.jpg").chmod(0)
    (photos / "lost+found").mkdir(mode=0o700)  # which a file system has of its own; it is passed over
    unreadable = as_nobody(str(photos), "--root", root)
    assert unreadable.returncode == 4, unreadable.stderr
    assert "1 of 2 images could not be read (1 denied)" in unreadable.stderr
    assert re.search(rf"\n  {photos}/open/b\.jpg: denied \(read it: .*[Dd]enied.* right", unreadable.stderr)
    assert "or let more fail: --max-failed-share (max_failed_share) of at least 0.5." in unreadable.stderr
    (extract,) = [row for row in status(root, {}) if row["stage"] == "extract"]
    assert (extract["state"], extract["items"], extract["failed_images"]) == ("done", 2, 1)
    (photos / "open").chmod(0)
    unlisted = as_nobody(str(photos), "--root", root)
    assert unlisted.returncode == 3
    assert f"list {photos}/open/: Permission denied. Give this user (uid " in unlisted.stderr
    assert "knows of 2 images below 1 such folders: they would count as removed" in unlisted.stderr
    assert "--accept-empty" in unlisted.stderr
    (photos / "open").chmod(0o755)
    (photos / "open/b.jpg").chmod(0o644)
    finished = as_nobody(str(photos), "--root", root)
    assert finished.returncode == 0, finished.stderr
    assert_consistent(pipeline.open(root), 2, 2)
    assert [row["failed_images"] for row in status(root, {}) if row["stage"] == "extract"] == [0]


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_folder_that_may_not_be_listed_is_a_row(world: Path, mode: int) -> None:
    """The run goes on; once it may be listed its images are there, and none of them is ever taken for removed."""
    named = ["a/1.jpg", "a-/1.jpg", "closed/1.jpg", "closed/more/2.jpg", "closed-/1.jpg", ".hidden/1.jpg", "z.jpg"]
    photos = write_files(world / "photos", {name: noise_jpeg(i) for i, name in enumerate(named)})
    for path in (world, photos, *(path for path in photos.rglob("*") if path.is_dir())):
        path.chmod(0o755)
    (world / "roots").mkdir()
    (world / "roots").chmod(0o777)
    root = str(world / "roots/audit")
    closed = [photos / "closed", photos / ".hidden"]
    try:
        for path in closed:
            path.chmod(mode)
        refused_share = as_nobody(str(photos), "--root", root)
        assert refused_share.returncode == 4, refused_share.stderr
        assert "1 of 5 images could not be read (1 denied)" in refused_share.stderr
        assert f"\n  {photos}/closed/: denied (list it: Permission denied. Give" in refused_share.stderr
        passed = as_nobody(str(photos), "--root", root, "--max-failed-share", "0.5", "--find-regex", r"[^z]\.jpg")
        assert passed.returncode == 0, passed.stderr
        rows = pipeline.open(root).table("images").to_pylist()
        assert {row["uri"]: row["status"] for row in rows} == {
            "a-/1.jpg": "ok", "a/1.jpg": "ok", "closed-/1.jpg": "ok", "closed/": "denied",
        }  # fmt: skip
        (invalid,) = pipeline.open(root).table("invalid").to_pylist()
        assert (invalid["uri"], invalid["status"]) == ("closed/", "denied")
    finally:
        for path in closed:
            path.chmod(0o755)
    whole = as_nobody(str(photos), "--root", root)
    assert whole.returncode == 0, whole.stderr
    live = [row["uri"] for row in pipeline.open(root).table("images").to_pylist()]
    assert sorted(live) == sorted(name for name in named if not name.startswith("."))
    (photos / "closed").chmod(mode)
    try:
        gone = as_nobody(str(photos), "--root", root)
        assert gone.returncode == 3
        assert "knows of 2 images below 1 such folders" in gone.stderr
        accepted = as_nobody(str(photos), "--root", root, "--accept-empty", "--max-failed-share", "0.5")
        assert accepted.returncode == 0, accepted.stderr
        assert "closed/" in [row["uri"] for row in pipeline.open(root).table("invalid").to_pylist()]
    finally:
        (photos / "closed").chmod(0o755)


def test_few_of_many_unreadable_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five with their reasons and the number of the others, over parts."""
    photos = write_files(tmp_path / "photos", {f"{i:02}.jpg": noise_jpeg(i % 4) for i in range(12)})
    root = tmp_path / "audit"
    run(photos, root=root, shard_size=5)
    write_files(photos, {f"{i:02}.png": noise_jpeg(i) for i in range(20, 28)})

    def take_and_delete(session: Session, start_runner: RunnerStart) -> Snapshot:
        snapshot = take_snapshot(session, start_runner)
        for i in range(20, 28):
            (photos / f"{i}.png").unlink()
        return snapshot

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "take_snapshot", take_and_delete)
        message = refused(capsys, 4, str(photos), "--root", str(root), "--shard-size", "3")
    named = re.findall(rf"\n  {photos}/(\d\d)\.png: missing \(read it: ", message)
    assert named == ["20", "21", "22", "23", "24"]
    assert "8 of 20 images could not be read (8 missing)" in message
    assert "\n  (+3 more)\n" in message
    assert "--max-failed-share (max_failed_share) of at least 0.4." in message


@pytest.fixture
def world() -> Path:
    """A folder that every user may reach, unlike pytest's own."""
    scratch().chmod(0o755)
    return Path(tempfile.mkdtemp(prefix="world-", dir=scratch()))
