"""The planted set is what its truth says, by plain means: hashes, pixels, headers."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from planted import DISK_NAMES, HOSTILE_NAMES, RAW_NAMES, Planted, build, plant

from benchmarks.edits import decode
from pipeline.demo import DemoTruth, demo_photos, make_demo, report_demo
from pipeline.errors import UsageError
from pipeline.schemas import TABLES, Status
from pipeline.sources.folder import encode_key
from pipeline.sources.labels import RuleParams, assign


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(seed=3)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_equal_seeds_equal_bytes(planted: Planted) -> None:
    """One seed, one set; another seed, another."""
    again, other = plant(seed=3), plant(seed=4)

    assert again == planted
    assert other.truth != planted.truth
    assert 160 <= len(planted.files) <= 400


def test_every_file_is_planted_once(planted: Planted) -> None:
    """Each uri stands in exactly one fact, so that no fact hides another."""
    truth = planted.truth
    named = Counter([uri for group in truth.groups() for uri in group])
    named.update([*truth.photos, *truth.wrong_labels, *truth.outliers, *truth.invalid, *truth.animations])
    named.update(uri for uris in truth.quality.values() for uri in uris)

    assert set(named) == set(planted.files)
    assert set(named.values()) == {1}


def test_equal_bytes_are_exactly_the_planted_ones(planted: Planted) -> None:
    """No two files are equal but the planted exact copies and the equal corrupt files."""
    truth = planted.truth
    by_hash: dict[str, set[str]] = {}
    for uri, data in planted.files.items():
        by_hash.setdefault(sha(data), set()).add(uri)
    equal = {frozenset(uris) for uris in by_hash.values() if len(uris) > 1}
    exact_leaks = [pair for pair in truth.leaks if "_again" in pair[1]]
    wanted = {frozenset(pair) for pair in [*truth.same_bytes, *truth.hostile, *exact_leaks]} | {frozenset(truth.web)}
    corrupt = {uris for uris in equal if uris <= set(truth.invalid)}

    assert equal - corrupt == wanted
    assert len(corrupt) == 2


def test_same_pixels_in_another_container(planted: Planted) -> None:
    """Both files decode to the same pixels and differ in their bytes."""
    for original, copy in planted.truth.same_pixels:
        np.testing.assert_array_equal(decode(planted.files[original]), decode(planted.files[copy]))
        assert planted.files[original][:4] != planted.files[copy][:4]


def test_edits_change_the_pixels_and_keep_the_place(planted: Planted) -> None:
    """Edits of one split and label; leaks over two splits, their labels as said; the web over three and two."""
    truth = planted.truth
    for pair in [pair for pairs in truth.edits.values() for pair in pairs]:
        (first, second), labels = assign(pair, RuleParams())
        assert (first, labels[0]) == (second, labels[1])
        assert sha(planted.files[pair[0]]) != sha(planted.files[pair[1]])
    for pair, differ in truth.leaks.items():
        (first, second), labels = assign(pair, RuleParams())
        assert first != second
        assert (labels[0] != labels[1]) == differ
    for uris in (truth.web, truth.web_edits):
        splits, labels = assign(uris, RuleParams())
        assert sorted(map(str, splits)) == ["test", "train", "val"]
        assert len(set(labels)) == 2


def test_photographs_show_something(planted: Planted) -> None:
    """Plain photographs decode, are at least 60 pixels wide, and are neither flat nor of two levels."""
    for uri in planted.truth.photos:
        pixels = decode(planted.files[uri])
        assert min(pixels.shape[:2]) >= 60
        assert pixels.std() > 10
        assert len(np.unique(pixels)) > 60


def test_corrupt_files_are_corrupt(planted: Planted) -> None:
    """A strict reader refuses every one of them, but the one of a single pixel."""
    statuses = {status.value for status in Status}
    for uri, allowed in planted.truth.invalid.items():
        assert allowed <= statuses
        if uri.endswith("dot.png"):
            continue
        with (
            pytest.raises((OSError, SyntaxError, Image.DecompressionBombError)),
            io.BytesIO(planted.files[uri]) as data,
        ):
            Image.open(data).load()


def test_written_names(tmp_path: Path) -> None:
    """On disk are exactly the planted files, difficult names included, and their stored uris are those of the truth."""
    truth = build(tmp_path, seed=3)
    found = {}
    for folder, _, names in os.walk(tmp_path):
        for name in names:
            path = Path(folder) / name
            uri, raw = encode_key(path.relative_to(tmp_path).as_posix())
            found[uri] = path.read_bytes()
            assert (raw is not None) == (name.encode(errors="surrogateescape") in DISK_NAMES.values())

    assert found == plant(seed=3).files
    assert {Path(uri).name for uri, _ in truth.hostile} == {*HOSTILE_NAMES, *RAW_NAMES}


def beyond_gradient(grey: np.ndarray) -> float:
    """Standard deviation of what the best plane leaves over, grey levels."""
    y, x = np.indices(grey.shape)
    plane = np.stack([x.ravel(), y.ravel(), np.ones(grey.size)], axis=1)
    fitted, *_ = np.linalg.lstsq(plane, grey.ravel(), rcond=None)
    return float((grey.ravel() - plane @ fitted).std())


def test_demo_photos_are_distinct_photographs() -> None:
    """At least 60 credited photographs in at most 2 MB; no two are equal; none is flat or a smooth gradient."""
    photos = demo_photos()
    listing = resources.files("pipeline").joinpath("demo_photos", "CREDITS.txt").read_text(encoding="utf-8")
    named = re.findall(
        r"^(\S+)\.jpg\n  \S.*; (?:CC0 1\.0|public domain); https://\S+\n  \S+: \S.*$", listing, re.MULTILINE
    )
    assert named == [*photos]
    assert len({sha(data) for data in photos.values()}) == len(photos) >= 60
    assert sum(map(len, photos.values())) <= 2_000_000
    for name, data in photos.items():
        assert beyond_gradient(decode(data).mean(axis=2)) > 8, name


def demo_tables(truth: DemoTruth) -> dict[str, pa.Table]:
    """What a perfect audit would list."""
    rows: dict[str, list[dict[str, object]]] = {}
    for number, fact in enumerate(truth.facts):
        for place, item in enumerate(fact.items):
            listed = rows.setdefault(fact.table, [])
            column = {fact.column: fact.value} if fact.column else {}
            if fact.table == "groups":
                listed += [{"uri": uri, "group_id": 100 * number + place} for uri in item]
            elif len(item) == 2:
                kind = {"kind": "same_bytes", "is_label_conflict": False, "match_uri": item[1]}
                listed.append({"uri": item[0], **kind, **column})
            else:
                listed.append({"uri": item[0], **column})
    return {name: pa.Table.from_pylist(listed, schema=TABLES[name].schema) for name, listed in rows.items()}


def test_demo_writes_what_it_says(tmp_path: Path) -> None:
    """Every planted uri is a file; the same seed writes the same bytes again; a strange file stops it."""
    truth = make_demo(tmp_path / "photos")
    files = {path.relative_to(tmp_path / "photos").as_posix(): path for path in (tmp_path / "photos").rglob("*.jpg")}
    before = {uri: sha(path.read_bytes()) for uri, path in files.items()}

    assert len(files) == truth.images > 80
    assert {uri for fact in truth.facts for item in fact.items for uri in item} <= set(files)
    exact = next(fact for fact in truth.facts if fact.name == "exact copies")
    assert all(before[first] == before[second] for first, second in exact.items)
    assert make_demo(tmp_path / "photos") == truth
    assert {uri: sha(path.read_bytes()) for uri, path in files.items()} == before
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"holds 'mine\.jpg', which is not of the demo"):
        make_demo(tmp_path / "photos")


def test_demo_report(tmp_path: Path) -> None:
    """A perfect audit finds all; a missed row and a false one are said."""
    truth = make_demo(tmp_path)
    tables = demo_tables(truth)
    lines = report_demo(truth, tables)
    assert lines[0] == f"{truth.images} files"
    assert lines[1:] == [f"{f.name}: planted {len(f.items)}, found {len(f.items)}" for f in truth.facts]

    labels = next(fact for fact in truth.facts if fact.table == "labels")
    innocent = {"uri": "train/tools/innocent.jpg", "is_label_issue": True}
    false = pa.Table.from_pylist([innocent], schema=TABLES["labels"].schema)
    tables["labels"] = pa.concat_tables([tables["labels"].slice(1), false])
    apart = pa.array(range(len(tables["groups"])))
    tables["groups"] = tables["groups"].set_column(0, "group_id", apart)
    report = "\n".join(report_demo(truth, tables))

    wanted = len(labels.items)
    assert f"wrong labels: planted {wanted}, found {wanted - 1}, and 1 image not planted" in report
    assert "cropped and mirrored copies: planted 8, found 0" in report
