"""A disk that fills up, files that change under an audit, and a root that not every node sees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crashing
import pytest
from audited import assert_equal_tables, by_uri, run, small_set, write_files
from dying import committed
from fault_proxy import FaultProxy, Rule
from held import ended, environment, start, start_held, writer_of
from s3_servers import moto_port, new_store, use_credentials

import pipeline
from pipeline import cluster, plan
from pipeline.audit import Audit
from pipeline.errors import IncompleteError, NotFound, StorageUnavailable, UsageError
from pipeline.layout.images import ImageObject
from pipeline.layout.snapshots import Snapshot
from pipeline.plan import preparing
from pipeline.plan.session import RunnerStart, Session
from pipeline.stages import prepared
from pipeline.stages.extract import ExtractSpec
from pipeline.storage import StorageConfig

FULL = """
import resource, sys
from pipeline import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(write_files(folder / "photos", small_set(16)), root=folder / "audit")


def photos_of(audit: Audit) -> Path:
    return Path(audit.root.uri).parent / "photos"


def test_full_disk_keeps_what_was_done(undisturbed: Audit, tmp_path: Path) -> None:
    """The kernel refuses files over 8 kB, as a full disk does: exit 3 with the file and what to do; then it goes on."""
    words = ["run", str(photos_of(undisturbed)), "--root", str(tmp_path / "audit"), "--runner"]
    ended(start([*words, "local", "--max-offset", "5"]))
    before = committed(tmp_path / "audit")
    process = subprocess.Popen(
        [sys.executable, "-c", FULL, "8000", *words, "local"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    said = ended(process, code=3)

    assert f"image-audit: write {tmp_path}/audit/features/" in said
    assert "Free space or raise the quota, then run again; finished work is kept" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "audit").rglob(".image-audit-tmp-*"))
    audit = run(photos_of(undisturbed), root=tmp_path / "audit")
    after = committed(tmp_path / "audit")
    assert {key: after[key] for key in before} == before
    assert_equal_tables(audit, undisturbed)


POISONED = """
import sys
import crashing
from pipeline import cli
from pipeline.plan import preparing
preparing.extract.extract = crashing.twice_poisoned_extract
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_image_that_kills_the_driver_is_set_aside_by_the_next_run(tmp_path: Path) -> None:
    """Two images kill the process that decodes them: the first run dies, the second sets both aside, the third lives.

    Nothing but the parts from the first death on is done in processes of their own.
    """
    photos, root = write_files(tmp_path / "photos", small_set(8)), tmp_path / "audit"
    words = ["run", str(photos), "--root", str(root), "--runner", "local", "--shard-size", "2"]
    command = [sys.executable, "-c", POISONED, *words]

    def poisoned(code: int) -> str:
        return ended(
            subprocess.Popen(
                command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ),
            code,
        )  # fmt: skip

    assert "process of its own" not in poisoned(-9)
    before = committed(root)
    said = poisoned(4)
    assert "an earlier run may have died of an image of features/" in said
    assert "2 of 11 images could not be read (2 crashed)" in said
    assert {key: at for key, at in committed(root).items() if key in before} == before
    assert "(2 crashed)" in poisoned(4)
    audit = run(photos, root=root, neighbours={"space": "new"})
    assert_equal_tables(audit, run(photos, root=tmp_path / "other"))


Meddle = Callable[[Path], None]


@pytest.fixture
def meddled(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Meddle, Meddle], None]:
    """Does something to the photographs after they were listed, before a shard is read, and something after it."""

    def install(photos: Path, before: Meddle, after: Meddle) -> None:
        def extract(spec: ExtractSpec) -> Any:
            before(photos)
            try:
                return crashing.real_extract(spec)
            finally:
                after(photos)

        monkeypatch.setattr(preparing.extract, "extract", extract)

    return install


def nothing(photos: Path) -> None:
    """Leaves the photographs alone."""


def test_files_that_change_after_the_listing(
    tmp_path: Path, meddled: Callable[[Path, Meddle, Meddle], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One vanishes, one grows, one gets other bytes of the same size: rows that say so, right in the next run."""
    files = small_set(16)
    photos, root = write_files(tmp_path / "photos", files), tmp_path / "audit"
    vanished, grown, replaced = sorted(uri for uri in files if uri.startswith("train/"))[:3]
    other = bytearray(files[replaced])
    other[-3] ^= 1

    def change(folder: Path) -> None:
        (folder / vanished).unlink(missing_ok=True)
        (folder / grown).write_bytes(files[grown] + b"more")
        (folder / replaced).write_bytes(bytes(other))

    meddled(photos, change, nothing)
    first = run(photos, root=root, max_failed_share=0.5)
    monkeypatch.undo()
    invalid, images = by_uri(first, "invalid"), by_uri(first, "images")
    second = run(photos, root=root, neighbours={"space": "new"})

    assert (invalid[vanished]["status"], invalid[grown]["status"]) == ("missing", "changed")
    assert images[replaced]["status"] == "ok"
    assert "listed with" in invalid[grown]["message"]
    now = by_uri(second, "images")
    assert vanished not in now
    assert (now[grown]["status"], now[grown]["image_id"]) == ("ok", len(files))
    assert now[replaced]["image_id"] == images[replaced]["image_id"]  # its bytes are those that were extracted
    kept = {uri: row["image_id"] for uri, row in images.items() if uri not in (vanished, grown)}
    assert {uri: row["image_id"] for uri, row in now.items() if uri != grown} == kept
    assert "changed" not in {row["status"] for row in now.values()}


def test_files_that_were_away_are_tried_again(
    undisturbed: Audit,
    tmp_path: Path,
    meddled: Callable[[Path, Meddle, Meddle], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Away while they are read, back before the next listing: incomplete with the command, then as if undisturbed."""
    photos, root = write_files(tmp_path / "photos", small_set(16)), tmp_path / "audit"
    away = photos / "train"

    def hide(folder: Path) -> None:
        away.rename(tmp_path / "away")

    def show(folder: Path) -> None:
        (tmp_path / "away").rename(away)

    meddled(photos, hide, show)
    with pytest.raises(
        IncompleteError, match=r"1[0-9] of 19 images could not be read \(1[0-9] missing\)(.|\n)*Resume with"
    ):
        run(photos, root=root)
    before = committed(root)
    with pytest.raises(IncompleteError, match="could not be read"):
        run(photos, root=root)
    assert committed(root) == before  # the same causes again: nothing new is known
    monkeypatch.undo()
    audit = run(photos, root=root)

    assert list((root / "features").glob("*/again-*-0001.parquet"))
    (again,) = [stage for stage in audit.published.session["stages"] if stage["stage"] == "extract again"]
    assert again["counters"]["images"] == again["items"]
    assert_equal_tables(audit, undisturbed)
    assert run(photos, root=root).audit_id == audit.audit_id


def test_store_that_is_away_while_pairs_are_verified(
    undisturbed: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No kind is settled without the pixels that were merely out of reach: no answer, then as if undisturbed."""
    photos, root = photos_of(undisturbed), tmp_path / "audit"
    pipeline.run(photos, root=root, min_offset=0)

    def away(image: ImageObject, *_: object) -> bytes:
        raise StorageUnavailable(f"{image.source}: no answer")

    monkeypatch.setattr(prepared, "fetch", away)
    with pytest.raises(StorageUnavailable, match=r"verify: 1 of 1 parts failed(.|\n)*no answer(.|\n)*Resume with"):
        run(photos, root=root)
    monkeypatch.undo()

    assert not list(root.glob("edges/**/*.parquet"))
    assert_equal_tables(run(photos, root=root), undisturbed)


@pytest.mark.parametrize("is_all", [True, False], ids=["store", "images"])
def test_store_that_goes_away_is_no_status_of_its_images(
    undisturbed: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_all: bool
) -> None:
    """It answers the listing and then nothing: the first shards end the run, before all are asked for one by one.

    Where it still lists, the images alone are out of reach, and get their status.
    """
    use_credentials(monkeypatch)
    source = new_store(moto_port(), "photos")
    for uri, data in small_set(16).items():
        source.put(uri, data)
    storage = {"region": "us-east-1", "backoff": 0.0, "max_attempts": 2}
    monkeypatch.setattr(preparing.extract, "SILENT_IMAGES", 2)
    take = plan.take_snapshot
    with FaultProxy(moto_port()) as proxy:
        where = source.uri.replace(f":{moto_port()}", f":{proxy.port}")

        def take_and_go(session: Session, start_runner: RunnerStart) -> Snapshot:
            snapshot = take(session, start_runner)
            proxy.inject(Rule("reset", "GET", r"photos" if is_all else r"\.jpg", count=10**6))
            return snapshot

        monkeypatch.setattr(plan, "take_snapshot", take_and_go)
        expected = (StorageUnavailable, r"extract: 3 of 10 parts failed(.|\n)*Resume with")
        error, said = expected if is_all else (IncompleteError, r"19 of 19 images could not be read \(19 timeout\)")
        with pytest.raises(error, match=said):
            run(where, root=tmp_path / "audit", storage=storage, shard_size=2)
        committed_parts = list((tmp_path / "audit/features").glob("*/rows-*"))
        proxy.inject()
        monkeypatch.setattr(plan, "take_snapshot", take)
        audit = run(where, root=tmp_path / "audit", storage=storage, shard_size=2)

    assert len(committed_parts) == (0 if is_all else 10)
    assert_equal_tables(audit, undisturbed)


class FakeNodes:
    """Two nodes of which one reads another folder under the root's name; stands for a cluster without a shared disk.

    On a test machine all of Ray's nodes share the disk, so the second node is played: its read goes elsewhere.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, elsewhere: Path | None) -> None:
        self._elsewhere = elsewhere
        nodes = [
            {"NodeID": name, "NodeManagerAddress": f"10.0.0.{at}", "Alive": True, "Resources": {"CPU": 1.0}}
            for at, name in enumerate(("head", "other"), 1)
        ]
        dead = {"NodeID": "dead", "NodeManagerAddress": "10.0.0.9", "Alive": False, "Resources": {"CPU": 1.0}}
        monkeypatch.setattr(cluster.ray, "nodes", lambda: [*nodes, dead])
        monkeypatch.setattr(cluster.ray, "get", lambda value: value)
        monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 2.0})
        monkeypatch.setattr(cluster.RayRunner, "_read_on", self._read_on)

    def _read_on(self, node_id: str, root: str, storage: StorageConfig, key: str) -> bytes:
        place = str(self._elsewhere) if node_id == "other" and self._elsewhere else root
        return cluster._read_token(place, storage, key)


def test_root_that_a_node_does_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the node; a root that all see is fine; no token is left behind either way."""
    root = tmp_path / "root"
    root.mkdir()
    FakeNodes(monkeypatch, tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=rf"{root} is not shared: nodes 10\.0\.0\.2 do not see"):
        cluster.RayRunner(is_ours=False).require_shared_root(str(root), StorageConfig())
    (tmp_path / "file").touch()
    FakeNodes(monkeypatch, tmp_path / "file")
    with pytest.raises(UsageError, match=r"10\.0\.0\.2 do not see"):
        cluster.RayRunner(is_ours=False).require_shared_root(str(root), StorageConfig())
    FakeNodes(monkeypatch, None)
    cluster.RayRunner(is_ours=False).require_shared_root(str(root), StorageConfig())

    assert not [path for path in root.rglob("*") if path.is_file()]


def test_source_that_a_node_does_not_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another folder there, or none: the node is named before any image is called missing; no image proves nothing."""
    photos, runner = tmp_path / "photos", cluster.RayRunner
    write_files(photos, {"a/b.jpg": b"here", "a/notes.txt": b"no image"})
    for name, files in {"other": {"a/b.jpg": b"there"}, "empty": {"a/notes.txt": b"no image"}}.items():
        FakeNodes(monkeypatch, write_files(tmp_path / name, files))
        with pytest.raises(UsageError, match=rf"{photos} is not shared: nodes 10\.0\.0\.2 do not see 'a/b.jpg'"):
            runner(is_ours=False).require_shared_source(str(photos), StorageConfig())
    runner(is_ours=False).require_shared_source(str(write_files(tmp_path / "none", {"x.txt": b"x"})), StorageConfig())
    FakeNodes(monkeypatch, None)
    runner(is_ours=False).require_shared_source(str(photos), StorageConfig())


@pytest.mark.parametrize("name", ["a.tar", "b.mp4"])
def test_a_file_of_images_is_a_source_that_every_node_must_see(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the source itself, and as all that a folder holds."""
    folder, runner = write_files(tmp_path / "files", {name: b"here", "x.txt": b"x"}), cluster.RayRunner
    for source in (folder, folder / name):
        FakeNodes(monkeypatch, tmp_path / "elsewhere")
        with pytest.raises(UsageError, match=rf"{source} is not shared: nodes 10\.0\.0\.2 do not see '{name}'"):
            runner(is_ours=False).require_shared_source(str(source), StorageConfig())
        FakeNodes(monkeypatch, None)
        runner(is_ours=False).require_shared_source(str(source), StorageConfig())


def test_image_without_bytes_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that sees nothing reads as many bytes as an empty file has, or one that nobody may read."""
    photos = write_files(tmp_path / "photos", {"a.jpg": b"", "b.jpg": b"denied", "c.jpg": b"here"})
    read, runner = cluster._read_token, cluster.RayRunner

    def read_but_one(root: str, storage: StorageConfig, key: str) -> bytes:
        return b"" if key == "b.jpg" else read(root, storage, key)

    monkeypatch.setattr(cluster, "_read_token", read_but_one)  # whoever runs the tests may read every file
    FakeNodes(monkeypatch, tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"nodes 10\.0\.0\.2 do not see 'c.jpg'"):
        runner(is_ours=False).require_shared_source(str(photos), StorageConfig())
    (photos / "c.jpg").unlink()
    for source in (photos, tmp_path / "gone"):  # one that --accept-empty let go
        runner(is_ours=False).require_shared_source(str(source), StorageConfig())


def test_message_of_an_incomplete_run_is_printed_with_exit_4(tmp_path: Path) -> None:
    """Over 1% of the images are gone after the listing: the process ends with 4 and the command that resumes."""
    photos = write_files(tmp_path / "photos", small_set(16))
    os.mkfifo(tmp_path / "pipe")
    process = start_held(["run", str(photos), "--root", str(tmp_path / "audit"), "--runner", "local"], 0)
    held = writer_of(tmp_path / "pipe", process)
    (photos / "train").rename(tmp_path / "away")
    os.close(held)
    said = ended(process, code=4)
    (tmp_path / "away").rename(photos / "train")

    assert "Resume with: image-audit run" in said
    assert not (tmp_path / "audit/audits").exists()
    with pytest.raises(NotFound, match="no finished audit"):
        pipeline.open(tmp_path / "audit")
