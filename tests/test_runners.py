"""Nothing in a table depends on the runner, the number of workers, the shard size or how the index is cut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import (
    SEED,
    Audited,
    assert_equal_tables,
    by_uri,
    noise_jpeg,
    planted_audit,
    projection_model,
    rows,
    run,
    small_set,
    write_files,
)
from test_recomputed import Recomputed

import pipeline
from pipeline.api import Where
from pipeline.audit import FINDINGS, Audit
from pipeline.layout.features import Features, list_features, read_features
from pipeline.layout.tables import read_table

EVERY_LIST = 1 << 20


@pytest.fixture(scope="module")
def planted() -> Audited:
    return planted_audit(SEED)


def features_of(audit: Audit) -> Features:
    """All feature rows, embeddings and signatures of a root with one features folder."""
    store = audit.root.open()
    (folder,) = {info.key.split("/")[1] for info in store.list("features/")}
    return read_features(store, list_features(store, f"features/{folder}"), 0, audit.table("images").num_rows)


def assert_equal_features(one: Audit, other: Audit) -> None:
    ours, theirs = features_of(one), features_of(other)
    assert ours.rows.equals(theirs.rows)
    np.testing.assert_array_equal(np.asarray(ours.embeddings), np.asarray(theirs.embeddings))
    np.testing.assert_array_equal(np.asarray(ours.signatures), np.asarray(theirs.signatures))


def test_ray_gives_the_tables_of_the_process(planted: Audited, tmp_path: Path) -> None:
    """Two Ray workers on shards of 16 and one process on a single shard: equal features, equal rows in all tables."""
    audit = pipeline.run(planted.photos, root=tmp_path / "audit", where=Where("ray", workers=2), shard_size=16)

    assert audit is not None
    assert (audit.published.session["runner"], audit.published.session["workers"]) == ("ray", 2)
    parts = {stage["stage"]: stage["parts"] for stage in audit.published.session["stages"]}
    assert parts["extract"] == -(-audit.table("images").num_rows // 16)
    assert audit.audit_id == planted.audit.audit_id
    assert_equal_features(audit, planted.audit)
    assert_equal_tables(audit, planted.audit)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """1,333 pictures, 33 of them once more and smaller in another split, compared pair by pair."""
    folder = tmp_path_factory.mktemp("blobs")
    photos = folder / "photos"
    write_files(photos / "train/blob", {f"{seed:04}.jpg": noise_jpeg(seed, 24) for seed in range(1300)})
    write_files(photos / "val/blob", {f"{seed:04}.jpg": noise_jpeg(seed, 20) for seed in range(0, 1300, 40)})
    return run(photos, root=folder / "audit")


def test_lists_do_not_matter(blobs: Audit) -> None:
    """An inverted index of which every list is probed gives the rows of exact search, from the same features."""
    lists = {"exact_limit": 0, "copy_probes": EVERY_LIST, "semantic_probes": EVERY_LIST}
    routed = run(small_folder(blobs), root=blobs.root.uri, neighbours=lists)

    done = {stage["stage"] for stage in routed.published.session["stages"] if stage["attempts"]}
    assert {"train lists (copy)", "train lists (semantic)", "recall", "outlier tail"} <= done
    assert not {"extract", "train"} & done
    recall = routed.summary()["recall"]
    for space in ("copy", "semantic"):
        assert recall[space]["found"] == recall[space]["total"] > 0
    assert blobs.table("leaks").num_rows >= 2 * 33
    assert_equal_tables(routed, blobs, set(FINDINGS) - {"outliers"})
    marked = "is_exact"  # only the worst are searched until exact; the others are marked as bounds
    assert routed.table("outliers").drop_columns([marked]).equals(blobs.table("outliers").drop_columns([marked]))
    assert set(blobs.table("outliers")[marked].to_pylist()) == {True}


@pytest.mark.parametrize("rows", [2000, 450, 191])
def test_partitions_do_not_matter(blobs: Audit, tmp_path: Path, rows: int) -> None:
    """An exact search in 1, 3 and 7 partitions gives the rows of that in one."""
    root = tmp_path / "root"
    for folder in ("catalog", "annotations", "features"):
        shutil.copytree(Path(blobs.root.uri) / folder, root / folder)
    cut = run(small_folder(blobs), root=root, neighbours={"partition_rows": rows})
    joined = {stage["stage"]: stage for stage in cut.published.session["stages"]}
    assert joined["join semantic"]["parts"] == joined["join copy"]["parts"] == -(-1333 // rows)
    assert_equal_tables(cut, blobs, FINDINGS)
    assert not list((root / "work").rglob("*.shuffle"))


def test_recall_of_one_list_is_what_brute_force_counts(blobs: Audit) -> None:
    """With one of two lists probed neighbours are missed: the run says how many, in both spaces."""
    k = 12
    once = {"exact_limit": 0, "copy_probes": 1, "semantic_probes": 1, "semantic_k": k, "recall_sample": 10_000}
    routed = run(small_folder(blobs), root=blobs.root.uri, neighbours=once)
    measured = routed.summary()["recall"]
    truth = Recomputed(routed)
    images = [truth.images[i] for i in range(len(truth.images))]
    splits, groups = (np.array([row[name] for row in images]) for name in ("split", "group_id"))

    semantic = np.round(truth.semantic, 6)
    semantic[:, groups != np.arange(len(groups))] = -2  # one image of each group is searched
    semantic[groups[:, None] == groups[None, :]] = -2
    nearest = np.argsort(-semantic, axis=1, kind="stable")[:, :k]
    neighbours = {(query, match) for query, matches in enumerate(nearest.tolist()) for match in matches}
    assert_recall(measured["semantic"], neighbours, stored_pairs(routed, "neighbours"))

    copy = np.round(truth.copy, 6)
    np.fill_diagonal(copy, -2)
    pairs = set()
    for query, similarities in enumerate(copy):
        for split in ("train", "val"):
            inside = np.flatnonzero(splits == split)
            order = inside[np.argsort(-similarities[inside], kind="stable")][: 10 if split == splits[query] else 3]
            near = order[similarities[order] >= routed.summary()["threshold"]["value"]].tolist()
            pairs |= {(min(query, match), max(query, match)) for match in near}
    stored = {(min(pair), max(pair)) for pair in stored_pairs(routed, "candidates")}
    assert_recall(measured["copy"], pairs, stored)


def assert_recall(measured: dict[str, float], true: set[tuple[int, int]], found: set[tuple[int, int]]) -> None:
    """Some of the true pairs were missed, and so many were said to be found; the interval holds the share."""
    assert (measured["found"], measured["total"]) == (len(true & found), len(true))
    assert 0 < measured["found"] < measured["total"]
    assert measured["low95"] < measured["found"] / measured["total"] < measured["high95"]


def stored_pairs(audit: Audit, name: str) -> set[tuple[int, int]]:
    """(image_id, match_id) of what the latest joins committed under a name."""
    stages = {stage["stage"]: stage["folder"] for stage in audit.published.session["stages"]}
    store = audit.root.open()
    folder = stages["merge semantic" if name == "neighbours" else "merge copy"]
    keys = [info.key for info in store.list(f"{folder}/") if info.key.rpartition("/")[2].startswith(f"{name}-")]
    tables = [read_table(store, key, ["image_id", "match_id"]) for key in keys]
    return {(row["image_id"], row["match_id"]) for table in tables for row in table.to_pylist()}


@pytest.mark.parametrize("size", [1, 7, 16, 64, 1024])
def test_every_shard_size_gives_the_same_parts(size: int, tmp_path: Path, small: Audit) -> None:
    """Features and tables of a small set, whatever the shard size."""
    audit = run(small_folder(small), root=tmp_path / "audit", shard_size=size)

    assert_equal_features(audit, small)
    assert_equal_tables(audit, small)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("small")
    return run(write_files(folder / "photos", small_set(16)), root=folder / "audit")


def small_folder(audit: Audit) -> Path:
    return Path(audit.root.uri).parent / "photos"


DESCRIPTION: dict[str, Any] = {
    "width": 32,
    "height": 32,
    "layout": "NCHW",
    "channel_order": "RGB",
    "scale": 1 / 255,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}


def test_own_model_end_to_end(tmp_path: Path, small: Audit, capsys: pytest.CaptureFixture[str]) -> None:
    """An fp32 NCHW model of another size and dimension: equal rows for any shard size, the planted copies found."""
    from pipeline.cli import main

    (tmp_path / "own.onnx").write_bytes(projection_model())
    (tmp_path / "input.json").write_text(json.dumps(DESCRIPTION))
    model = ["--model", str(tmp_path / "own.onnx"), "--model-input", str(tmp_path / "input.json")]
    photos, root = str(small_folder(small)), str(tmp_path / "audit")
    assert main(["run", photos, "--root", root, "--runner", "local", "--quiet", *model]) == 0
    assert "images      19 (18 ok, 1 invalid: " in capsys.readouterr().out
    by_flags = pipeline.open(root)
    path = {"path": str(tmp_path / "own.onnx"), "input": DESCRIPTION}
    by_keywords = run(photos, root=tmp_path / "other", model=path, shard_size=5)

    assert np.asarray(features_of(by_flags).embeddings).shape == (19, 48)
    assert_equal_features(by_flags, by_keywords)
    assert_equal_tables(by_flags, by_keywords)
    groups = {row["uri"]: row["group_id"] for row in rows(by_flags, "groups")}
    for original, copy in (("train/a/a00.jpg", "test/a/copy.jpg"), ("train/b/b00.jpg", "val/b/half.jpg")):
        assert groups[original] == groups[copy]
    assert_equal_tables(by_flags, small, ["invalid"])
    plain = ["image_id", "width", "height", "size_bytes", "mean", "stdv", "min", "max", "unique", "contrast", "blur"]
    assert by_flags.quality(columns=plain).equals(small.quality(columns=plain))  # what no model decides


def test_models_work_side_by_side(tmp_path: Path) -> None:
    """One root under two models: each keeps its features, and the first audit is found done afterwards."""
    photos, root = write_files(tmp_path / "photos", small_set(12)), tmp_path / "audit"
    (tmp_path / "own.onnx").write_bytes(projection_model())
    first = run(photos, root=root)
    other = run(photos, root=root, model={"path": str(tmp_path / "own.onnx"), "input": DESCRIPTION})
    again = run(photos, root=root)

    assert other.audit_id != first.audit_id == again.audit_id
    assert {stage["stage"] for stage in again.published.session["stages"] if stage["attempts"]} == {"catalog"}
    assert by_uri(other, "images").keys() == by_uri(first, "images").keys()
    assert_equal_tables(again, first)
    folders = {info.key.split("/")[1] for info in first.root.open().list("features/")}
    assert len(folders) == 2
