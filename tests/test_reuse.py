"""Pixels are compared once: a later audit of the root takes the verdicts of pairs that an earlier one came to."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from audited import assert_equal_tables, rows, run, small_set, write_files

from benchmarks.edits import decode, edited_jpeg
from pipeline.api import status
from pipeline.audit import Audit
from pipeline.kernels.hits import rows_of_pairs
from pipeline.layout.neighbours import CANDIDATE_SCHEMA, EDGES, KNOWN, VERDICT
from pipeline.layout.pairs import index_pairs, pairs_key
from pipeline.layout.parts import part_name
from pipeline.layout.root import Root, versions
from pipeline.layout.tables import read_table, write_table
from pipeline.plan import stored
from pipeline.plan.session import Session
from pipeline.schemas import EDGES as EDGES_TABLE
from pipeline.stages.known import KnownSpec, collect_known
from pipeline.storage import StorageConfig, open_store


def verified(audit: Audit) -> dict[str, Any]:
    """What the verify stage of the session counted."""
    (stage,) = [stage for stage in audit.published.session["stages"] if stage["stage"] == "verify"]
    counters: dict[str, Any] = stage["counters"]
    return counters


@pytest.fixture
def audited(tmp_path: Path) -> tuple[Path, Path, Audit]:
    files = small_set(16)
    for edit in ("crop", "mirror", "grey"):
        files[f"val/b/{edit}.jpg"] = edited(files["train/b/b01.jpg"], edit)
    photos, root = write_files(tmp_path / "photos", files), tmp_path / "audit"
    return photos, root, run(photos, root=root)


def edited(photo: bytes, edit: str) -> bytes:
    return edited_jpeg(edit, decode(photo), np.random.default_rng(3))


def add_photo(photos: Path) -> None:
    (photos / "train/a/new.jpg").write_bytes(edited((photos / "val/a/a03.jpg").read_bytes(), "mirror"))


def test_only_new_pairs_are_compared(audited: tuple[Path, Path, Audit], tmp_path: Path) -> None:
    """One more photograph: the rest is taken over, and all is as if every pair had been compared."""
    photos, root, first = audited
    add_photo(photos)
    second = run(photos, root=root, neighbours={"space": "keep"})
    before, now = verified(first), verified(second)

    assert before["reused"] == 0 < before["looked_at"]
    assert now["reused"] == before["looked_at"]
    (told,) = [row["counters"] for row in status(str(root), {}) if row["stage"] == "verify"]
    assert told == now
    assert 0 < now["looked_at"] < now["pairs"]
    assert "train/a/new.jpg" in {row["uri"] for row in rows(second, "groups")}
    again = tmp_path / "again"
    shutil.copytree(root, again)
    for folder in ("edges", "groups", "audits"):
        shutil.rmtree(again / folder)
    third = run(photos, root=again, neighbours={"space": "keep"})
    assert verified(third)["looked_at"] == now["reused"] + now["looked_at"]
    assert third.audit_id == second.audit_id
    assert_equal_tables(third, second)


def test_another_threshold_compares_nothing_again(audited: tuple[Path, Path, Audit]) -> None:
    """What it leaves out needs no comparison, what it has was compared."""
    photos, root, first = audited
    similarity = sorted(row["similarity"] for row in rows(first, "duplicates"))
    strict = run(photos, root=root, neighbours={"threshold": similarity[1] + 1e-6})
    assert 0 < verified(strict)["pairs"] < verified(first)["pairs"]
    assert verified(strict)["looked_at"] == 0 < verified(strict)["reused"]
    other = run(photos, root=root, verify={"side": 128})
    assert (verified(other)["reused"], verified(other)["looked_at"]) == (0, verified(first)["looked_at"])


def test_damaged_verdicts_are_done_without(audited: tuple[Path, Path, Audit], caplog: pytest.LogCaptureFixture) -> None:
    """They belong to another audit: this one says so and compares again."""
    photos, root, first = audited
    (part,) = root.glob("edges/*/*/*/edges-*.parquet")
    part.write_bytes(part.read_bytes()[:-9])
    add_photo(photos)
    with caplog.at_level(logging.WARNING):
        second = run(photos, root=root, neighbours={"space": "keep"})

    assert f"{part.name}: it is damaged" in caplog.text
    assert verified(second)["reused"] == 0
    assert verified(second)["looked_at"] > verified(first)["looked_at"]


def test_verdicts_are_of_the_bytes_that_were_extracted(
    audited: tuple[Path, Path, Audit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file gets other bytes of the same size while another features folder is filled: its pairs are compared anew."""
    photos, root, _ = audited
    path, photo = photos / "val/b/new.jpg", (photos / "train/b/b02.jpg").read_bytes()
    edits = [edited(photo, edit) for edit in ("grey", "mirror")]
    before, after = (data.ljust(max(map(len, edits)), b"\0") for data in edits)
    path.write_bytes(before)
    first = run(photos, root=root)
    real = stored.extract_range

    def swapped(session: Session, *rest: Any) -> Any:
        path.write_bytes(after)
        return real(session, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(stored, "extract_range", swapped)
        second = run(photos, root=root, measure={"min_height": 3})
    fresh = run(photos, root=tmp_path / "fresh", measure={"min_height": 3})

    assert verified(second)["reused"] > 0  # those of all other files
    found = [mirrored(audit, "train/b/b02.jpg", "val/b/new.jpg") for audit in (first, second, fresh)]
    assert found == [False, True, True]


def mirrored(audit: Audit, *uris: str) -> bool:
    (found,) = (row["is_mirrored"] for row in rows(audit, "duplicates") if {row["uri"], row["match_uri"]} == {*uris})
    return bool(found)


def test_damaged_features_of_another_audit_are_done_without(
    audited: tuple[Path, Path, Audit], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can say what its verdicts were of: the pairs are compared again."""
    photos, root, first = audited
    (part,) = root.glob("features/*/rows-*.parquet")
    part.write_bytes(part.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        second = run(photos, root=root, measure={"min_height": 3})

    assert f"{part.name}: it is damaged" in caplog.text
    assert (verified(second)["looked_at"], verified(second)["reused"]) == (verified(first)["looked_at"], 0)


def test_what_only_embeds_moves_no_verdict(audited: tuple[Path, Path, Audit], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another onnxruntime extracts all images again; pixels are decoded and compared as before."""
    photos, root, first = audited
    monkeypatch.setattr("onnxruntime.__version__", "0.0")
    versions.cache_clear()
    second = run(photos, root=root)
    versions.cache_clear()
    monkeypatch.undo()

    assert len(list((root / "features").iterdir())) == 2
    assert (verified(second)["looked_at"], verified(second)["reused"]) == (0, verified(first)["looked_at"])
    assert_equal_tables(second, first)


@pytest.mark.parametrize("seed", range(12))
def test_verdicts_of_any_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Blocks, parts, holes, folders that overlap and pairs without pixels: each pair has the verdict of its ids."""
    monkeypatch.setattr("pipeline.stages.known.BLOCK", 7)
    rng = np.random.default_rng(seed)
    store = open_store(str(tmp_path))
    every = [(a, b) for a in range(12) for b in range(a + 1, 12)]
    wanted = sorted(every[at] for at in rng.choice(len(every), 40, replace=False))
    ranges = [(0, 3), (3, 4), (4, 12)]
    for lo, hi in ranges:
        held = [(*pair, 0.5, 0.5, 0.5) for pair in wanted if lo <= pair[0] < hi]
        write_table(store, pairs_key("pairs", lo, hi), pa.table([*zip(*held, strict=True)], schema=CANDIDATE_SCHEMA))
    index_pairs(store, "pairs", ranges)
    expected: dict[tuple[int, int], float] = {}
    for folder in ("edges/a", "edges/b"):
        had = sorted(every[at] for at in rng.choice(len(every), int(rng.integers(1, 40)), replace=False))
        for lo in range(0, len(had), 5):
            if rng.random() < 0.2:
                continue
            seen = [bool(rng.random() < 0.8) for _ in had[lo : lo + 5]]
            expected |= {p: evidence_of(p) for p, is_seen in zip(had[lo : lo + 5], seen, strict=True) if is_seen}
            write_table(store, f"{folder}/{part_name(EDGES, lo, lo + 5)}", edges_of(had[lo : lo + 5], seen))
    spec = KnownSpec(Root(str(tmp_path), StorageConfig()), "pairs", 40, ("edges/a", "edges/b"), "edges/c")
    counters = collect_known(spec)

    found = read_table(store, f"edges/c/{KNOWN}")
    assert found.column_names == [*VERDICT]
    assert found["correlation"].to_pylist() == [expected.get(pair) for pair in wanted]
    assert found["kind"].to_pylist() == ["edited" if pair in expected else None for pair in wanted]
    assert counters["known"] == len(set(wanted) & set(expected))


def evidence_of(pair: tuple[int, int]) -> float:
    return pair[0] + pair[1] / 16


def edges_of(pairs: list[tuple[int, int]], is_seen: list[bool]) -> pa.Table:
    columns: dict[str, Any] = {name: [0.5] * len(pairs) for name in EDGES_TABLE.schema.names}
    columns |= {"image_id": [a for a, _ in pairs], "match_id": [b for _, b in pairs], "kind": ["edited"] * len(pairs)}
    columns |= {"correlation": [*map(evidence_of, pairs)], "is_mirrored": [False] * len(pairs), "is_verified": is_seen}
    return pa.table(columns, schema=EDGES_TABLE.schema)


def test_rows_of_no_pairs() -> None:
    """None on either side."""
    none, some = np.empty(0, np.int64), np.array([3], np.int64)
    assert rows_of_pairs(none, none, some, some).tolist() == []
    assert rows_of_pairs(some, some, none, none).tolist() == [-1]
