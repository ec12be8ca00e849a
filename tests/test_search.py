"""Searching an audit: brute force over the stored features gives the same, whatever the index and its partitions."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audited import assert_equal_tables, jpeg, noise_jpeg, run, small_set, write_files
from outcomes import shown
from PIL import Image
from s3_servers import moto_port, new_store, use_credentials

import pipeline
from pipeline.audit import Audit
from pipeline.cli import main
from pipeline.errors import ArtifactError, NotFound, UsageError
from pipeline.kernels.space import pair_similarities
from pipeline.layout import served
from pipeline.layout.features import read_features
from pipeline.layout.served import Recipe, read_recipe
from pipeline.layout.spaces import read_space
from pipeline.plan import serving
from pipeline.plan.nearest import NEAREST
from pipeline.plan.serving import served_space

SIMILARITIES = ("similarity", "semantic_similarity", "signature_similarity")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Audit]:
    """Photos in three splits with an exact copy and a half-size one, and their audit."""
    folder = tmp_path_factory.mktemp("search")
    photos = write_files(folder / "photos", small_set(24))
    return photos, run(photos, root=folder / "audit")


def truth(audit: Audit) -> tuple[Recipe, Any, np.ndarray[Any, Any]]:
    """What an audit was made of, its stored features, and the ids of its representatives."""
    recipe = read_recipe(audit.root, audit.audit_id)
    total = recipe.inputs.opened_snapshot().total
    features = read_features(audit.root.open(), recipe.inputs.feature_set(), 0, total)
    return recipe, features, recipe.inputs.population().ids(0, total)


def expected(audit: Audit, image_id: int, space: str, k: int) -> list[tuple[int, float]]:
    """The nearest representatives of a stored image by comparing it with each of them."""
    recipe, features, ids = truth(audit)
    one = np.full(len(ids), image_id)
    found = pair_similarities(
        read_space(audit.root.open(), recipe.space),
        features.embeddings[one], features.signatures[one], features.embeddings[ids], features.signatures[ids],
    )  # fmt: skip
    similarity = found.copy if space == "copy" else found.semantic
    order = np.lexsort((ids, -similarity))[:k]
    return [(int(ids[at]), float(similarity[at])) for at in order]


def listed(found: pa.Table, space: str) -> list[tuple[int, float]]:
    """Ids and ranked similarities of the answer to one query."""
    name = "similarity" if space == "copy" else "semantic_similarity"
    return list(zip(found["image_id"].to_pylist(), found[name].to_pylist(), strict=True))


@pytest.mark.parametrize("space", ["copy", "semantic"])
def test_a_stored_image_finds_what_comparing_all_finds(audited: tuple[Path, Audit], space: str) -> None:
    """Every image of the audit as a query: ids, order and all six decimals; k over the data gives all there is."""
    photos, audit = audited
    images = audit.table("images", filter=pa.compute.field("status") == "ok").to_pylist()
    found = audit.search([photos / row["uri"] for row in images], k=1000, space=space)
    _, _, ids = truth(audit)

    assert found.num_rows == len(images) * len(ids)
    assert found.schema.equals(NEAREST)
    for at, row in enumerate(images):
        answer = found.slice(at * len(ids), len(ids))
        assert set(answer["query"].to_pylist()) == {str(photos / row["uri"])}
        assert answer["rank"].to_pylist() == list(range(1, len(ids) + 1))
        assert listed(answer, space) == expected(audit, row["image_id"], space, 1000)


def test_what_is_said_of_a_match(audited: tuple[Path, Audit]) -> None:
    """Uri, path, split and label of the representative, how many copies it stands for, whether its bytes are those."""
    photos, audit = audited
    (best, *_) = audit.search((photos / "train/a/a00.jpg").read_bytes(), k=3).to_pylist()
    changed = Image.open(photos / "train/b/b00.jpg").convert("RGB")
    (near, *_) = audit.search(jpeg(changed), k=1, space="copy").to_pylist()

    assert (best["uri"], best["split"], best["label"]) == ("test/a/copy.jpg", "test", "a")
    assert best["path"] == str(photos / "test/a/copy.jpg")
    assert (best["copies"], best["is_same_bytes"]) == (2, True)
    assert [best[name] for name in SIMILARITIES] == [1.0, 1.0, 1.0]
    assert (near["uri"], near["copies"], near["is_same_bytes"]) == ("train/b/b00.jpg", 1, False)
    assert near["similarity"] > 0.9


def test_a_bad_query_is_a_row(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    """Empty, cut off and no image at all: a row each with its status, in the order of the queries; others go on."""
    photos, audit = audited
    (tmp_path / "text.jpg").write_bytes(b"no image")
    queries = [b"", photos / "train/b/cut.jpg", tmp_path / "text.jpg", photos / "train/b/b00.jpg"]
    found = audit.search(queries, k=2).to_pylist()

    assert [row["status"] for row in found] == ["empty", "truncated", "unsupported", "ok", "ok"]
    assert all(row["image_id"] is None and row["message"] for row in found[:3])
    assert [row["rank"] for row in found] == [None, None, None, 1, 2]


def test_vectors_find_what_their_images_find(audited: tuple[Path, Audit]) -> None:
    """Stored embeddings as float16, and wider ones of any length; a zero row finds nothing; NaN is refused by row."""
    _, audit = audited
    _, features, ids = truth(audit)
    vectors = features.embeddings[ids]
    found = audit.search(vectors, k=5)
    long = audit.search(vectors.astype(np.float64) * 1e30, k=5)
    nothing = audit.search(np.zeros((1, vectors.shape[1]), np.float32)).to_pylist()
    broken = vectors.astype(np.float32)
    broken[[3, 5], 7] = np.nan, np.inf

    for at, image_id in enumerate(ids.tolist()):
        assert listed(found.slice(5 * at, 5), "semantic") == expected(audit, image_id, "semantic", 5)
    assert long["image_id"].to_pylist() == found["image_id"].to_pylist()
    assert set(found["similarity"].to_pylist()) == {None}
    assert [(row["status"], row["image_id"]) for row in nothing] == [("ok", None)]
    assert audit.search(vectors[:0]).num_rows == 0
    with pytest.raises(UsageError, match="row 3, 5"):
        audit.search(broken)


@pytest.mark.parametrize(
    "wrong",
    [
        "k 0",
        "k 1001",
        "k text",
        "k true",
        "k half",
        "space",
        "width",
        "copy",
        "flat",
        "kind",
        "none",
        "file",
        "lazy",
        "npy",
    ],
)
def test_wrong_calls_are_refused(audited: tuple[Path, Audit], wrong: str) -> None:
    """Before anything is read, with the value seen and the one wanted."""
    photos, audit = audited
    vectors = np.ones((2, 320), np.float32)
    calls: dict[str, tuple[Any, dict[str, Any], str]] = {
        "k 0": (photos, {"k": 0}, "k 0, want a whole number from 1 to 1000"),
        "k 1001": (photos, {"k": 1001}, "k 1001"),
        "space": (photos, {"space": "colour"}, "'colour', want copy or semantic"),
        "width": (vectors[:, :5], {}, "have 5 numbers, those of this audit 320"),
        "copy": (vectors, {"space": "copy"}, "no thumbnail"),
        "flat": (vectors[0], {}, r"want \(n, 320\)"),
        "kind": ([3], {}, "an image is int; want a path"),
        "k text": (photos, {"k": "3"}, "k '3', want a whole number"),
        "k true": (photos, {"k": True}, "k True, want a whole number"),
        "k half": (photos, {"k": 2.0}, "k 2.0, want a whole number"),
        "none": (None, {}, "an image is NoneType"),
        "file": (io.BytesIO(noise_jpeg(1)), {}, "an image is BytesIO"),
        "lazy": ((photo for photo in [photos]), {}, "an image is generator"),
        "npy": ([photos / "a.npy"], {}, "is no image: search with vectors by --features"),
    }
    images, given, said = calls[wrong]
    with pytest.raises(UsageError, match=said):
        audit.search(images, **given)


def test_any_collection_of_images(audited: tuple[Path, Audit]) -> None:
    """A column of paths is as good as a list."""
    photos, audit = audited
    paths = sorted(photos.rglob("*.jpg"))[:2]
    assert len(paths) == 2
    assert audit.search(dict.fromkeys(paths).keys(), k=2).equals(audit.search(paths, k=2))


def test_an_image_that_is_not_there(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    """A name that leads nowhere, and a folder without images, are said before any search."""
    _, audit = audited
    with pytest.raises(NotFound, match=r"nowhere\.jpg"):
        audit.search([noise_jpeg(1), tmp_path / "nowhere.jpg"])
    with pytest.raises(NotFound, match="no image"):
        audit.search(tmp_path)


def test_lists_and_partitions_of_a_trained_index(
    audited: tuple[Path, Audit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IVF lists in several served partitions, all probed: the rows of the exact search. Only probed lists are read."""
    photos, exact = audited
    monkeypatch.setattr(serving, "SERVED_ROWS", 7)
    probes = {"index": "IVF5", "copy_probes": 99, "semantic_probes": 99}
    audit = run(photos, root=tmp_path / "audit", neighbours=probes)
    for space in ("copy", "semantic"):
        assert audit.search(photos, k=9, space=space).equals(exact.search(photos, k=9, space=space))
    recipe = read_recipe(audit.root, audit.audit_id)
    assert serving._counted(served_space(recipe, "copy")).index.count > 1

    few = run(photos, root=tmp_path / "few", neighbours={**probes, "copy_probes": 1, "semantic_probes": 1})
    read: list[list[int]] = []
    whole = served.ServedSpace.read

    def watched(of: served.ServedSpace, partition: int, lists: np.ndarray[Any, Any]) -> Any:
        read.append(lists.tolist())
        return whole(of, partition, lists)

    monkeypatch.setattr(served.ServedSpace, "read", watched)
    found = few.search(photos / "train/b/b00.jpg", k=30, space="copy")
    assert found["uri"][0].as_py() == "train/b/b00.jpg"
    assert found.num_rows < 25
    assert [len(lists) for lists in read] == [1]


def test_the_index_is_made_once(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    """A later search of the same audit, or of another with the same representatives, writes nothing."""
    photos, audit = audited
    audit.search(photos / "train/b/b00.jpg")
    store = audit.root.open()
    before = {info.key: info.mtime_ns for info in store.list("indexes/")}
    audit.search(photos / "train/b/b00.jpg")
    other = run(photos, root=audit.root.uri, neighbours={"threshold": 0.9})
    other.search(photos / "train/b/b00.jpg")

    assert {info.key: info.mtime_ns for info in store.list("indexes/")} == before
    assert not [*store.list("work/")]
    assert len([key for key in before if key.endswith("served.json")]) <= 2


def test_damage_is_named(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    """A served list that is not what was written is no answer: the message says which file to delete."""
    photos, audit = audited
    audit.search(photos / "train/b/b00.jpg")
    shutil.copytree(audit.root.uri, tmp_path / "copy")
    (part,) = [
        path
        for path in (tmp_path / "copy/indexes").rglob("lists-*.shuffle")
        if json.loads((path.parent / "served.json").read_bytes())["space"] == "semantic"
    ]
    data = bytearray(part.read_bytes())
    data[-2000] ^= 1
    part.write_bytes(data)
    copy = pipeline.open(tmp_path / "copy", audit.audit_id)
    with pytest.raises(ArtifactError, match=part.name):
        copy.search(photos / "train/b/b00.jpg")
    part.unlink()  # as the message says
    assert copy.search(photos / "val").equals(audit.search(photos / "val"))


def test_an_audit_of_an_earlier_version(audited: tuple[Path, Audit], tmp_path: Path) -> None:
    """One that does not say what it was made of: run again does, and computes nothing else."""
    photos, audit = audited
    shutil.copytree(audit.root.uri, tmp_path / "copy")
    recipes = [*(tmp_path / "copy/audits").rglob("served.json")]
    for path in recipes:
        path.unlink()
    old = pipeline.open(tmp_path / "copy", audit.audit_id)
    with pytest.raises(ArtifactError, match="Run it again"):
        old.search(photos)
    again = run(photos, root=tmp_path / "copy")
    assert_equal_tables(again, audit)
    assert again.search(photos / "train/b/b00.jpg").num_rows == 10


@pytest.fixture
def on_server(audited: tuple[Path, Audit], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The root, index and all, on an object store, and an empty folder for copies."""
    use_credentials(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    photos, audit = audited
    audit.search(photos / "train/b/b00.jpg")
    here, there = audit.root.open(), new_store(moto_port(), "audit")
    for info in here.list():
        there.put(info.key, here.read(info.key))
    return there.uri


def test_a_root_on_an_object_store(audited: tuple[Path, Audit], on_server: str, tmp_path: Path) -> None:
    """The same rows, from a copy on this machine, made anew where it is damaged; a damaged object is named."""
    photos, audit = audited
    far = pipeline.open(on_server, audit.audit_id, {"region": "us-east-1"})
    images = [photos / "train/b/b00.jpg", photos / "test/a/copy.jpg"]
    assert far.search(images).equals(audit.search(images))
    copies = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes()[:8] == b"IMAUDSH1"]
    assert len(copies) == 1

    asked = new_store(moto_port(), "asked")
    for name, image in zip(("a/1.jpg", "a/2.jpg"), images, strict=True):
        asked.put(name, image.read_bytes())
    found = far.search([f"{asked.uri}/a/2.jpg", f"{asked.uri}/a"], k=1)
    assert found["query"].to_pylist() == [f"{asked.uri}/a/{name}.jpg" for name in (2, 1, 2)]
    assert found["is_same_bytes"].to_pylist() == [True, True, True]

    served._whole.cache_clear()
    copies[0].write_bytes(copies[0].read_bytes()[:-5000])
    assert far.search(images).equals(audit.search(images))  # copied once more
    store = far.root.open()
    key = next(info.key for info in store.list("indexes/") if store.read(info.key) == copies[0].read_bytes())
    store.put(key, store.read(key)[:-5000])
    served._whole.cache_clear()
    with pytest.raises(ArtifactError, match=key):
        far.search(images)


def test_the_command(audited: tuple[Path, Audit], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Text, JSON, CSV and Parquet by flag or suffix; features from .npy and Parquet; the index ahead of it all."""
    photos, audit = audited
    call = ["--root", audit.root.uri, "--audit", audit.audit_id, "--runner", "local", "-q"]
    assert b"copy: 25 representatives" in shown(capfdbinary, "index", *call)
    text = shown(capfdbinary, "search", str(photos / "train/a/a00.jpg"), str(photos / "train/b/cut.jpg"), "-k2", *call)
    assert b"test/a/copy.jpg" in text
    assert b"cut.jpg: truncated: " in text

    wanted = audit.search(photos / "val", k=3).to_pylist()
    lines = shown(capfdbinary, "search", str(photos / "val"), "-k", "3", "--json", *call).decode().splitlines()
    assert [json.loads(line) for line in lines] == wanted
    output = tmp_path / "found.parquet"
    assert shown(capfdbinary, "search", str(photos / "val"), "-k", "3", "--output", str(output), *call) == b""
    assert pq.read_table(output).to_pylist() == wanted

    _, features, ids = truth(audit)
    np.save(tmp_path / "f.npy", features.embeddings[ids])
    rows = pa.FixedSizeListArray.from_arrays(pa.array(features.embeddings[ids].astype(np.float32).ravel()), 320)
    pq.write_table(pa.table({"name": [f"n{image_id}" for image_id in ids], "v": rows}), tmp_path / "f.parquet")
    answers = [
        shown(capfdbinary, "search", "--features", str(tmp_path / name), "-k", "2", "--csv", *call)
        .decode()
        .splitlines()
        for name in ("f.npy", "f.parquet")
    ]
    assert [line.partition(",")[2] for line in answers[0]] == [line.partition(",")[2] for line in answers[1]]
    assert [line.partition(",")[0] for line in answers[1][1::2]] == [f"n{image_id}" for image_id in ids]


@pytest.fixture
def odd_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with feature files of which none fits."""
    monkeypatch.chdir(tmp_path)
    np.save("wide.npy", np.ones((2, 7), np.float32))
    np.save("cut.npy", np.ones((2, 320), np.float32))
    data = Path("cut.npy").read_bytes()
    Path("cut.npy").write_bytes(data[:-1])
    Path("text.npy").write_bytes(b"text")


@pytest.mark.usefixtures("odd_files")
@pytest.mark.parametrize(
    "wrong",
    [
        ([], 2, "name the one or the other"),
        (["x.jpg", "--features", "f.npy"], 2, "name the one or the other"),
        (["nowhere.jpg"], 3, "nowhere.jpg"),
        (["--features", "wide.npy"], 2, "have 7 numbers"),
        (["--features", "text.npy"], 2, "neither .npy nor Parquet"),
        (["--features", "cut.npy"], 2, "cut off"),
        (["--features", "nowhere.npy"], 3, "nowhere.npy"),
        (["photos", "-k", "0"], 2, "k 0"),
    ],
)
def test_wrong_commands(
    audited: tuple[Path, Audit], capsys: pytest.CaptureFixture[str], wrong: tuple[list[str], int, str]
) -> None:
    """One message and the code that every command gives."""
    arguments, code, said = wrong
    _, audit = audited
    assert main(["search", *arguments, "--root", audit.root.uri, "--runner", "local"]) == code
    printed = capsys.readouterr()
    assert said in printed.err
    assert "Traceback" not in printed.err


def as_unit(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows at length 1, float32."""
    wide = vectors.astype(np.float32)
    unit: np.ndarray[Any, Any] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize("index", ["Flat", "IVF4"])
def test_the_exported_file(
    audited: tuple[Path, Audit], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], index: str
) -> None:
    """Faiss reads it, and finds the neighbours of audit.search; the Parquet beside it says what the ids are."""
    photos, _ = audited
    neighbours = {"index": index, "semantic_probes": 2}
    audit = run(photos, root=tmp_path / "audit", neighbours=neighbours)
    output = tmp_path / "semantic.faiss"
    call = ["--root", audit.root.uri, "--output", str(output), "--runner", "local", "-q"]
    assert b"25 vectors of 320" in shown(capfdbinary, "export", *call)
    _, features, ids = truth(audit)
    read = faiss.read_index(str(output))

    assert type(read) is (faiss.IndexIDMap if index == "Flat" else faiss.IndexIVFFlat)
    assert read.ntotal == 25
    wanted = audit.search(features.embeddings[ids], k=6)
    similarity, found = read.search(as_unit(features.embeddings[ids]), 6)
    ours = np.full((25, 6), -1)
    row = np.array([int(name.split()[1]) for name in wanted["query"].to_pylist()])
    ours[row, wanted["rank"].to_numpy() - 1] = wanted["image_id"].to_numpy()
    assert (ours == found).mean() > 0.99  # float32 may exchange two that are as near
    near = np.zeros((25, 6))
    near[row, wanted["rank"].to_numpy() - 1] = wanted["semantic_similarity"].to_numpy()
    assert np.abs(near - similarity)[ours >= 0].max() < 1e-5
    named = pq.read_table(tmp_path / "semantic.faiss.names.parquet").to_pylist()
    assert [item["image_id"] for item in named] == ids.tolist()
    images = {item["image_id"]: item for item in audit.table("images").to_pylist()}
    for item in named:
        assert {**images[item["image_id"]], **item} == {**images[item["image_id"]], "copies": item["copies"]}
    assert sum(item["copies"] for item in named) == 26


@pytest.mark.parametrize("name", ["x.parquet", "photo.jpg", "index"])
def test_an_export_has_a_name_of_its_own(
    audited: tuple[Path, Audit], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """It takes the place of no table and no photo."""
    _, audit = audited
    assert main(["export", "--root", audit.root.uri, "--output", name]) == 2
    assert "want a name that ends in .faiss" in capsys.readouterr().err
