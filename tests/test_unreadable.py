"""Places and files that may not be read or written: what is named, and with which code a run ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
import encodings.utf_8_sig, os, sys
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


NAMED = ["a/1.jpg", "a-/1.jpg", "closed/1.jpg", "closed/more/2.jpg", "closed-/1.jpg", ".hidden/1.jpg", "z.jpg"]


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_folder_that_may_not_be_listed_is_a_row(world: Path, mode: int) -> None:
    """The run goes on; once the folder may be listed its images are there."""
    photos, root = reachable(world, NAMED)
    with closed(photos / "closed", photos / ".hidden", mode=mode):
        refused_share = as_nobody(str(photos), "--root", root)
        assert refused_share.returncode == 4, refused_share.stderr
        assert "1 of 5 images could not be read (1 denied)" in refused_share.stderr
        assert f"\n  {photos}/closed/: denied (list it: Permission denied. Give" in refused_share.stderr
        passed = as_nobody(str(photos), "--root", root, "--max-failed-share", "0.5", "--find-regex", r"[^z]\.jpg")
        assert passed.returncode == 0, passed.stderr
        assert f"{photos}: nothing is known of what lies in 1 folders that may not be listed, such as 'closed/'" in (
            passed.stderr
        )
        assert statuses(root) == {"a-/1.jpg": "ok", "a/1.jpg": "ok", "closed-/1.jpg": "ok", "closed/": "denied"}
        (invalid,) = pipeline.open(root).table("invalid").to_pylist()
        assert (invalid["uri"], invalid["status"]) == ("closed/", "denied")
    whole = as_nobody(str(photos), "--root", root)
    assert whole.returncode == 0, whole.stderr
    assert statuses(root) == {name: "ok" for name in NAMED if not name.startswith(".")}


def test_known_images_in_a_closed_folder_are_not_taken_for_removed(world: Path) -> None:
    photos, root = reachable(world, NAMED)
    assert as_nobody(str(photos), "--root", root).returncode == 0
    with closed(photos / "closed"):
        gone = as_nobody(str(photos), "--root", root)
        assert gone.returncode == 3
        assert "knows of 2 images below 1 such folders" in gone.stderr
        accepted = as_nobody(str(photos), "--root", root, "--accept-empty", "--max-failed-share", "0.5")
        assert accepted.returncode == 0, accepted.stderr
        assert statuses(root)["closed/"] == "denied"


def test_a_closed_folder_is_no_sign_that_a_mount_is_there(world: Path) -> None:
    """Its row is no image that is there: a disk that is away beside it is noticed."""
    photos, root = reachable(world, ["disk/1.jpg", "disk/2.jpg", "private/x.jpg"])
    with closed(photos / "private"):
        assert as_nobody(str(photos), "--root", root, "--max-failed-share", "1").returncode == 0
        for number in (1, 2):
            (photos / f"disk/{number}.jpg").unlink()
        away = as_nobody(str(photos), "--root", root, "--max-failed-share", "1")
        assert away.returncode == 3, away.stderr
        assert "no image is left of the 2" in away.stderr


def test_closed_folders_and_selections(world: Path) -> None:
    """One of no UTF-8; a subset tells by its names what it can take; where nothing is taken the folder is named."""
    photos, root = reachable(world, ["open/1.jpg", "open/2.jpg", "caf\udce9/x.jpg"])
    (world / "subset.txt").write_text("open/1.jpg\n")
    with closed(photos / "caf\udce9"):
        every = as_nobody(str(photos), "--root", root, "--max-failed-share", "1")
        assert every.returncode == 0, every.stderr
        assert statuses(root) == {"open/1.jpg": "ok", "open/2.jpg": "ok", "caf%E9/": "denied"}
        named = as_nobody(str(photos), "--root", root, "--subset", str(world / "subset.txt"))
        assert named.returncode == 0, named.stderr
        assert statuses(root) == {"open/1.jpg": "ok"}
        none = as_nobody(str(photos), "--root", root, "--tar-only")
        assert none.returncode == 2, none.stderr
        assert "and 1 folders may not be listed" in none.stderr


def reachable(world: Path, names: list[str]) -> tuple[Path, str]:
    """Photos that every user may read, and where every user may make a root."""
    photos = write_files(world / "photos", {name: noise_jpeg(number) for number, name in enumerate(names)})
    for path in (world, photos, *(path for path in photos.rglob("*") if path.is_dir())):
        path.chmod(0o755)
    (world / "roots").mkdir()
    (world / "roots").chmod(0o777)
    return photos, str(world / "roots/audit")


@contextmanager
def closed(*folders: Path, mode: int = 0) -> Iterator[None]:
    """Folders of which nobody may list the names, read the files, or both."""
    for folder in folders:
        folder.chmod(mode)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


def statuses(root: str) -> dict[str, str]:
    """Of every image of the latest audit."""
    return {row["uri"]: row["status"] for row in pipeline.open(root).table("images").to_pylist()}


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
