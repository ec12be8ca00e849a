"""Several sources: what their images are called, where they are, and which split and label their folders give."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from audited import LOCAL, Rows, by_uri, rows, run, small_set, write_files

import pipeline
from pipeline.audit import Audit
from pipeline.demo import demo_photos
from pipeline.layout.root import Root
from pipeline.layout.snapshots import Snapshot, SourceRecord, first_alike, snapshot_key, snapshot_to_json
from pipeline.layout.tables import json_bytes
from pipeline.schemas import TABLES
from pipeline.storage import StorageConfig

URIS = ("uri", "match_uri", "nearest_uri", "conflict_uri")


def named(audit: Audit, name: str) -> Rows:
    """The names, splits and labels in the rows of a table."""
    columns = [column for column in ("image_id", *URIS) if column in TABLES[name].schema.names]
    return audit.table(name, columns).to_pylist()


def test_uris_stay_when_a_source_is_added(tmp_path: Path) -> None:
    """Every uri is relative to its source before and after; the path opens the file whatever its name is."""
    files = small_set(12) | {"train/a/50%41.jpg": small_set(12)["train/a/a01.jpg"]}
    photos = write_files(tmp_path / "one", files)
    more = write_files(
        tmp_path / "two", {"train/a/a00.jpg": files["train/b/b00.jpg"], "new.jpg": files["val/b/half.jpg"]}
    )
    before = run(photos, root=tmp_path / "audit")
    ids = {row["uri"]: row["image_id"] for row in rows(before, "images")}
    after = run(photos, more, root=tmp_path / "audit")
    listed = rows(after, "images")

    assert {row["uri"]: row["image_id"] for row in listed if row["source"] == 0} == ids
    assert sorted(row["uri"] for row in listed if row["source"] == 1) == ["new.jpg", "train/a/a00.jpg"]
    for name in ("groups", "duplicates", "quality", "invalid"):
        names = {row["image_id"]: row["uri"] for row in listed}
        assert all(row["uri"] == names[row["image_id"]] for row in named(after, name)), name
        assert {tuple(row.values()) for row in named(before, name)} <= {
            tuple(row.values()) for row in named(after, name)
        }
    for row in listed:
        source = (photos, more)[row["source"]]
        assert Path(row["path"]).is_relative_to(source)
        assert Path(row["path"]).read_bytes() == (source / row["uri"].replace("%25", "%")).read_bytes()
    assert by_uri(before, "images")["train/a/50%2541.jpg"]["path"] == f"{photos}/train/a/50%41.jpg"


def test_name_that_is_not_text_has_no_path(tmp_path: Path) -> None:
    """A path in a table is UTF-8 or null, never another file's."""
    data = next(iter(demo_photos().values()))
    write_files(tmp_path / "photos", {"plain.jpg": data, "latin\udce9.jpg": data})
    audit = run(tmp_path / "photos", root=tmp_path / "audit")

    assert {row["uri"]: row["path"] for row in rows(audit, "images")} == {
        "latin%E9.jpg": None,
        "plain.jpg": f"{tmp_path}/photos/plain.jpg",
    }


def test_sources_named_after_splits_leak_into_each_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`run photos/train photos/val`: each source is the split that its folder names, and the run says so."""
    write_files(tmp_path, small_set(12))
    with caplog.at_level("INFO"):
        audit = pipeline.run(tmp_path / "train", tmp_path / "val", root=tmp_path / "audit", where=LOCAL, progress=True)

    assert audit is not None
    assert {(row["source"], row["split"], row["label"]) for row in rows(audit, "images")} == {
        (source, split, label) for source, split in ((0, "train"), (1, "val")) for label in "ab"
    }
    leaks = [(row["uri"], row["match_uri"], row["split"]) for row in rows(audit, "leaks") if row["severity"] >= 3]
    assert sorted(leaks) == [("b/b00.jpg", "b/half.jpg", "train"), ("b/half.jpg", "b/b00.jpg", "val")]
    for split in ("train", "val"):
        said = [line for line in caplog.messages if line.startswith(f"rule for {tmp_path}/{split}: ")]
        assert f"else {split} as the source's own folder says" in said[0]


def test_one_audit_for_a_set_of_sources_and_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a test source, without that split, with it again, and each once more after a touch: two audits in all."""
    photos, test = (write_files(tmp_path / name, small_set(12)) for name in ("photos", "test"))
    root = tmp_path / "audit"

    def tested() -> str:
        return run(photos, test=str(test), root=root).audit_id

    def plain() -> str:
        return run(photos, test, root=root).audit_id

    wanted = [tested(), plain()]
    assert [tested(), plain()] == wanted
    os.utime(photos / "train/a/a00.jpg", ns=(1, 1))
    assert [tested(), plain()] == wanted
    assert len(set(wanted)) == len([*root.glob("audits/*")]) == 2
    (root / "catalog/snapshot-000001.json").write_bytes(b"{")
    again = tested()  # which needs nothing of the first snapshot, but cannot know that it is the same
    assert again[6:] == wanted[0][6:]
    assert "snapshot-000001.json: it is damaged" in caplog.text


@pytest.mark.parametrize("count", [1, 2, 9])
def test_first_snapshot_of_the_same_rows(tmp_path: Path, count: int) -> None:
    """Found among any number of later ones, whatever came before; more rows or removed ones are other rows."""
    store = Root(str(tmp_path), StorageConfig()).open()
    sources = [(SourceRecord("/photos", split),) for split in ("", "test")]
    rows_of = [(at // 9, at // 5) for at in range(3 * count)]
    snapshots = [
        Snapshot(at + 1, total, sources[at % 2], (), f"removed-{gone}", gone, f"restamped-{at}")
        for at, (total, gone) in enumerate(rows_of)
    ]
    for snapshot in snapshots:
        store.put(snapshot_key(snapshot.number), json_bytes(snapshot_to_json(snapshot)))
    for snapshot in snapshots:
        alike = [other for other in snapshots if other.digest == snapshot.digest]
        assert first_alike(store, snapshot) == alike[0]
