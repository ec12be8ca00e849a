"""Pairs whose pixels an attempt could not compare: none is settled for good, and a source that is away settles none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import crashing
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from audited import assert_equal_tables, half_size, rows, run, small_set, write_files
from dying import committed
from fault_proxy import FaultProxy, Rule
from held import ended, environment
from s3_servers import moto_port, new_store, use_credentials
from videos_made import KINDS, counting

from pipeline.audit import Audit
from pipeline.errors import AccessDenied, ArtifactError, NotFound, StorageUnavailable
from pipeline.layout.edges import commit_edges, edge_tables
from pipeline.layout.images import ImageObject
from pipeline.layout.neighbours import EDGES
from pipeline.layout.parts import part_name
from pipeline.layout.tables import read_table
from pipeline.plan import searching, verifying
from pipeline.schemas import EDGES as EDGES_TABLE
from pipeline.stages import prepared, verify
from pipeline.stages.verify import VerifySpec
from pipeline.storage import open_store

Change = Callable[[], object]
HALF = "train/half/a00.jpg"


def files() -> dict[str, bytes]:
    """Photographs of which ten have a half in train."""
    photos = small_set(16)
    plain = [uri for uri in photos if photos[uri] and uri.count("/") == 2 and uri[-6:-4].isdigit()][:10]
    assert len(plain) == 10
    return photos | {f"train/half/{uri[-7:]}": half_size(photos[uri]) for uri in plain}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(write_files(folder / "photos", files()), root=folder / "audit")


def run_with(change: Change, photos: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Audit:
    """An audit during which something happens after extraction and before pixels are compared."""
    real = searching.verify_pairs

    def then(*arguments: Any) -> str:
        change()
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(searching, "verify_pairs", then)
        return run(photos, root=root)


def counters(audit: Audit, stage: str) -> dict[str, float]:
    found: list[dict[str, Any]] = audit.published.session["stages"]
    (of_it,) = [record["counters"] for record in found if record["stage"] == stage]
    return dict(of_it)


def stages(audit: Audit) -> list[str]:
    return [record["stage"] for record in audit.published.session["stages"]]


def test_source_that_goes_away_settles_nothing(
    undisturbed: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unmounted disk says of every image that it is missing: exit 3 and the command; back, all leaks are found."""
    photos, root = write_files(tmp_path / "photos", files()), tmp_path / "audit"
    away = tmp_path / "away"
    pattern = r"verify: 1 of 1 parts failed(.|\n)* of \d+ images that were read before cannot be read now(.|\n)*Resume"
    with pytest.raises(StorageUnavailable, match=pattern) as raised:
        run_with(lambda: photos.rename(away), photos, root, monkeypatch)
    away.rename(photos)

    assert raised.value.exit_code == 3
    assert not list(root.glob("edges/**/*.parquet"))
    assert len(rows(undisturbed, "leaks")) >= 10
    assert_equal_tables(run(photos, root=root), undisturbed)


def test_one_vanished_file_holds_nothing_up(
    undisturbed: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pairs are judged by similarity, counted and said; the next run lists without it."""
    photos, root = write_files(tmp_path / "photos", files()), tmp_path / "audit"
    audit = run_with((photos / HALF).unlink, photos, root, monkeypatch)
    unseen = [row for row in rows(audit, "duplicates") if not row["is_verified"]]
    whole = [row for row in rows(undisturbed, "duplicates") if not row["is_verified"]]

    assert counters(audit, "verify")["unreadable"] == len(unseen) - len(whole) > 0
    assert counters(undisturbed, "verify")["unreadable"] == 0
    assert all(HALF in (row["uri"], row["match_uri"]) for row in unseen if row not in whole)
    assert HALF not in {row["uri"] for row in rows(run(photos, root=root), "images")}


def test_pairs_are_compared_again_once_their_images_can_be_read(
    undisturbed: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other bytes while pixels are compared: twice the same audit, nothing new in the root; then as if undisturbed."""
    photos, root = write_files(tmp_path / "photos", files()), tmp_path / "audit"
    path = photos / HALF
    data, times = path.read_bytes(), path.stat()

    def swap() -> None:
        path.write_bytes(bytes(len(data)))

    def back() -> None:
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    first = run_with(swap, photos, root, monkeypatch)
    back()
    before = committed(root)
    second = run_with(swap, photos, root, monkeypatch)
    back()
    assert counters(first, "verify")["unreadable"] == counters(second, "verify again")["unreadable"] > 0
    assert second.audit_id == first.audit_id
    assert committed(root) == before

    third = run(photos, root=root)
    assert counters(third, "verify again")["unreadable"] == 0
    assert third.audit_id != first.audit_id
    assert_equal_tables(third, undisturbed)
    assert {key: at for key, at in committed(root).items() if key in before} == before
    fourth = run(photos, root=root)
    assert fourth.audit_id == third.audit_id
    assert "verify again" not in stages(fourth)


def test_a_few_images_that_may_not_be_read_block_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of one pair are denied, which no listing shows: by similarity, run by run, until the right is given."""
    folder, root = write_files(tmp_path / "photos", small_set(16)), tmp_path / "audit"
    undisturbed = run(folder, root=tmp_path / "other")
    assert counters(undisturbed, "verify")["looked_at"] == 1

    def denied(image: ImageObject, *_: object) -> bytes:
        raise AccessDenied(f"{image.info.key}: denied")

    def gone(image: ImageObject, *_: object) -> bytes:
        raise NotFound(f"{image.info.key}: no such file")

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "fetch", gone)
        with pytest.raises(StorageUnavailable, match="2 of 2 images that were read before"):
            run(folder, root=root)
        patch.setattr(prepared, "fetch", denied)
        first, second = run(folder, root=root), run(folder, root=root)
    assert [row["kind"] for row in rows(first, "duplicates") if not row["is_verified"]] == ["look_alike"]
    assert second.audit_id == first.audit_id
    assert_equal_tables(run(folder, root=root), undisturbed)


POISONED = """
import sys
import crashing
from pipeline import cli
from pipeline.plan import verifying
verifying.VERIFY_PAIRS = 2
verifying.verify.verify = crashing.poisoned_verify
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_pair_that_killed_its_process_is_compared_again(
    undisturbed: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run dies of it, the second sets it aside and says so, the third meets the same; the fourth lives."""
    photos, root = write_files(tmp_path / "photos", files()), tmp_path / "audit"
    command = [sys.executable, "-c", POISONED, "run", str(photos), "--root", str(root), "--runner", "local"]

    def poisoned(code: int) -> str:
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return ended(subprocess.Popen(command, env=environment(), text=True, **output), code)

    poisoned(-9)
    assert "judged by similarity alone, which misses edited copies: 1 crashed; " in poisoned(0)
    before = committed(root)
    assert "judged by similarity alone, which misses edited copies: 1 crashed; " in poisoned(0)
    assert committed(root) == before
    monkeypatch.setattr(verifying, "VERIFY_PAIRS", 2)
    audit = run(photos, root=root)

    assert counters(audit, "verify again")["pairs"] == 1
    assert_equal_tables(audit, undisturbed)


def verified(source: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **config: Any) -> VerifySpec:
    """What the one task of verify of an audit was given."""
    specs: list[VerifySpec] = []

    def noted(spec: VerifySpec) -> Any:
        specs.append(spec)
        return crashing.real_verify(spec)

    with monkeypatch.context() as patch:
        patch.setattr(verifying.verify, "verify", noted)
        run(source, root=tmp_path / "audit", **config)
    (spec,) = specs
    return spec


@pytest.fixture
def attempted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[VerifySpec, Path]:
    """What a task of verify was given, and the photographs."""
    photos = write_files(tmp_path / "photos", files())
    return verified(photos, tmp_path, monkeypatch), photos


def test_two_attempts_may_read_differently(attempted: tuple[VerifySpec, Path]) -> None:
    """A file that goes between them, a pair set aside that another attempt compared: the first stays, nothing fails."""
    spec, photos = attempted
    (photos / HALF).unlink()
    store = spec.inputs.root.open()
    before = committed(Path(spec.inputs.root.uri))
    assert verify.verify(spec)["unreadable"] > 0
    assert committed(Path(spec.inputs.root.uri)) == before

    (row, *_) = [
        at for at, kind in enumerate(read_table(store, verify.part_key(spec))["is_verified"].to_pylist()) if kind
    ]
    one = replace(spec, lo=row, hi=row + 1)
    verify.verify(one)
    verified = read_table(store, verify.part_key(one))
    verify.quarantine(one, "crashed")
    assert read_table(store, verify.part_key(one)).equals(verified)


CLIP = counting(KINDS["avi mjpeg"], 4)
PHOTO = small_set(16)["train/b/b00.jpg"]
BOX = "row_y=0,col_x=0,height=80,width=80"


@pytest.mark.parametrize(
    ("made", "asked"),
    [
        ({"a.jpg": PHOTO, "b.jpg": half_size(PHOTO)}, {}),
        ({"a.jpg": PHOTO, "b.jpg": half_size(PHOTO)}, {"bounding_box": BOX}),
        ({"a.avi": CLIP, "b.avi": CLIP + b"another"}, {}),
        ({"a.avi": CLIP, "b.avi": CLIP + b"another"}, {"bounding_box": BOX}),
    ],
    ids=["files", "boxes", "frames", "boxes of frames"],
)
def test_a_pair_that_hung_is_set_aside_without_a_decode(
    made: dict[str, bytes], asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hang once more, where nobody watches. Its store must answer: that may be what hung."""
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "hung-pair")
    for name, data in made.items():
        store.put(name, data)

    def decode(*_: Any) -> Any:
        raise AssertionError("a decode")

    with FaultProxy(moto_port()) as proxy:
        source = f"minio://127.0.0.1:{proxy.port}/{store.uri.split('/', 3)[3]}"
        asked |= {"verify": {"skip_similarity": 1.0}, "storage": {"region": "us-east-1", "backoff": 0.0}}
        spec = verified(source, tmp_path, monkeypatch, **asked)
        one = replace(spec, folder="edges/hung", hi=spec.lo + 1)
        monkeypatch.setattr("cv2.imdecode", decode)
        monkeypatch.setattr("pipeline.kernels.video_frames.decode_frames", decode)
        proxy.inject(Rule("status:503:SlowDown", "GET", count=10**6))
        with pytest.raises(StorageUnavailable):
            verify.quarantine(one, "timeout")
        proxy.inject()
        counters = verify.quarantine(one, "timeout")
    (row,) = read_table(one.inputs.root.open(), verify.part_key(one)).to_pylist()
    assert counters == {"pairs": 1, "looked_at": 0, "reused": 0, row["kind"]: 1, "timeout": 1}
    assert (row["is_verified"], row["correlation"], row["overlap"]) == (False, None, None)


def test_two_attempts_that_saw_different_pixels_fail(attempted: tuple[VerifySpec, Path]) -> None:
    spec, _ = attempted
    store, key = spec.inputs.root.open(), verify.part_key(spec)
    edges = read_table(store, key)
    moved = pc.if_else(edges["is_verified"], pc.add(edges["correlation"], 0.25), edges["correlation"])
    other = edges.set_column(edges.column_names.index("correlation"), "correlation", moved)
    with pytest.raises(ArtifactError, match=r"saw on the same pixels(.|\n)*delete "):
        commit_edges(store, key, other)
    with pytest.raises(ArtifactError, match="two attempts"):
        commit_edges(store, key, edges.slice(1))
    commit_edges(store, key, edges)


def test_touched_images_cost_one_look_at_the_features(
    attempted: tuple[VerifySpec, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All files have another time: their hashes are read together, and every pair is compared as before."""
    spec, photos = attempted
    for at, path in enumerate(sorted(photos.rglob("*.jpg"))):
        os.utime(path, ns=(10**18 + at, 10**18 + at))
    calls: list[str] = []
    for name in ("read_pinned_features", "extracted_hashes"):
        real = getattr(prepared, name)
        monkeypatch.setattr(prepared, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    store = spec.inputs.root.open()
    edges = read_table(store, verify.part_key(spec))
    again = replace(spec, folder=spec.folder + "0")
    assert verify.verify(again)["unreadable"] == 0
    assert sorted(calls) == ["extracted_hashes", "read_pinned_features"]
    assert read_table(store, verify.part_key(again)).equals(edges)


@pytest.mark.parametrize("count", [0, 1, 512, 524_288, 524_289, 5_000_000, 8_388_608, 50_000_000])
def test_parts_are_few_and_tasks_short(count: int) -> None:
    size = verifying.pairs_per_task(count)
    assert 512 <= size <= 8192
    assert size == 512 or count > 512 * 1024
    assert -(-count // size) <= 1024 or size == 8192


def test_parts_of_a_remote_root_come_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """More parts than are read at once; what is not asked for is not waited for."""
    use_credentials(monkeypatch)
    store, local = new_store(moto_port(), "edges"), open_store(tmp_path)
    for lo in range(0, 120, 3):
        columns: dict[str, Any] = {name: [0.5] * 3 for name in EDGES_TABLE.schema.names}
        columns |= {name: np.arange(lo, lo + 3) for name in ("image_id", "match_id")}
        columns |= {"kind": ["edited"] * 3, "is_mirrored": [False] * 3, "is_verified": [True] * 3}
        edges = pa.table(columns, schema=EDGES_TABLE.schema)
        for place in (store, local):
            commit_edges(place, f"e/{part_name(EDGES, lo, lo + 3)}", edges, "crashed" if lo % 2 else "")
    found = pa.concat_tables(edge_tables(store, "e", ["image_id", "kind"]))
    assert found["image_id"].to_pylist() == [*range(120)]
    assert found.equals(pa.concat_tables(edge_tables(local, "e", ["image_id", "kind"])))
    assert next(edge_tables(store, "e"))["image_id"].to_pylist() == [0, 1, 2]
