"""Ranges of offsets, extracted by processes of their own: together they end in the tables of one run."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from audited import assert_equal_tables, noise_jpeg, run, small_set, write_files
from dying import committed
from held import ended, start

import pipeline
from pipeline.api import status
from pipeline.audit import Audit
from pipeline.layout.features import list_features
from pipeline.layout.parts import cover
from pipeline.show import status_text
from pipeline.storage import open_store

TOTAL = 27


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(write_files(folder / "photos", small_set()), root=folder / "audit")


def photos_of(audit: Audit) -> str:
    return str(Path(audit.root.uri).parent / "photos")


def in_range(photos: str, root: Path, *options: str) -> list[str]:
    return ["run", photos, "--root", str(root), "--runner", "local", *options]


def finishing_command(said: str) -> list[str]:
    """The command that the run printed, without the name of the program."""
    (line,) = [line for line in said.splitlines() if "image-audit run" in line]
    return shlex.split(line[line.index("image-audit run") :])[1:]


def features_folder(root: Path) -> str:
    (folder,) = {path.name for path in (root / "features").iterdir()}
    return f"features/{folder}"


def test_three_overlapping_ranges_at_once_are_one_run(undisturbed: Audit, tmp_path: Path) -> None:
    """Unaligned, overlapping, of three shard sizes, the last beyond the end; then the printed command finishes."""
    root, photos = tmp_path / "audit", photos_of(undisturbed)
    ranges = [("0", "13", "5"), ("9", "22", "4"), ("17", "99", "6")]
    processes = [
        start(in_range(photos, root, f"--min-offset={lo}", "--max-offset", hi, "--shard-size", size))
        for lo, hi, size in ranges
    ]
    said = [ended(process) for process in processes]
    parts = list_features(open_store(root), features_folder(root)).base

    assert sum(piece.hi - piece.lo for piece in cover(parts, 0, TOTAL)) == TOTAL
    assert not (root / "audits").exists()
    assert len(list((root / "catalog").glob("snapshot-*.json"))) == 1
    assert all("nothing was published" in text for text in said)
    assert "offsets [17, 27)" in said[2]
    extracted = {key: at for key, at in committed(root).items() if key.startswith("features/")}
    finish = finishing_command(said[1])
    assert not [word for word in finish if word.startswith(("--min", "--max"))]
    ended(start(finish))
    assert {key: at for key, at in committed(root).items() if key.startswith("features/")} == extracted
    assert_equal_tables(pipeline.open(root), undisturbed)


def test_finish_extracts_what_no_range_had(undisturbed: Audit, tmp_path: Path) -> None:
    """The plain command after a single range from the middle: that range stays as it is, the rest is added."""
    root, photos = tmp_path / "audit", photos_of(undisturbed)
    assert pipeline.run(photos, root=root, min_offset=5, max_offset=11, shard_size=4) is None
    extracted = {key: at for key, at in committed(root).items() if key.startswith("features/")}
    audit = run(photos, root=root)

    assert {key: at for key, at in committed(root).items() if key in extracted} == extracted
    parts = list_features(audit.root.open(), features_folder(root)).base
    assert [(part.lo, part.hi) for part in parts] == [(0, 5), (5, 8), (8, 11), (11, 27)]
    assert_equal_tables(audit, undisturbed)


def test_status_of_a_range_counts_the_whole_snapshot(undisturbed: Audit, tmp_path: Path) -> None:
    """What is done of all images, over every range so far, and unfinished until none is left."""
    root, photos = tmp_path / "audit", photos_of(undisturbed)
    pipeline.run(photos, root=root, max_offset=10, shard_size=4)
    assert extract_of(root) == ("unfinished", 10, TOTAL, 4, 1)
    pipeline.run(photos, root=root, min_offset=8, max_offset=20)
    assert extract_of(root) == ("unfinished", 20, TOTAL, 3, 1)
    pipeline.run(photos, root=root, min_offset=20)
    assert extract_of(root) == ("done", TOTAL, TOTAL, 1, 0)
    shown = status_text(status(str(root), {}))
    assert " of 27" not in shown


def extract_of(root: Path) -> tuple[str, int, int, int, int]:
    """State, items done and in all, parts and missing parts of extract."""
    (row,) = [row for row in status(str(root), {}) if row["stage"] == "extract"]
    if row["state"] == "unfinished":
        assert f"{row['items']} of {TOTAL}" in status_text([row])
    return row["state"], row["items"], row["items_in_all"], row["parts"], row["missing"]


def test_range_beyond_the_end_does_nothing(undisturbed: Audit, tmp_path: Path) -> None:
    """One process too many of a job that was cut by a guess is no error: it says where the snapshot ends."""
    said = ended(start(in_range(photos_of(undisturbed), tmp_path / "audit", "--min-offset", "40")))

    assert "no offset from 40 on: snapshot 1 ends at 27" in said
    assert not (tmp_path / "audit/features").exists()
    assert not (tmp_path / "audit/audits").exists()


def test_range_of_which_most_could_not_be_read_is_incomplete(tmp_path: Path) -> None:
    """It ended with 0 and the advice to go on; the counts by status are told either way, removed images in none."""
    files = {f"{number:02}.jpg": noise_jpeg(number) for number in range(8)}
    photos, root = write_files(tmp_path / "photos", files), tmp_path / "audit"
    (photos / "03.jpg").write_bytes(b"")
    for name in ("00", "05", "06"):
        (photos / f"{name}.jpg").unlink()
        (photos / f"{name}.jpg").symlink_to("/proc/self/mem")  # a regular file whose first byte is an error
    said = ended(start(in_range(str(photos), root, "--min-offset", "2")), code=4)
    assert "offsets [2, 8) of snapshot 1 (8 images) are extracted (1 empty, 3 ok, 2 timeout)" in said
    assert "2 of 6 images could not be read (2 timeout)" in said
    assert "Resume with: image-audit run" in said
    assert "offsets [1, 5) of snapshot 1 (8 images) are extracted (1 empty, 3 ok); nothing" in ended(
        start(in_range(str(photos), root, "--min-offset", "1", "--max-offset", "5"))
    )
    said = ended(start(in_range(str(photos), root, "--max-offset", "2")), code=4)
    assert "00.jpg: timeout" in said
    assert "05.jpg" not in said  # of another range
    (photos / "05.jpg").unlink()
    (photos / "06.jpg").unlink()
    assert "are extracted (all were removed)" in ended(
        start(in_range(str(photos), root, "--min-offset=5", "--max-offset=7"))
    )


@pytest.mark.parametrize(
    "options", [("--min-offset", "5", "--max-offset", "5"), ("--min-offset", "-1"), ("--max-offset", "0")]
)
def test_empty_range_is_a_wrong_call(undisturbed: Audit, tmp_path: Path, options: tuple[str, ...]) -> None:
    """It fails before any work."""
    said = ended(start(in_range(photos_of(undisturbed), tmp_path / "audit", *options)), code=2)

    assert "want 0 <= min_offset < max_offset" in said
    assert not (tmp_path / "audit").exists()
