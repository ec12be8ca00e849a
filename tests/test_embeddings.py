"""A user's own embeddings in place of a model, and audits that begin with, or end at, stored features."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audited import LOCAL, assert_equal_tables, noise_jpeg, rows, run, small_set, write_files
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

import pipeline
from pipeline.audit import FINDINGS, Audit
from pipeline.cli import main
from pipeline.config import MOST_BY_DISTANCE, MOST_LINKS, OTHER_DISTANCES, config_from
from pipeline.errors import UsageError
from pipeline.kernels import hnsw, metrics
from pipeline.layout.features import list_features, read_features
from pipeline.layout.served import read_recipe
from pipeline.sources import vectors as sources_vectors
from pipeline.sources.vectors import NameIndex, stored_vectors

QUIET = ["--runner", "local", "--quiet"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in three splits."""
    return write_files(tmp_path_factory.mktemp("own") / "photos", small_set(24))


@pytest.fixture(scope="module")
def by_model(photos: Path) -> Audit:
    """Their audit by the default model."""
    return run(photos, root=photos.parent / "audit")


@pytest.fixture(scope="module")
def vectors(by_model: Audit) -> np.ndarray[Any, Any]:
    """The embeddings of that audit, one per image in the order of the listing."""
    recipe = read_recipe(by_model.root, by_model.audit_id)
    total = recipe.inputs.opened_snapshot().total
    return np.array(read_features(by_model.root.open(), recipe.inputs.feature_set(), 0, total).embeddings)


def named(uris: list[str], vectors: np.ndarray[Any, Any]) -> pa.Table:
    """A table of names and vectors."""
    kind = pa.float64() if vectors.dtype == np.float64 else pa.float32()
    values = pa.array(vectors.astype(kind.to_pandas_dtype()).ravel(), kind)
    return pa.table({"filename": uris, "vector": pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])})


@pytest.fixture(scope="module")
def own(photos: Path, by_model: Audit, vectors: np.ndarray[Any, Any]) -> Audit:
    """The audit of the photos with the model's embeddings given as a .npy of float16."""
    np.save(photos.parent / "own.npy", vectors)
    return run(photos, root=photos.parent / "own", embeddings=photos.parent / "own.npy")


def test_embeddings_take_the_place_of_the_model(by_model: Audit, own: Audit) -> None:
    """The images are read all the same: statuses, hashes, quality and kinds; only the shipped moments are not used."""
    for name in ("images", "quality", "invalid"):
        ours, theirs = (audit.table(name) for audit in (own, by_model))
        kept = [column for column in ours.column_names if column != "group_id"]
        assert ours.select(kept).equals(theirs.select(kept))
    pairs = {(row["uri"], row["match_uri"]): row for row in rows(own, "duplicates")}
    assert pairs["test/a/copy.jpg", "train/a/a00.jpg"]["kind"] == "same_bytes"
    assert pairs["train/b/b00.jpg", "val/b/half.jpg"]["kind"] == "near_identical"
    known = {(row["uri"], row["match_uri"]): row for row in rows(by_model, "duplicates")}
    for pair in pairs.keys() & known.keys():
        assert pairs[pair]["semantic_similarity"] == known[pair]["semantic_similarity"]


@pytest.mark.parametrize("form", ["array", "wide array", "table", "paths"])
def test_every_form_gives_the_same_audit(
    form: str, photos: Path, own: Audit, vectors: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    """An array, one of float64 at another length, a shuffled table by uri, one by path: the rows of the .npy."""
    uris = [row["uri"] for row in rows(own, "images")]
    order = np.random.default_rng(3).permutation(len(uris))
    shuffled = [uris[at] for at in order]
    given: dict[str, Any] = {
        "array": vectors,
        "wide array": vectors.astype(np.float64) * 2.0**40,
        "table": named(shuffled, vectors[order].astype(np.float64)),
        "paths": named([str(photos / uri) for uri in shuffled], vectors[order]),
    }
    audit = run(photos, root=tmp_path / "audit", embeddings=given[form], shard_size=7)
    assert_equal_tables(audit, own, ["duplicates", "groups", "leaks", "outliers", "labels"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("few", "20 rows, and the sorted listing has 27 images"),
        ("many", "28 rows, and the sorted listing has 27 images"),
        ("nan", "NaN or infinity in row 2, 9"),
        ("whole numbers", "want a .npy of float16"),
        ("flat", "want a .npy of float16"),
        ("by column", "column by column"),
        ("unnamed", "27 images, and 1 of these have no row, such as 'val/b/half.jpg'"),
        ("twice", "occur twice"),
        ("two columns", "2 columns of vectors"),
        ("text", "want a path, an array"),
    ],
)
def test_wrong_embeddings(
    wrong: str, said: str, photos: Path, own: Audit, vectors: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    """Refused before any image is read, with both counts or the first bad rows."""
    uris = [row["uri"] for row in rows(own, "images")]
    wide = vectors.astype(np.float32)
    broken = wide.copy()
    broken[[2, 9], 3] = np.nan, -np.inf
    table = named(uris, wide)
    given: dict[str, Any] = {
        "few": wide[:20],
        "many": np.concatenate([wide, wide[:1]]),
        "nan": broken,
        "whole numbers": wide.astype(np.int64),
        "flat": wide[:, 0],
        "by column": np.asfortranarray(wide),
        "unnamed": table.slice(0, 26),
        "twice": pa.concat_tables([table, table.slice(3, 1)]),
        "two columns": pa.table({"filename": uris, "a": table["vector"], "b": table["vector"]}),
        "text": ["a.npy"],
    }
    with pytest.raises(UsageError, match=said):
        run(photos, root=tmp_path / "audit", embeddings=given[wrong])
    assert not list((tmp_path / "audit").glob("features/*"))


def test_zero_rows_are_similar_to_nothing(photos: Path, vectors: np.ndarray[Any, Any], tmp_path: Path) -> None:
    """They stay ok images, in every count, and have no neighbour and no score."""
    some = vectors.astype(np.float32)
    some[[6, 8]] = 0
    audit = run(photos, root=tmp_path / "audit", embeddings=some)
    images = rows(audit, "images")
    assert [images[at]["status"] for at in (6, 8)] == ["ok", "ok"]
    outliers = {row["image_id"]: row for row in rows(audit, "outliers")}
    assert all(outliers[at]["nearest_id"] is None and not outliers[at]["is_outlier"] for at in (6, 8))
    assert not {6, 8} & {row["nearest_id"] for row in outliers.values()}
    assert not {6, 8} & set(audit.search(some[:1], k=100)["image_id"].to_pylist())


def test_names_alone(photos: Path, own: Audit, vectors: np.ndarray[Any, Any], tmp_path: Path) -> None:
    """No image anywhere: splits and labels by name, neighbours and outliers of the given vectors, no pixel numbers."""
    uris = [row["uri"] for row in rows(own, "images")]
    copied = vectors.copy()
    copied[uris.index("val/a/a03.jpg")] = copied[uris.index("train/a/a01.jpg")]
    copied[uris.index("train/b/cut.jpg")] = 0
    pq.write_table(named(uris[::-1], copied[::-1]), tmp_path / "own.parquet")
    audit = run(root=tmp_path / "audit", embeddings=tmp_path / "own.parquet")

    images = rows(audit, "images")
    assert [(row["uri"], row["status"]) for row in images] == [(uri, "ok") for uri in uris]
    assert [row["split"] for row in images] == [row["split"] for row in rows(own, "images")]
    assert rows(audit, "quality") == rows(audit, "invalid") == []
    pairs = {(row["uri"], row["match_uri"]): row for row in rows(audit, "duplicates")}
    twin = pairs["train/a/a01.jpg", "val/a/a03.jpg"]
    assert (twin["kind"], twin["similarity"], twin["is_verified"]) == ("near_identical", 1.0, False)
    assert {row["uri"] for row in rows(audit, "leaks") if row["severity"] >= 3} >= {"val/a/a03.jpg"}
    assert "similarity alone" in audit.summary()["threshold"]["text"]
    assert audit.search(copied[:3], k=2)["image_id"].to_pylist()[::2] == [0, 1, 2]
    with pytest.raises(UsageError, match="your own"):
        audit.search(photos / uris[0])
    again = run(root=tmp_path / "audit", embeddings=tmp_path / "own.parquet")
    assert again.audit_id == audit.audit_id
    for name in FINDINGS:
        assert main(["show", name, "--root", audit.root.uri]) == 0


def test_an_array_needs_a_listing(vectors: np.ndarray[Any, Any], tmp_path: Path) -> None:
    """Without names and without sources nobody knows whose rows they are."""
    np.save(tmp_path / "own.npy", vectors)
    with pytest.raises(UsageError, match="has no names"):
        run(root=tmp_path / "audit", embeddings=tmp_path / "own.npy")


def test_rows_follow_the_first_listing_alone(photos: Path, vectors: np.ndarray[Any, Any], tmp_path: Path) -> None:
    """After an image was replaced ids are no longer positions: by position refused, by name right."""
    here = shutil.copytree(photos, tmp_path / "photos")
    root = tmp_path / "audit"
    audit = run(here, root=root, embeddings=vectors)
    uris = [row["uri"] for row in rows(audit, "images")]
    (here / "test/a/a04.jpg").write_bytes(noise_jpeg(4))
    with pytest.raises(UsageError, match="cannot follow the listing"):
        run(here, root=root, embeddings=vectors)
    by_name = run(here, root=root, embeddings=named(uris, vectors))
    found = by_name.search(vectors[:1].astype(np.float32), k=1).to_pylist()
    assert [(row["uri"], row["image_id"]) for row in found] == [("test/a/a04.jpg", len(uris))]


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, (3, 5), elements=st.floats(-1e300, 1e300)), st.integers(-200, 200))
def test_stored_vectors_keep_their_direction(block: np.ndarray[Any, Any], power: int) -> None:
    """Scaling by a power of two loses nothing that float16 has; zero stays zero and nothing overflows."""
    small = np.where(np.abs(block) < 1e-290, 0, block) * 2.0 ** min(power, 0)
    stored = stored_vectors(small, 0, "x").astype(np.float64)
    assert np.isfinite(stored).all()
    for ours, theirs in zip(stored, small, strict=True):
        assert ours.any() == theirs.any()
        if theirs.any():
            largest = np.abs(theirs).max()
            assert np.allclose(ours / np.abs(ours).max(), theirs / largest, atol=2**-10, rtol=0)


def test_features_first_then_the_audit(photos: Path, by_model: Audit, tmp_path: Path) -> None:
    """`until` publishes nothing; `start` lists nothing: the tables of a run in one go, though the folder has more."""
    here = shutil.copytree(photos, tmp_path / "photos")
    root = tmp_path / "audit"
    assert pipeline.run(here, root=root, until="features", where=LOCAL) is None
    assert not list(root.glob("audits/*"))
    (here / "train/a/new.jpg").write_bytes(noise_jpeg(1))
    audit = run(root=root, start="features")

    assert_equal_tables(audit, by_model)
    attempts = {stage["stage"]: stage["attempts"] for stage in audit.published.session["stages"]}
    assert not {"catalog", "extract"} & attempts.keys()


def test_the_sources_are_away(photos: Path, by_model: Audit, tmp_path: Path) -> None:
    """What is stored is enough: similarity alone decides what pixels would have, which the summary says."""
    here = shutil.copytree(photos, tmp_path / "photos")
    root = str(tmp_path / "audit")
    assert main(["run", str(here), "--root", root, "--until", "features", *QUIET]) == 0
    shutil.rmtree(here)
    assert main(["run", "--from", "features", "--root", root, *QUIET]) == 0
    audit = pipeline.open(root)
    assert "similarity alone" in audit.summary()["threshold"]["text"]
    assert audit.table("quality").equals(by_model.table("quality"))
    assert {row["kind"] for row in rows(audit, "duplicates")} >= {"same_bytes"}
    assert audit.search(photos / "train/b/b00.jpg", k=1)["uri"].to_pylist() == ["train/b/b00.jpg"]


def test_features_of_another_model(photos: Path, own: Audit, vectors: np.ndarray[Any, Any], tmp_path: Path) -> None:
    """Stored ones do not count for a model that did not make them: refused with what is missing and what is there."""
    root = own.root.uri
    with pytest.raises(
        UsageError,
        match=r"27 of 27 images, at the offsets \[0, 27\), have no features of the model efficientnet_lite0_160_int8",
    ):
        run(root=root, start="features")
    with pytest.raises(UsageError, match=r"no features of the model given-.*\(7 numbers.*1 folders of other"):
        run(root=root, start="features", embeddings=vectors[:, :7])
    with pytest.raises(UsageError, match="nothing is listed"):
        run(root=tmp_path / "audit", start="features")
    assert not (tmp_path / "audit").exists()
    audit = run(root=root, start="features", embeddings=photos.parent / "own.npy")
    assert_equal_tables(audit, own)
    assert len(list_features(audit.root.open(), read_recipe(audit.root, audit.audit_id).inputs.features).base) >= 1


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sources": ["x"], "start": "features"}, "lists no source"),
        ({"start": "features", "until": "features"}, "nothing to extract"),
        ({"start": "features", "min_offset": 3}, "nothing to extract"),
        ({"sources": ["x"], "start": "tables"}, "want sources or features"),
        ({"sources": ["x"], "until": "index"}, "want features or tables"),
        ({}, "no source given"),
        ({"sources": ["x"], "embeddings": "a.npy", "model": {"path": "m.onnx"}}, "drop one of them"),
        ({"neighbours": {"index": "IVF"}}, "index 'IVF', want auto, Flat"),
        ({"neighbours": {"index": "IVF0"}}, "'IVF0'"),
        ({"neighbours": {"index": "HNSW1"}}, "'HNSW1'"),
        ({"neighbours": {"index": "HNSW257"}}, "HNSW2 to HNSW256"),
        ({"neighbours": {"index": "flat"}}, "'flat'"),
        ({"neighbours": {"distance": "l1"}}, "index 'Flat' goes with it, not 'auto'"),
        ({"neighbours": {"distance": "l1", "index": "Flat"}}, "'l1' without embeddings"),
        ({"neighbours": {"distance": "hamming"}}, "want one of cosine, euclidean, l1"),
        ({"neighbours": {"nprobe": 4}}, "copy_probes and neighbours.semantic_probes"),
        ({"nnf_mode": "HNSW32"}, r"neighbours\.index takes auto, Flat, IVF<n> and HNSW<m>"),
        ({"nnf_param": "num_em_iter=3"}, "nothing of it is to be set"),
        ({"nearest_neighbors_k": 5}, r"neighbours\.semantic_k"),
        ({"run_mode": 3}, "image-audit search"),
    ],
)
def test_contradictions_and_words_of_fastdup(values: dict[str, Any], said: str) -> None:
    """Refused before any work, with what is wanted or what it is called here."""
    sources = {"sources": [] if values.keys() & {"start"} or not values else ["x"]}
    with pytest.raises(UsageError, match=said):
        config_from({**sources, "root": "y", **values})


@pytest.mark.parametrize("distance", OTHER_DISTANCES)
def test_neighbours_by_another_distance(distance: str, photos: Path, tmp_path: Path) -> None:
    """The nearest image of each, and the order of a search, are those of scipy's distance between unit vectors."""
    vectors = np.abs(np.random.default_rng(2).normal(size=(27, 9))) + 0.01
    by = {"index": "Flat", "distance": distance}
    audit = run(photos, root=tmp_path / "audit", embeddings=vectors, neighbours=by, verify={"pixels": False})
    recipe = read_recipe(audit.root, audit.audit_id)
    ids = recipe.inputs.population().ids(0, 27)
    stored = recipe.inputs.population().read(0, 27).embeddings.astype(np.float64)
    unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    far = cdist(unit, unit, {"l1": "cityblock", "linf": "chebyshev"}.get(distance, distance))

    table = audit.search(vectors[ids], k=25)
    found = table["image_id"].to_numpy().reshape(25, 25)
    similarity = table["semantic_similarity"].to_numpy().reshape(25, 25)
    assert np.abs(similarity - 1 / (1 + np.take_along_axis(far, np.searchsorted(ids, found), 1))).max() < 1e-5
    assert (np.take_along_axis(far, np.searchsorted(ids, found), 1) >= np.sort(far, axis=1) - 1e-6).all()
    assert (np.diff(np.take_along_axis(far, np.searchsorted(ids, found), 1), axis=1) > -1e-6).all()
    np.fill_diagonal(far, np.inf)
    listed = {row["image_id"]: row for row in rows(audit, "outliers")}
    group = {row["image_id"]: row["group_id"] for row in rows(audit, "images")}
    for at, image_id in enumerate(ids.tolist()):
        if sum(value == group[image_id] for value in group.values()) == 1:
            assert abs(listed[image_id]["nearest_similarity"] - 1 / (1 + far[at].min())) < 1e-5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=3), unique=True, max_size=30), st.lists(st.text(max_size=3), max_size=30), st.data())
def test_rows_of_names_are_those_of_a_dict(names: list[str], wanted: list[str], data: st.DataObject) -> None:
    """Also where many names have one hash."""
    wanted += data.draw(st.lists(st.sampled_from(names), max_size=10)) if names else []
    hashes = data.draw(st.integers(1, 2**60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sources_vectors, "_hashes", lambda found: np.array([hash(name) % hashes for name in found], np.int64)
        )
        found = NameIndex(pa.array(names, pa.string())).rows_of(wanted)

    expected = {name: row for row, name in enumerate(names)}
    assert found.tolist() == [expected.get(name, -1) for name in wanted]


def test_what_a_distance_cannot_compare(photos: Path, vectors: np.ndarray[Any, Any], tmp_path: Path) -> None:
    """Numbers below 0 are no distribution; more rows than every pair is compared of: before the listing."""
    assert (metrics.METRICS[2:], metrics.MOST_ROWS) == (OTHER_DISTANCES, MOST_BY_DISTANCE)
    by = {"index": "Flat", "distance": "jensenshannon"}
    with pytest.raises(UsageError, match="row 0 has a number below 0"):
        run(photos, root=tmp_path / "audit", embeddings=vectors, neighbours=by)
    many = np.ones((MOST_BY_DISTANCE + 1, 2), np.float16)
    with pytest.raises(UsageError, match="at most 50,000"):
        run(photos, root=tmp_path / "audit", embeddings=many, neighbours={**by, "distance": "l1"})
    assert not list((tmp_path / "audit").glob("catalog/*"))


def test_how_neighbours_are_indexed(photos: Path, by_model: Audit, tmp_path: Path) -> None:
    """Flat whatever exact_limit says, lists and graphs as asked, more lists than images, all with their recall."""
    assert MOST_LINKS == hnsw.MOST_LINKS
    root = tmp_path / "audit"
    flat = run(photos, root=root, neighbours={"index": "Flat", "exact_limit": 0, "distance": "euclidean"})
    assert_equal_tables(flat, by_model)
    every = {"copy_probes": 999, "semantic_probes": 999}
    for index in ("IVF3", "IVF999", "HNSW8"):
        audit = run(photos, root=root, neighbours={"index": index, **(every if index == "IVF999" else {})})
        recipe = read_recipe(audit.root, audit.audit_id)
        assert bool(recipe.copy.folder) == index.startswith("IVF")
        assert recipe.copy.links == (8 if index == "HNSW8" else 0)
        recall = audit.summary()["recall"]
        assert recall["copy"]["found"] == recall["copy"]["total"] > 0
        assert recall["semantic"]["total"] > 500
        assert_equal_tables(audit, by_model, ["duplicates", "groups", "leaks"])
        if index == "IVF999":
            assert recall["semantic"]["found"] == recall["semantic"]["total"]
            assert_equal_tables(audit, by_model, {*FINDINGS} - {"outliers"})
        assert audit.search(photos / "train/b/b00.jpg", k=1)["uri"].to_pylist() == ["train/b/b00.jpg"]
