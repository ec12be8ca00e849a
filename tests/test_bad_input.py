"""Bad input: each gets right tables or one clear error with the right exit code, and nothing that was done is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from audited import (
    assert_equal_tables,
    by_uri,
    jpeg,
    noise_jpeg,
    rows,
    run,
    small_set,
    write_files,
)
from outcomes import QUIET, assert_consistent, refused
from PIL import Image

import pipeline
from pipeline import plan
from pipeline.api import status
from pipeline.cli import main
from pipeline.errors import NotFound
from pipeline.layout.snapshots import Snapshot
from pipeline.plan.preparing import take_snapshot
from pipeline.plan.session import RunnerStart, Session

COPIES = 500


def test_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """Empty tables and a line that says so; files that are no images by name count as nothing."""
    write_files(tmp_path / "photos", {"notes.txt": b"no image", ".hidden.jpg": b"x"})
    with caplog.at_level("INFO"):
        assert main(["run", str(tmp_path / "photos"), "--root", str(tmp_path / "audit"), "--runner", "local"]) == 0

    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(
        f"no images found in {tmp_path / 'photos'}: every table is empty (there is 1 file: 1 .txt"
    )
    assert "; 1 hidden; wanted .avif, .bmp, .gif, .giff, .heic" in warning
    assert "images      0 (0 ok, 0 invalid); 1 other file and 1 hidden file left out\n" in capsys.readouterr().out
    assert_consistent(pipeline.open(tmp_path / "audit"), 0, 0)


def test_a_folder_that_fills_and_empties(tmp_path: Path) -> None:
    """Empty, then images, then empty again, on one root."""
    (tmp_path / "photos").mkdir()
    assert_consistent(run(tmp_path / "photos", root=tmp_path / "audit"), 0, 0)
    write_files(tmp_path / "photos", {"a.jpg": noise_jpeg(1), "b.jpg": noise_jpeg(1)})
    filled = run(tmp_path / "photos", root=tmp_path / "audit")
    assert_consistent(filled, 2, 2)
    assert filled.summary()["duplicates"]["pairs"] == {"same_bytes": 1}
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "photos" / name).unlink()
    with pytest.raises(NotFound, match="no image is left of the 2 "):
        run(tmp_path / "photos", root=tmp_path / "audit")
    assert_consistent(run(tmp_path / "photos", root=tmp_path / "audit", accept_empty=True), 0, 0)


def test_files_that_are_no_images_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Counted by suffix over all sources, in a rerun too, and in the record; a source without an image warns."""
    one = write_files(tmp_path / "one", {f"{i}.{suffix}": b"x" for i in range(5) for suffix in ("dng", "exr")})
    write_files(one, {"a.jpg": noise_jpeg(1), ".git/config": b"x", "audit/audits/old.csv": b"x"})
    two = write_files(tmp_path / "two", {"b.JPG.part": b"x", "c.dng": b"x"})
    for line in ("catalog: 1 image in snapshot 1", "catalog: 1 image in snapshot 1, as before"):
        caplog.clear()
        with caplog.at_level("INFO"):
            audit = run(one, two, root=one / "audit", progress=True)
        assert line in caplog.messages
        assert "left out 12 files: 6 .dng, 5 .exr, 1 .part; 1 hidden" in caplog.messages
        (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert warning.startswith(f"no images found in {two} (there are 2 files: 1 .dng, 1 .part; wanted .avif, ")
        counters = audit.published.session["stages"][0]["counters"]
        assert (counters["left_out"], counters["hidden"]) == (12, 1)
        assert (audit.summary()["left_out"], audit.summary()["hidden"]) == (12, 1)
        assert "images      1 (1 ok, 0 invalid); 12 other files and 1 hidden file left out\n" in repr(audit)


def test_quiet_run_warns_of_an_empty_audit(tmp_path: Path) -> None:
    """A typing error must not pass for an audit without findings: one line on stderr, even with -q."""
    photos = write_files(tmp_path / "photos", {"a.dng": b"x"})
    command = [sys.executable, "-m", "pipeline.cli", "run", str(photos), "--root", str(tmp_path / "audit"), *QUIET]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stderr.startswith(f"no images found in {photos}: every table is empty (there is 1 file: 1 .dng; ")
    assert done.stderr.count("\n") == 1


def test_catalog_line_says_what_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Added, changed and removed since the snapshot before; not added up over all of them."""
    photos = write_files(tmp_path / "photos", {f"{i}.jpg": noise_jpeg(i) for i in range(4)})
    run(photos, root=tmp_path / "audit")
    (photos / "0.jpg").unlink()
    run(photos, root=tmp_path / "audit")
    write_files(photos, {"1.jpg": noise_jpeg(7, 80), "4.jpg": noise_jpeg(4), "5.jpg": noise_jpeg(5)})
    (photos / "2.jpg").unlink()
    caplog.clear()
    with caplog.at_level("INFO"):
        run(photos, root=tmp_path / "audit", progress=True)

    assert "catalog: 4 images in snapshot 3 (2 added, 1 changed, 1 removed since snapshot 2)" in caplog.messages
    (line,) = [line for line in caplog.messages if line.startswith("extract: ")]
    assert line.startswith("extract: 3 of 3 in ")  # the new ones; seven were ever seen
    assert line.endswith("; 1 done before")
    for stage in ("join copy", "join semantic", "score", "findings"):
        assert any(line.startswith(f"{stage}: 4 of 4 in ") for line in caplog.messages), stage
    assert next(row for row in status(str(tmp_path / "audit"), {}) if row["stage"] == "extract")["items"] == 4


def test_a_run_with_nothing_to_do_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line, and none of a stage that did nothing; the stages count as done before."""
    photos = write_files(tmp_path / "photos", {f"{i}.jpg": noise_jpeg(i) for i in range(3)})
    run(photos, root=tmp_path / "audit")
    caplog.clear()
    with caplog.at_level("INFO"):
        run(photos, root=tmp_path / "audit", progress=True)

    assert caplog.messages[-1] == "nothing had to be done: every stage was done before"
    assert "catalog: 3 images in snapshot 1, as before" in caplog.messages
    assert not [line for line in caplog.messages if re.search(r"\d+ of \d+ in \d", line)]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--labels", "{}"),
            r"labels\.csv names none of the 3 images: the table has 'zz/1.jpg', the source has 'a%0A",
        ),
        (("--pattern", "x(?P<label>y)"), r"'x\(\?P<label>y\)' matches none of the 3 images: the source has 'a%0A"),
    ],
)
def test_rule_that_matches_nothing(
    flags: tuple[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 with a name from each side, in a second run too: an audit without any label looked like a right one."""
    photos = write_files(tmp_path / "photos", {f"{name}.jpg": noise_jpeg(1) for name in ("a%0A", "b", "c")})
    table = tmp_path / "labels.csv"
    table.write_text("filename,label\nzz/1.jpg,x\nzz/2.jpg,y\n")
    arguments = [str(photos), "--root", str(tmp_path / "audit"), flags[0], flags[1].format(table)]
    for _ in range(2):
        capsys.readouterr()
        assert main(["run", *arguments, *QUIET]) == 2
        assert re.search(said, capsys.readouterr().err)


def test_table_that_matches_in_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows without an image and images without a row are counted, each with one name; removed images are neither."""
    files = {name: noise_jpeg(seed) for seed, name in enumerate(("a%20b.jpg", "b.jpg", "c.jpg", "d.jpg"))}
    photos, table = write_files(tmp_path / "photos", files), tmp_path / "labels.csv"
    table.write_text("filename,label\nnone.jpg,x\na%20b.jpg,x\nd.jpg,y\nc.jpg,x\nnor.jpg,y\n")
    run(photos, root=tmp_path / "audit", rule={"table": str(table)})
    (photos / "c.jpg").unlink()
    caplog.clear()
    with caplog.at_level("INFO"):
        audit = run(photos, root=tmp_path / "audit", rule={"table": str(table)}, progress=True)

    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        "1 of 3 images are not named by the table or pattern, such as 'b.jpg'",
        f"3 rows of the table {table} match no image, such as 'none.jpg'",
    ]
    found = {row["uri"]: row["label"] for row in rows(audit, "images")}
    assert found == {"a%2520b.jpg": "x", "b.jpg": None, "d.jpg": "y"}


def test_one_image(tmp_path: Path) -> None:
    """It is in every table of single images, without score, label or group."""
    audit = run(write_files(tmp_path / "photos", {"only.jpg": noise_jpeg(1)}), root=tmp_path / "audit")

    assert_consistent(audit, 1, 1)
    (outlier,) = rows(audit, "outliers")
    assert (outlier["score"], outlier["percentile"], outlier["nearest_id"]) == (None, None, None)
    assert not outlier["is_outlier"]
    assert audit.table("duplicates").num_rows == audit.table("labels").num_rows == 0


@pytest.mark.parametrize("count", [2, 9])
def test_a_few_images(count: int, tmp_path: Path) -> None:
    """An edited copy among two and among nine is found, and nothing else."""
    files, pair = small_set(10), ["train/b/b00.jpg", "val/b/half.jpg"]
    others = [uri for uri in files if uri not in (*pair, "test/a/copy.jpg", "train/b/cut.jpg")]
    chosen = [*pair, *others][:count]
    audit = run(write_files(tmp_path / "photos", {uri: files[uri] for uri in chosen}), root=tmp_path / "audit")

    assert_consistent(audit, count, count)
    grouped = {row["uri"] for row in rows(audit, "groups")}
    assert grouped == set(pair)
    assert {row["uri"] for row in rows(audit, "leaks") if row["severity"] >= 3} == grouped
    assert not any(row["is_outlier"] for row in rows(audit, "outliers"))


def test_all_images_identical(tmp_path: Path) -> None:
    """500 copies in three splits and two labels: one group, a leak for every copy into both other splits."""
    data, splits = noise_jpeg(4, 48), ("train", "val", "test")
    files = {f"{splits[i % 3]}/{'ab'[i % 7 == 0]}/{i:03}.jpg": data for i in range(COPIES)}
    audit = run(write_files(tmp_path / "photos", files), root=tmp_path / "audit")

    assert_consistent(audit, COPIES, COPIES)
    facts = audit.summary()
    assert facts["images"]["representatives"] == 1
    assert facts["duplicates"]["pairs"] == {"same_bytes": COPIES - 1}
    assert (facts["duplicates"]["groups"], facts["duplicates"]["largest_group"]) == (1, COPIES)
    leaks = rows(audit, "leaks")
    sides = {(row["uri"], row["match_split"]) for row in leaks}
    assert sides == {(uri, other) for uri in files for other in splits if other != uri.split("/")[0]}
    assert {row["severity"] for row in leaks} == {5}
    assert all(split["share"] == 1 for split in facts["leaks"]["splits"])
    assert audit.table("label_conflicts").num_rows == COPIES
    assert sum(row["is_keeper"] for row in rows(audit, "groups")) == 1
    assert not any(row["is_outlier"] for row in rows(audit, "outliers"))
    assert not any(row["is_label_issue"] for row in rows(audit, "labels"))


def test_every_file_is_corrupt(tmp_path: Path) -> None:
    """A row in invalid for each; equal bytes of broken files are no duplicates; exit 0."""
    broken = noise_jpeg(1)[:400]
    files = {"train/a/1.jpg": b"", "train/a/2.jpg": broken, "val/b/3.jpg": broken, "val/b/4.png": b"text" * 20}
    audit = run(write_files(tmp_path / "photos", files), root=tmp_path / "audit")

    assert_consistent(audit, 4, 0)
    assert {uri: row["status"] for uri, row in by_uri(audit, "invalid").items()} == {
        "train/a/1.jpg": "empty",
        "train/a/2.jpg": "truncated",
        "val/b/3.jpg": "truncated",
        "val/b/4.png": "unsupported",
    }
    assert audit.table("duplicates").num_rows == audit.table("leaks").num_rows == 0


def test_flat_images(tmp_path: Path) -> None:
    """Images of one colour have no signature: they are ok, and no pair of different colours is called a copy."""
    files = {f"{i}.jpg": jpeg(Image.new("RGB", (64, 64), (40 * i, 10, 255 - 40 * i))) for i in range(6)}
    audit = run(write_files(tmp_path / "photos", files), root=tmp_path / "audit")

    assert_consistent(audit, 6, 6)
    assert all(row["is_low_information_issue"] for row in rows(audit, "quality"))


def test_a_path_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """3 and the path; a file that is no source too; the root can be used afterwards."""
    root = str(tmp_path / "audit")
    assert str(tmp_path / "nowhere") in refused(capsys, 3, str(tmp_path / "nowhere"), "--root", root)
    (tmp_path / "file.bin").write_bytes(noise_jpeg(1))
    assert "it is a file; wanted a folder" in refused(capsys, 3, str(tmp_path / "file.bin"), "--root", root)
    write_files(tmp_path / "photos", {"a.jpg": noise_jpeg(1)})
    assert_consistent(run(tmp_path / "photos", root=root), 1, 1)


def test_a_source_that_vanishes_keeps_the_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unmounted disk is an error, not a thousand removed images."""
    photos, root = write_files(tmp_path / "photos", {"a.jpg": noise_jpeg(1)}), str(tmp_path / "audit")
    first = run(photos, root=root)
    photos.rename(tmp_path / "elsewhere")
    assert str(photos) in refused(capsys, 3, str(photos), "--root", root)
    (tmp_path / "elsewhere").rename(photos)

    again = run(photos, root=root)
    assert again.published.snapshot == first.published.snapshot
    assert again.audit_id == first.audit_id


def test_root_of_other_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One added is appended; one left out is an error that names it and changes nothing."""
    one = write_files(tmp_path / "one", {"train/a/1.jpg": noise_jpeg(1), "train/a/2.jpg": noise_jpeg(2)})
    two = write_files(tmp_path / "two", {"train/a/1.jpg": noise_jpeg(1), "val/a/3.jpg": noise_jpeg(3)})
    root = tmp_path / "audit"
    run(one, root=root)
    both = run(two, one, root=root)

    paths = [row["path"] for row in rows(both, "images")]
    assert paths == [f"{one}/train/a/1.jpg", f"{one}/train/a/2.jpg", f"{two}/train/a/1.jpg", f"{two}/val/a/3.jpg"]
    assert [row["source"] for row in rows(both, "images")] == [0, 0, 1, 1]
    (pair,) = [row for row in rows(both, "duplicates") if row["kind"] == "same_bytes"]
    assert (pair["image_id"], pair["match_id"]) == (0, 2)
    assert pair["uri"] == pair["match_uri"] == "train/a/1.jpg"
    message = refused(capsys, 2, str(two), "--root", str(root))
    assert f"leaves out: {one}. Name them too" in message
    assert_equal_tables(pipeline.open(root), both)
    assert_equal_tables(run(one, two, root=root), both)


def test_sources_inside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A source in another, twice the same, or the root itself: 2, with the names; nothing would be listed twice."""
    photos = write_files(tmp_path / "photos", {"train/a.jpg": noise_jpeg(1)})
    root = ["--root", str(tmp_path / "audit")]
    assert f"{photos}/train lies inside {photos}" in refused(capsys, 2, str(photos), str(photos / "train"), *root)
    assert f"{photos}/train lies inside" in refused(capsys, 2, str(photos), "--test", f"{photos}/train/", *root)
    assert "named twice" in refused(capsys, 2, str(photos), f"{photos}/../photos", *root)
    assert "is a source" in refused(capsys, 2, str(photos), "--root", str(photos))


def test_root_inside_the_source_is_not_audited(tmp_path: Path) -> None:
    """Images below the root are no part of the source, on the first run and on later ones."""
    photos = write_files(tmp_path / "photos", {"a.jpg": noise_jpeg(1), "audit2/b.jpg": noise_jpeg(2)})
    first = run(photos, root=photos / "audit")
    write_files(photos / "audit/audits/report", {"thumbnail.jpg": noise_jpeg(1)})
    second = run(photos, root=photos / "audit")

    assert [row["uri"] for row in rows(first, "images")] == ["a.jpg", "audit2/b.jpg"]
    assert_equal_tables(second, first)


def test_something_else_where_the_root_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file, or a folder whose root.json is of something else: an error that names it, and nothing is written."""
    photos = str(write_files(tmp_path / "photos", {"a.jpg": noise_jpeg(1)}))
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in refused(capsys, 3, photos, "--root", str(tmp_path / "file"))
    write_files(tmp_path / "other", {"root.json": b"{}"})
    assert "Choose another --root" in refused(capsys, 2, photos, "--root", str(tmp_path / "other"))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["root.json"]


def test_file_that_vanishes_under_a_hostile_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not UTF-8 and is gone when it is read: missing, with a message, and the others are fine."""
    photos = write_files(tmp_path / "photos", {"a.jpg": noise_jpeg(1), "b.jpg": noise_jpeg(2)})
    hostile = Path(os.fsdecode(os.fsencode(photos) + b"/c\xe9\n.jpg"))
    hostile.write_bytes(noise_jpeg(3))

    def take_and_delete(session: Session, start_runner: RunnerStart) -> Snapshot:
        snapshot = take_snapshot(session, start_runner)
        hostile.unlink()
        return snapshot

    monkeypatch.setattr(plan, "take_snapshot", take_and_delete)
    audit = run(photos, root=tmp_path / "audit", max_failed_share=0.5)

    assert {uri: row["status"] for uri, row in by_uri(audit, "invalid").items()} == {"c%E9\n.jpg": "missing"}
    assert_consistent(audit, 3, 2)
