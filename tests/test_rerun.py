"""A second run on a root does only what is missing or changed; ids are never reused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from audited import (
    LOCAL,
    SEED,
    Audited,
    assert_equal_tables,
    by_uri,
    noise_jpeg,
    planted_audit,
    rows,
    run,
    small_set,
    write_files,
)

import pipeline
from pipeline.api import status
from pipeline.audit import Audit
from pipeline.config import config_from
from pipeline.layout.features import list_features
from pipeline.layout.root import Root
from pipeline.layout.snapshots import latest_snapshot
from pipeline.plan import Call, run_audit
from pipeline.progress import SilentReporter
from pipeline.runner import LocalRunner, Runner

SEARCH = ("duplicates", "groups", "leaks")


def attempts(audit: Audit) -> dict[str, int]:
    """Stage -> tasks carried out in the session that published the audit; without those that had none."""
    return {stage["stage"]: stage["attempts"] for stage in audit.published.session["stages"] if stage["attempts"]}


def snapshot_of_files(root: Path) -> dict[str, tuple[int, int]]:
    """Every file of a root but records of sessions -> size and inode."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            key = path.relative_to(root).as_posix()
            if not key.startswith(("status/", "sessions/")):
                found[key] = (path.stat().st_size, path.stat().st_ino)
    return found


@pytest.fixture(scope="module")
def planted() -> Audited:
    return planted_audit(SEED)


def test_second_run_does_nothing(planted: Audited) -> None:
    """No task is carried out, no file but the records is written, and the audit is the same one."""
    before = snapshot_of_files(planted.root)
    again = run(planted.photos, root=planted.root)

    assert attempts(again) == {"catalog": 1}  # the listing itself
    assert snapshot_of_files(planted.root) == before
    assert again.audit_id == planted.audit.audit_id
    assert again.summary() == planted.audit.summary()
    assert_equal_tables(again, planted.audit)


def test_a_touched_file_makes_no_other_audit(tmp_path: Path) -> None:
    """Equal bytes with a new time are one more snapshot, for the next listing, and nothing else is done."""
    photos, root = write_files(tmp_path / "photos", small_set(12)), tmp_path / "audit"
    first = run(photos, root=root)
    os.utime(photos / "train/a/a00.jpg", ns=(1, 1))
    again = run(photos, root=root)

    assert latest_snapshot(first.root.open()).number == 2
    assert attempts(again) == {"catalog": 1}
    assert again.audit_id == first.audit_id
    assert (again.published.snapshot, len([*root.glob("audits/*")])) == (1, 1)


def test_what_splits_and_labels_do_not_change_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same table under another address or in another order is the same audit; a label alone moves no neighbour."""
    files = small_set(12)
    photos, root = write_files(tmp_path / "photos", files), tmp_path / "audit"
    lines = [f"{uri},{uri.split('/')[1]}" for uri in files]
    written = {"one.csv": lines, "turned.csv": lines[::-1], "other.csv": [*lines[:-1], f"{[*files][-1]},c"]}
    for name, listed in written.items():
        (tmp_path / name).write_text("\n".join(["filename,label", *listed]))
    first = run(photos, root=root, rule={"table": str(tmp_path / "one.csv")})
    monkeypatch.chdir(tmp_path)
    assert attempts(run(photos, root=root, rule={"table": "./one.csv"})) == {"catalog": 1}
    turned = run(photos, root=root, rule={"table": "turned.csv"})
    other = run(photos, root=root, rule={"table": "other.csv"})

    assert turned.audit_id == first.audit_id
    assert set(attempts(turned)) == {"catalog", "annotate", "vocabulary", "exact groups"}
    assert set(attempts(other)) == {*attempts(turned), "score", "totals", "findings", "summary"}
    assert {row["label"] for row in rows(other, "images")} == {"a", "b", "c"}


def states(root: Path) -> dict[str, tuple[str, int, int, float]]:
    """Stage -> its state, parts, parts done before and seconds, as `status` tells them."""
    names = ("state", "parts", "parts_done_before", "seconds")
    return {row["stage"]: tuple(row[name] for name in names) for row in status(str(root), {})}  # type: ignore[misc]


def test_status_is_of_the_latest_run(tmp_path: Path) -> None:
    """What was done before says so, with what it took then; stages that the run did not come to are not shown."""
    photos, root = write_files(tmp_path / "photos", small_set(12)), tmp_path / "audit"
    pipeline.run(photos, root=root, where=LOCAL, max_offset=8, shard_size=4)
    assert list(states(root)) == ["catalog", "extract"]
    assert states(root)["extract"][:3] == ("unfinished", 3, 0)  # of the whole snapshot
    run(photos, root=root, shard_size=4)
    first = states(root)
    assert first["extract"][:3] == ("done", 4, 2)
    assert first["catalog"][:3] == ("done", 1, 0)
    assert "annotate" in first
    run(photos, root=root)
    again = states(root)
    between = {"assign copy", "join copy", "thin", "assign semantic", "join semantic"}  # nobody reads what they make
    assert first.keys() - again.keys() == {"train"} | between  # the space was kept
    assert again["extract"] == ("done before", 4, 4, first["extract"][3])
    assert {state for stage, (state, *_) in again.items() if stage != "catalog"} == {"done before"}
    (photos / "train" / "a" / "new.jpg").write_bytes(noise_jpeg(3))
    (photos / "val" / "b" / "half.jpg").unlink()
    pipeline.run(photos, root=root, where=LOCAL, min_offset=2)

    assert list(states(root)) == ["catalog", "extract"]
    assert states(root)["extract"][:3] == ("done", 5, 4)


def test_another_threshold_shares_the_features(tmp_path: Path) -> None:
    """A fixed threshold makes another audit of the same features, space and annotations; both stay readable."""
    photos = write_files(tmp_path / "photos", small_set())
    first = run(photos, root=tmp_path / "audit")
    kept = {name: rows(first, name) for name in SEARCH}
    strict = run(photos, root=tmp_path / "audit", neighbours={"threshold": 0.995})

    done = attempts(strict)
    assert not {"extract", "annotate", "exact groups", "moments", "train"} & set(done)
    assert {"join copy", "pairs", "findings"} <= set(done)
    assert strict.audit_id != first.audit_id
    assert strict.summary()["threshold"]["value"] == 0.995
    assert {row["kind"] for row in rows(strict, "duplicates")} == {"same_bytes"}
    reopened = pipeline.open(tmp_path / "audit", first.audit_id)
    assert {name: rows(reopened, name) for name in SEARCH} == kept
    assert pipeline.open(tmp_path / "audit").audit_id == strict.audit_id


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Audit, Audit, dict[str, Any]]:
    """An audit, the one after its folder changed, and what was changed."""
    folder = tmp_path_factory.mktemp("changed")
    files = {**small_set(30), "train/b/empty.jpg": b""}
    photos = write_files(folder / "photos", files)
    first = run(photos, root=folder / "audit")
    before = {name: rows(first, name) for name in (*SEARCH, "images")}
    plain = [uri for uri in files if uri.startswith(("train/a/a", "train/b/b"))]
    what = {"replaced": plain[1], "grown": plain[2], "touched": plain[3], "removed": plain[4]}
    what |= {"added": "train/a/aaa.jpg", "added copy": "val/b/again.jpg", "tables before": before}
    what["root"] = folder / "audit"
    same_size = bytearray(files[what["replaced"]])
    same_size[-3] ^= 1
    (photos / what["replaced"]).write_bytes(same_size)
    (photos / what["grown"]).write_bytes(noise_jpeg(3))
    for uri in (what["touched"], "train/b/empty.jpg", "train/b/cut.jpg"):
        os.utime(photos / uri, ns=(1, 1))
    (photos / what["removed"]).unlink()
    (photos / what["added"]).write_bytes(noise_jpeg(4))
    shutil.copyfile(photos / plain[5], photos / what["added copy"])
    what["original"] = plain[5]
    return first, run(photos, root=folder / "audit", neighbours={"space": "keep"}), what


def test_ids_are_never_reused(changed: tuple[Audit, Audit, dict[str, Any]]) -> None:
    """Kept images keep their id, a touched one too; new and replaced ones get ids past all earlier ones."""
    first, second, what = changed
    before = {row["uri"]: row["image_id"] for row in what["tables before"]["images"]}
    after = by_uri(second, "images")
    new = {what[name] for name in ("replaced", "grown", "added", "added copy")}

    assert set(after) == set(before) - {what["removed"]} | {what["added"], what["added copy"]}
    assert {uri: row["image_id"] for uri, row in after.items() if uri not in new} == {
        uri: image_id for uri, image_id in before.items() if uri not in new | {what["removed"]}
    }
    assert sorted(after[uri]["image_id"] for uri in new) == list(range(len(before), len(before) + len(new)))
    assert second.published.snapshot == first.published.snapshot + 1


def test_removed_images_are_in_no_table(changed: tuple[Audit, Audit, dict[str, Any]]) -> None:
    """No id of a removed or replaced image stands in any column of any table."""
    _, second, what = changed
    before = {row["uri"]: row["image_id"] for row in what["tables before"]["images"]}
    gone = {before[what[name]] for name in ("replaced", "grown", "removed")}
    columns = ("image_id", "match_id", "nearest_id", "medoid_id", "representative_id", "conflict_id", "group_id")
    for name in pipeline.audit.FINDINGS:
        table = second.table(name)
        for column in set(columns) & set(table.column_names):
            assert not gone & set(table[column].to_pylist()), (name, column)
    assert second.summary()["images"]["live"] == second.table("images").num_rows


def test_only_new_files_are_extracted(changed: tuple[Audit, Audit, dict[str, Any]]) -> None:
    """The features of the second run are one part: the rows that it appended."""
    first, second, _ = changed
    store = second.root.open()
    folders = {info.key.split("/")[1] for info in store.list("features/")}
    assert len(folders) == 1
    total = len(rows(first, "images"))
    base = list_features(store, f"features/{folders.pop()}").base

    assert [(part.lo, part.hi) for part in base] == [(0, total), (total, total + 4)]
    (extract,) = [stage for stage in second.published.session["stages"] if stage["stage"] == "extract"]
    assert extract["counters"]["images"] == 4


def test_findings_follow_the_change(changed: tuple[Audit, Audit, dict[str, Any]]) -> None:
    """The new copy is found, the old pairs stay with their similarity: the space was kept."""
    _, second, what = changed
    listed = {frozenset((row["uri"], row["match_uri"])): row for row in rows(second, "duplicates")}
    kept = {"same_bytes", "near_identical"}
    old = [row for row in what["tables before"]["duplicates"] if row["kind"] in kept]

    assert listed[frozenset((what["original"], what["added copy"]))]["kind"] == "same_bytes"
    assert old
    for row in old:
        now = listed[frozenset((row["uri"], row["match_uri"]))]
        assert (now["kind"], now["similarity"]) == (row["kind"], row["similarity"])
    assert not {"moments", "train"} <= set(attempts(second))  # moments are taken to see that the space fits


def test_audit_before_the_change_stays(changed: tuple[Audit, Audit, dict[str, Any]]) -> None:
    """The tables of the earlier audit are as they were."""
    first, _, what = changed
    assert {name: rows(first, name) for name in what["tables before"]} == what["tables before"]


def grouping_pairs(audit: Audit) -> set[tuple[frozenset[str], str]]:
    listed = rows(audit, "duplicates")
    return {(frozenset((r["uri"], r["match_uri"])), r["kind"]) for r in listed if r["group_id"] is not None}


def test_restoring_the_files_gives_their_findings_again(tmp_path: Path) -> None:
    """Remove an image, run, put it back, run: the findings are those of the first run, under a new id."""
    files = small_set(16)
    photos = write_files(tmp_path / "photos", files)
    first = run(photos, root=tmp_path / "audit")
    pairs = grouping_pairs(first)
    (photos / "test/a/copy.jpg").unlink()
    without = run(photos, root=tmp_path / "audit")
    (photos / "test/a/copy.jpg").write_bytes(files["test/a/copy.jpg"])
    again = run(photos, root=tmp_path / "audit")

    assert {kind for _, kind in grouping_pairs(without)} == {"near_identical"}
    assert grouping_pairs(again) == pairs
    assert {kind for _, kind in pairs} == {"same_bytes", "near_identical"}
    assert by_uri(again, "images")["test/a/copy.jpg"]["image_id"] == len(files)


def test_work_counts_the_images_that_are_searched(tmp_path: Path) -> None:
    """One new photograph in a large root is little to extract and everything to search: a quarter of that each."""
    photos, root = write_files(tmp_path / "photos", small_set(16)), tmp_path / "audit"
    asked: list[int] = []

    def start(images: int, _: Root) -> Runner:
        asked.append(images)
        return LocalRunner()

    def audited(**config: Any) -> None:
        values = {"sources": (str(photos),), "root": str(root), **config}
        run_audit(config_from(values), Call(start, SilentReporter(), "the same command"))

    audited(max_offset=5)
    audited()
    audited()
    (photos / "train" / "a" / "new.jpg").write_bytes(noise_jpeg(3))
    audited()
    (photos / "train" / "a" / "new.jpg").unlink()
    audited()

    assert asked == [5, 14 + 19 // 4, 0, 1 + 20 // 4, 19 // 4]
