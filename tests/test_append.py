"""Two audits on one root at once, each appending to the catalog: both finish, and no row is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from audited import assert_equal_tables, run, small_set, write_files
from dying import committed
from held import ended, start, start_held, writer_of

import pipeline
from pipeline.audit import Audit
from pipeline.demo import demo_photos
from pipeline.layout.snapshots import catalog_rows, latest_snapshot, read_snapshot, removed_ids


def batch(number: int) -> dict[str, bytes]:
    """New photographs that are not in the small set, and an exact copy of one that every batch has."""
    photos = demo_photos()
    shared, *names = sorted(photos)[-10:]
    new = {f"train/new/{name}.jpg": photos[name] for name in names[3 * number : 3 * number + 3]}
    return new | {f"val/new/copy {number}.jpg": photos[shared]}


def uris(audit: Audit) -> set[str]:
    return set(audit.images(columns=["uri"])["uri"].to_pylist())


def options(photos: Path, root: Path, *more: str) -> list[str]:
    return ["run", str(photos), "--root", str(root), "--runner", "local", *more]


def assert_whole(audit: Audit) -> None:
    """Ids of the newest snapshot are 0 to n, each with a uri of its own among the live ones."""
    store = audit.root.open()
    snapshot = latest_snapshot(store)
    table = catalog_rows(store, snapshot, 0, snapshot.total)
    gone = set(removed_ids(store, snapshot).tolist())
    live = [(r["source"], r["uri"]) for r in table.to_pylist() if r["image_id"] not in gone]
    assert table["image_id"].to_pylist() == list(range(snapshot.total))
    assert len(live) == len(set(live)) == snapshot.live


@pytest.mark.slow
def test_two_audits_of_two_snapshots_at_once(tmp_path: Path) -> None:
    """One is held in extract, files are added, another runs to its end, the first goes on: as one after the other."""
    photos, root = write_files(tmp_path / "photos", small_set(16)), tmp_path / "audit"
    first = run(photos, root=root)
    total = first.table("images").num_rows
    write_files(photos, batch(0))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = start_held(options(photos, root), total)
    held = writer_of(pipe, process)
    write_files(photos, batch(1))
    pipe.rename(tmp_path / "no pipe")
    later = run(photos, root=root)
    os.close(held)
    ended(process)
    earlier = pipeline.open(root, next(i for i in audits(root) if i.startswith("000002")))

    assert uris(earlier) == set(small_set(16)) | set(batch(0))
    assert uris(later) == uris(earlier) | set(batch(1))
    assert_whole(later)
    serial = tmp_path / "serial"
    again = write_files(serial / "photos", small_set(16))
    run(again, root=serial / "audit")
    write_files(again, batch(0))
    assert_equal_tables(earlier, run(again, root=serial / "audit"))
    write_files(again, batch(1))
    assert_equal_tables(later, run(again, root=serial / "audit"))
    before = committed(root)
    assert run(photos, root=root).audit_id == later.audit_id
    assert committed(root) == before


def audits(root: Path) -> list[str]:
    return sorted(path.parent.name for path in (root / "audits").glob("*/run.json"))


def test_two_audits_started_together(tmp_path: Path) -> None:
    """Two processes on a fresh root at once: one snapshot, one audit, the tables of one run."""
    photos, root = write_files(tmp_path / "photos", small_set(16)), tmp_path / "audit"
    processes = [start(options(photos, root, "--shard-size", "5")) for _ in range(2)]
    for process in processes:
        ended(process)

    assert len(audits(root)) == 1
    assert latest_snapshot(pipeline.open(root).root.open()).number == 1
    assert_equal_tables(pipeline.open(root), run(photos, root=tmp_path / "other"))


@pytest.mark.slow
def test_two_audits_that_add_a_source_each(tmp_path: Path) -> None:
    """One gets its source in; the other would drop it, and says so, as it would a minute later. The union has both."""
    root, sources = tmp_path / "audit", [write_files(tmp_path / f"photos{i}", batch(i)) for i in range(3)]
    run(sources[0], root=root)
    added = [[str(sources[0]), str(sources[1])], [str(sources[0]), str(sources[2])]]
    processes = [start(["run", *named, "--root", str(root), "--runner", "local"]) for named in added]
    said = [process.communicate()[0] for process in processes]
    codes = [process.returncode for process in processes]

    assert sorted(codes) == [0, 2], said
    winner = codes.index(0)
    assert f"leaves out: {added[winner][1]}. Name them too" in said[1 - winner]
    assert read_snapshot(pipeline.open(root).root.open(), 2).total == 8
    audit = run(*sources, root=root)
    expected: set[Any] = {f"{source}/{uri}" for number, source in enumerate(sources) for uri in batch(number)}
    assert set(audit.images(columns=["path"])["path"].to_pylist()) == expected
    assert_whole(audit)
    copies = {row["uri"] for row in audit.groups().to_pylist() if "copy" in row["uri"]}
    assert len(copies) == 3
