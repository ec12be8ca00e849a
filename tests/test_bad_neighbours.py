"""Data that the neighbour search finds awkward, end to end: a right result, or a clear error before the work."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from audited import assert_equal_tables, jpeg, noise_jpeg, projection_model, rows, run, write_files
from onnx import helper
from PIL import Image
from test_embeddings import named

from pipeline.audit import FINDINGS, Audit
from pipeline.errors import UsageError
from pipeline.layout.exact import MAX_SPLITS
from pipeline.layout.served import read_recipe

LISTS = {"index": "IVF4", "copy_probes": 4, "semantic_probes": 4}
Search = dict[str, Any]
SEARCHED: tuple[Search, ...] = ({}, LISTS)
SEARCHES = [pytest.param(search, id=name) for search, name in zip(SEARCHED, ("exact", "lists"), strict=True)]
PLAIN = {"mean": [0, 0, 0], "std": [1, 1, 1], "scale": 1, "channel_order": "RGB"}
Vectors = np.ndarray[Any, Any]


def clouds(count: int, dimension: int = 24) -> Vectors:
    """Vectors around ten centres, each tenth the one before it with a little noise."""
    rng = np.random.default_rng(11)
    vectors = rng.normal(size=(10, dimension))[np.arange(count) % 10] + 0.7 * rng.normal(size=(count, dimension))
    vectors[9::10] = vectors[8::10][: len(vectors[9::10])] + 0.02 * rng.normal(size=(len(vectors[9::10]), dimension))
    return vectors.astype(np.float32)


def names(count: int, splits: tuple[str, ...] = ("train", "val", "test")) -> list[str]:
    """Names in the order of their ids."""
    return sorted(f"{splits[at % len(splits)]}/{'ab'[at % 2]}/{at:05}" for at in range(count))


def of_vectors(folder: Path, uris: list[str], vectors: Vectors, **config: Any) -> Audit:
    """An audit of vectors alone, into a root of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "own.parquet"
    if not path.exists():
        pq.write_table(named(uris, vectors), path)
    audit = run(root=folder / f"audit-{len([*folder.iterdir()])}", embeddings=path, **config)
    assert bool(read_recipe(audit.root, audit.audit_id).copy.folder) == ("index" in config.get("neighbours", {}))
    return audit


def assert_nearest(audit: Audit, vectors: Vectors) -> None:
    """Every image has the nearest head of another group, as brute force over all pairs finds it."""
    order = np.argsort([f"{row['uri']}" for row in rows(audit, "images")], kind="stable")
    assert order.tolist() == [*range(len(vectors))]
    halves = np.ldexp(vectors, 8).astype(np.float16).astype(np.float64)
    unit = halves / np.maximum(np.linalg.norm(halves, axis=1, keepdims=True), 1e-30)
    group = np.array([row["group_id"] for row in rows(audit, "images")])
    similarity = np.where(group[:, None] == group[None, :], -2.0, unit @ unit.T)
    similarity[:, group != np.arange(len(group))] = -2.0
    similarity[~vectors.any(axis=1)] = similarity[:, ~vectors.any(axis=1)] = -2.0
    best = similarity.max(axis=1)
    for row in rows(audit, "outliers"):
        at = row["image_id"]
        if best[at] == -2.0:
            assert row["nearest_id"] is None
        else:
            assert row["nearest_similarity"] == pytest.approx(best[at], abs=2e-4)


@pytest.mark.parametrize("count", [2, 7, 40])
def test_more_neighbours_than_images(tmp_path: Path, count: int) -> None:
    """k of hundreds among a handful: all pairs, as with lists, and no row is made up."""
    vectors = clouds(40)[40 - count :]
    many = {"semantic_k": 500, "copy": {"k": 900, "k_cross": 900}}
    audit = of_vectors(tmp_path, names(40)[40 - count :], vectors, neighbours=many)
    assert_nearest(audit, vectors)
    assert all(0 <= row["nearest_id"] < count for row in rows(audit, "outliers") if row["nearest_id"] is not None)
    by_lists = of_vectors(tmp_path, [], vectors, neighbours={**many, **LISTS})

    assert_equal_tables(by_lists, audit, {*FINDINGS} - {"outliers"})


@pytest.mark.parametrize("rows_each", [1, 3])
def test_partitions_of_one_row(tmp_path: Path, rows_each: int) -> None:
    """A cap that hardly anything fits: as many partitions as images, and the rows of one."""
    vectors = clouds(24)
    whole = of_vectors(tmp_path, names(24), vectors)
    cut = of_vectors(tmp_path, [], vectors, neighbours={"partition_rows": rows_each})
    joined = {stage["stage"]: stage for stage in cut.published.session["stages"]}

    assert joined["join copy"]["parts"] == 24 // rows_each
    assert_equal_tables(cut, whole)


@pytest.mark.parametrize("rows_each", [1, 10**6])
def test_lists_and_partitions_without_a_row(tmp_path: Path, rows_each: int) -> None:
    """2,000 rows of three different vectors: five lists, of which most are empty, and lists over the cap."""
    vectors = np.tile(np.repeat(clouds(10)[[0, 1, 2]], (12, 5, 3), axis=0), (100, 1))
    uris = names(2000)
    audit = of_vectors(tmp_path, uris, vectors, neighbours={**LISTS, "partition_rows": rows_each})
    sizes = Counter(row["group_id"] for row in rows(audit, "images"))

    assert sizes == {0: 1200, 12: 500, 17: 300}
    assert {(row["image_id"], row["match_split"]) for row in rows(audit, "leaks")} == {
        (at, split) for at in range(2000) for split in ("train", "val", "test") if not uris[at].startswith(split)
    }
    assert_nearest(audit, vectors)


@pytest.mark.parametrize("search", SEARCHES)
def test_all_vectors_identical(tmp_path: Path, search: Search) -> None:
    """One group of everything, every image leaks into both other splits, nobody has a neighbour outside."""
    audit = of_vectors(tmp_path, names(900), np.ones((900, 8), np.float32), neighbours=search)

    assert {row["group_id"] for row in rows(audit, "images")} == {0}
    assert audit.table("leaks").num_rows == 2 * 900
    assert {row["nearest_id"] for row in rows(audit, "outliers")} == {None}


@pytest.mark.parametrize("search", SEARCHES)
def test_vectors_of_zeros(tmp_path: Path, search: Search) -> None:
    """They resemble nothing: in no pair, no group and no list; the others find what they find without them."""
    vectors = clouds(60)
    vectors[::7] = 0
    audit = of_vectors(tmp_path, names(60), vectors, neighbours=search)
    zeros = {*range(0, 60, 7)}

    assert not zeros & {row[side] for row in rows(audit, "duplicates") for side in ("image_id", "match_id")}
    assert not zeros & {row["nearest_id"] for row in rows(audit, "outliers")}
    assert_nearest(audit, vectors)


@pytest.mark.parametrize("search", SEARCHES)
def test_nothing_but_zeros(tmp_path: Path, search: Search) -> None:
    audit = of_vectors(tmp_path, names(30), np.zeros((30, 8), np.float32), neighbours=search)

    assert audit.table("images").num_rows == 30
    assert audit.table("duplicates").num_rows == audit.table("leaks").num_rows == audit.table("groups").num_rows == 0


def test_nan_is_refused_with_its_row(tmp_path: Path) -> None:
    vectors = clouds(20)
    vectors[13, 3] = np.nan
    with pytest.raises(UsageError, match=r"NaN or infinity in row 13"):
        of_vectors(tmp_path, names(20), vectors)

    assert not [*tmp_path.rglob("neighbours")]


def test_a_model_that_gives_zeros_or_nan_for_some(tmp_path: Path) -> None:
    """A black picture is 0 times the weights: it is invalid, says why and meets no search; the same for 0 / 0."""
    head = [helper.make_node("Div", ["vector", "length"], ["output"])]
    length = helper.make_node("ReduceL2", ["vector"], ["length"], axes=[1], keepdims=1)
    (tmp_path / "zeros.onnx").write_bytes(projection_model())
    (tmp_path / "nan.onnx").write_bytes(projection_model([length, *head]))
    files = {f"train/a/{seed}.jpg": noise_jpeg(seed) for seed in range(8)}
    files |= {f"val/a/{seed}.jpg": noise_jpeg(seed, 80) for seed in range(2)}
    files |= {f"{split}/b/black.png": png((0, 0, 0), side) for split, side in (("train", 40), ("val", 50))}
    photos = write_files(tmp_path / "photos", files)
    for name in ("zeros", "nan"):
        given = {"path": str(tmp_path / f"{name}.onnx"), "input": PLAIN}
        for search in SEARCHED:
            audit = run(photos, root=tmp_path / name, model=given, neighbours=search)
            black = {row["uri"] for row in rows(audit, "invalid") if "NaN, infinity or zeros" in row["message"]}
            assert black == {"train/b/black.png", "val/b/black.png"}
            listed = {row[side] for row in rows(audit, "duplicates") for side in ("uri", "match_uri")}
            assert not listed & black
            assert {"val/a/0.jpg", "val/a/1.jpg"} <= {row["uri"] for row in rows(audit, "leaks")}


def png(colour: tuple[int, int, int], side: int) -> bytes:
    return jpeg(Image.new("RGB", (side, side), colour))


@pytest.mark.parametrize("search", SEARCHES)
def test_one_split(tmp_path: Path, search: Search) -> None:
    vectors = clouds(50)
    audit = of_vectors(tmp_path, names(50, ("train",)), vectors, neighbours=search)

    assert audit.table("leaks").num_rows == 0
    assert len({row["group_id"] for row in rows(audit, "groups")}) == 5


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("splits", [40, MAX_SPLITS])
def test_many_splits(tmp_path: Path, splits: int, search: Search) -> None:
    """Copies in every split: each image leaks into each of the others."""
    uris = [f"part{at:02}/a/{number}" for at in range(splits) for number in range(2)]
    vectors = np.tile(clouds(12)[:2], (splits, 1))
    audit = of_vectors(tmp_path, uris, vectors, rule={"pattern": "(?P<split>[^/]+)/"}, neighbours=search)

    leaks = Counter(row["image_id"] for row in rows(audit, "leaks"))
    assert leaks == dict.fromkeys(range(2 * splits), splits - 1)
    assert len({row["group_id"] for row in rows(audit, "images")}) == 2


def test_too_many_splits(tmp_path: Path) -> None:
    """Refused when the names were read, before anything is searched."""
    uris = [f"part{at:02}/a/0" for at in range(70)]
    with pytest.raises(UsageError, match=r"70 splits .*want at most 63"):
        of_vectors(tmp_path, uris, clouds(70), rule={"pattern": "(?P<split>[^/]+)/"})

    assert not [*tmp_path.rglob("moments")]


@pytest.mark.parametrize("search", SEARCHES)
def test_a_threshold_that_joins_everything(tmp_path: Path, search: Search) -> None:
    """Every pair is a near-duplicate: all images are held together, by groups of the size that may be or said so."""
    vectors = np.abs(clouds(80)) + 1
    audit = of_vectors(
        tmp_path, names(80), vectors, verify={"near_similarity": 0.0},
        neighbours={**search, "threshold": 1e-9},
    )  # fmt: skip
    similar = rows(audit, "duplicates")

    assert all(row["similarity"] > 0 for row in similar)
    grouped = Counter(row["group_id"] for row in rows(audit, "images"))
    assert grouped == {0: 80}
