"""Exact groups by ranges and buckets give what one task gives, and what comparing every pair of hashes gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from audited import assert_equal_tables, run, small_set, write_files
from numpy.typing import NDArray
from s3_servers import moto_port, new_store, use_credentials

from pipeline.errors import ArtifactError
from pipeline.layout.annotations import CODES
from pipeline.layout.exact import FEATURES, MEMBERS, Population, read_pinned_features, read_summary, split_bits
from pipeline.layout.features import Features, commit_features, list_features, pinned_to_json, read_features
from pipeline.layout.lookups import write_lookup
from pipeline.layout.parts import cut, part_name
from pipeline.layout.root import Root
from pipeline.layout.snapshots import CatalogPart, Snapshot, SourceRecord, snapshot_key, snapshot_to_json
from pipeline.layout.tables import read_table, write_json, write_table
from pipeline.schemas import CATALOG_ROWS, FEATURE_ROWS, Status
from pipeline.stages import exact_groups
from pipeline.storage import StorageConfig, Store

DIMENSION, IMAGES, GONE, AGAIN = 5, 61, [3, 44], 20
Columns = dict[str, Any]


def test_audit_of_many_ranges_equals_one_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {f"val/c/{number}.jpg": data for number, data in enumerate(small_set(4).values())}
    photos = write_files(tmp_path / "photos", small_set(20) | more)
    one = run(photos, root=tmp_path / "one")
    monkeypatch.setattr(exact_groups, "RANGE", 7)
    monkeypatch.setattr(exact_groups, "BUCKET_IMAGES", 10)
    many = run(photos, root=tmp_path / "many")

    assert_equal_tables(one, many)
    (stage,) = [stage for stage in many.published.session["stages"] if stage["stage"] == "hashes"]
    assert stage["attempts"] == stage["parts"] == 5
    assert not [*(tmp_path / "many").glob("exact/*/hashes-*.arrow")]  # 48 bytes an image, read once
    assert len([*(tmp_path / "many").glob("exact/*/forests-*.parquet")]) == 3
    (members,) = (tmp_path / "many").glob("exact/*/members.parquet")
    members.unlink()
    assert_equal_tables(one, run(photos, root=tmp_path / "many"))  # the buckets' forests are enough


@pytest.fixture(params=["disk", "objects"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    """Where the groups of the random sets are made; copies of objects go to a folder of their own."""
    if request.param == "disk":
        return Root(str(tmp_path), StorageConfig())
    use_credentials(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    port = moto_port()
    return Root(new_store(port, "exact").uri, StorageConfig(endpoint_url=f"http://127.0.0.1:{port}"))


def test_random_hashes_against_brute_force(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features in unaligned parts, a row tried again, images gone, not ok or without a hash; on a disk and in S3."""
    store, columns, vectors = root.open(), random_rows(), random_vectors()
    write_artifacts(store, columns, vectors)
    features = list_features(store, "features/f")
    exact_groups.group_exact(exact_groups.ExactSpec(root, 1, features, "annotations/a", "exact/one"))
    monkeypatch.setattr(exact_groups, "RANGE", 9)
    monkeypatch.setattr(exact_groups, "BUCKET_IMAGES", 16)
    write_json(store, f"exact/many/{FEATURES}", pinned_to_json(features))
    for lo, hi in cut(0, IMAGES, 9):
        exact_groups.hash_range(exact_groups.HashSpec(root, 1, "exact/many", 4, lo, hi))
    for number in range(4):
        exact_groups.group_bucket(exact_groups.BucketSpec(root, IMAGES, "exact/many", number))
    exact_groups.merge_exact(exact_groups.MergeSpec(root, 1, "annotations/a", "exact/many"))

    usable = [i for i in range(IMAGES) if columns["status"][i] == "ok" and i not in GONE]
    group = components(columns, usable)
    heads = sorted(set(group.values()))
    assert read_summary(store, "exact/one") == read_summary(store, "exact/many")
    assert (read_summary(store, "exact/many").ok, read_summary(store, "exact/many").representatives) == (
        len(usable),
        len(heads),
    )
    sizes = {head: sum(other == head for other in group.values()) for head in heads}
    for folder in ("exact/one", "exact/many"):
        members = read_table(store, f"{folder}/{MEMBERS}").to_pydict()
        assert dict(zip(members["image_id"], members["representative_id"], strict=True)) == {
            i: head for i, head in group.items() if sizes[head] > 1
        }
        population = Population(store, read_pinned_features(store, folder), folder, DIMENSION)
        assert_reads(population, np.array(heads), masks_of(group, columns), columns["label"], vectors)


def assert_reads(
    population: Population, heads: NDArray[np.int64], masks: dict[int, int], label: list[int], vectors: list[Any]
) -> None:
    """Every way to read representatives gives those of the brute force."""
    rng = np.random.default_rng(1)
    taken = [heads[np.sort(rng.permutation(len(heads))[:count])] for count in (0, 1, 2, 9, len(heads))]
    for lo, hi in [(0, IMAGES), (5, 5), (8, 31), (AGAIN, AGAIN + 1), (58, IMAGES)]:
        expected = heads[(heads >= lo) & (heads < hi)]
        assert population.ids(lo, hi).tolist() == expected.tolist()
        for found in [population.read(lo, hi), *([population.take(expected)] if lo == 8 else [])]:
            assert found.ids.tolist() == expected.tolist()
            assert found.embeddings.shape == (len(expected), DIMENSION)
    for expected, found in [*((ids, population.take(ids)) for ids in taken), (heads, population.read(0, IMAGES))]:
        assert found.ids.tolist() == expected.tolist()
        assert np.array_equal(found.embeddings, vectors[0][expected])
        assert np.array_equal(found.signatures, vectors[1][expected])
        assert found.split_mask.tolist() == [masks[head] for head in expected.tolist()]
        assert found.label.tolist() == [label[head] for head in expected.tolist()]
    whole = read_features(population.store, population.features, 0, IMAGES)
    assert np.array_equal(whole.embeddings, vectors[0])


def test_an_id_that_is_not_extracted_is_named(tmp_path: Path) -> None:
    root = Root(str(tmp_path), StorageConfig())
    write_artifacts(root.open(), random_rows(), random_vectors())
    features = list_features(root.open(), "features/f")
    exact_groups.group_exact(exact_groups.ExactSpec(root, 1, features, "annotations/a", "exact/one"))
    population = Population(root.open(), features.__class__("features/f", features.base[:1], ()), "exact/one", 5)
    with pytest.raises(ArtifactError, match=r"features/f: offsets \[17, 18\) are not extracted"):
        population.take(population.ids(0, 18))


def random_rows() -> Columns:
    rng = np.random.default_rng(5)

    def hashes(kinds: int) -> list[bytes | None]:
        return [None if rng.random() < 0.2 else bytes([rng.integers(kinds)] * 16) for _ in range(IMAGES)]

    status = [Status.OK.value if rng.random() < 0.9 else Status.TRUNCATED.value for _ in range(IMAGES)]
    status[16:19] = [Status.OK.value] * 3
    rows = {"image_id": range(IMAGES), "status": status, "content_hash": hashes(40), "pixel_hash": hashes(70)}
    rows["content_hash"][17] = rows["pixel_hash"][17] = None
    return rows | {name: rng.integers(-1, 3, IMAGES).tolist() for name in ("split", "label")}


def random_vectors() -> list[NDArray[Any]]:
    rng = np.random.default_rng(6)
    return [
        rng.normal(size=(IMAGES, DIMENSION)).astype(np.float16),
        rng.integers(0, 256, (IMAGES, 256)).astype(np.uint8),
    ]


def write_artifacts(store: Store, columns: Columns, vectors: list[NDArray[Any]]) -> None:
    names = FEATURE_ROWS.schema.names
    table = pa.table({name: columns.get(name, [None] * IMAGES) for name in names}, schema=FEATURE_ROWS.schema)
    for lo, hi in ((0, 17), (17, 30), (25, IMAGES)):
        first = vectors[0][lo:hi] - np.float16(lo <= AGAIN < hi) * (np.arange(lo, hi) == AGAIN)[:, None]
        rows = Features(table.slice(lo, hi - lo), first.astype(np.float16), vectors[1][lo:hi])
        commit_features(store, f"features/f/{part_name('rows', lo, hi)}", rows)
    later = Features(table.slice(AGAIN, 1), vectors[0][AGAIN : AGAIN + 1], vectors[1][AGAIN : AGAIN + 1])
    commit_features(store, f"features/f/{part_name('again', AGAIN, AGAIN + 1, 1)}", later)
    write_table(store, "catalog/removed.parquet", pa.table({"image_id": pa.array(GONE, pa.int64())}))
    nothing = {field.name: pa.nulls(IMAGES, field.type) for field in CATALOG_ROWS.schema}
    named = {"image_id": range(IMAGES), "source": [0] * IMAGES, "uri": [f"{at}.jpg" for at in range(IMAGES)]}
    named["size_bytes"] = [1] * IMAGES
    write_table(store, "catalog/rows.parquet", pa.table(nothing | named, schema=CATALOG_ROWS.schema))
    parts = (CatalogPart(0, IMAGES, "catalog/rows.parquet", 0),)
    snapshot = Snapshot(1, IMAGES, (SourceRecord("/nowhere", ""),), parts, "catalog/removed.parquet", len(GONE), "")
    write_json(store, snapshot_key(1), snapshot_to_json(snapshot))
    codes = {name: pa.array(columns[name], pa.int32()) for name in ("split", "label")}
    write_lookup(store, f"annotations/a/{CODES}", pa.table(codes))


def components(columns: Columns, usable: list[int]) -> dict[int, int]:
    """Smallest id of the component of each usable image, pair by pair until nothing changes."""
    group = {i: i for i in usable}
    changed = True
    while changed:
        changed = False
        for i in usable:
            for j in usable:
                same = any(columns[n][i] and columns[n][i] == columns[n][j] for n in ("content_hash", "pixel_hash"))
                if same and group[i] != group[j]:
                    group[i] = group[j] = min(group[i], group[j])
                    changed = True
    return group


def masks_of(group: dict[int, int], columns: Columns) -> dict[int, int]:
    masks: dict[int, int] = {}
    bits = split_bits(np.array(columns["split"], np.int32)).tolist()
    for i, head in group.items():
        masks[head] = masks.get(head, 0) | bits[i]
    return masks
