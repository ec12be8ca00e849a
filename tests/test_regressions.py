"""Bugs that were found by reading: each test failed before its fix."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from audited import noise_jpeg, run, small_set, write_files
from dying import small_parts
from numpy.typing import NDArray

import pipeline
from pipeline.api import status
from pipeline.config import config_from
from pipeline.errors import ArtifactError, UsageError
from pipeline.layout.exact import split_bits
from pipeline.layout.features import Features, commit_features, list_features, read_feature_rows, read_features
from pipeline.layout.inputs import Inputs
from pipeline.layout.neighbours import CANDIDATES, CLUSTERS, DIRECTED_SCHEMA
from pipeline.layout.pairs import pairs_key
from pipeline.layout.parts import Part, cover, part_name
from pipeline.layout.root import Root
from pipeline.layout.tables import read_json, read_table, write_json
from pipeline.layout.tables import write_table as commit_table
from pipeline.models import default_model
from pipeline.plan import Call, run_audit
from pipeline.plan.session import status_key
from pipeline.progress import SilentReporter
from pipeline.runner import LocalRunner, Outcome, Task
from pipeline.schemas import FEATURE_ROWS
from pipeline.stages.pairs import PairsSpec, ThinSpec, collect_pairs, thin
from pipeline.storage import StorageConfig, Store, open_store


def write_table(place: Path, column: str, values: dict[str, str]) -> Path:
    lines = [f"filename,{column}", *(f"{uri},{value}" for uri, value in values.items())]
    place.write_text("\n".join(lines) + "\n")
    return place


def labels_of(photos: Path, root: Path, table: Path) -> Iterable[str]:
    return set(run(photos, root=root, rule={"table": str(table)}).images(columns=["label"])["label"].to_pylist())


def test_a_changed_table_at_the_same_address_is_read_again(tmp_path: Path) -> None:
    """In one process, as in a notebook; the first one's labels were kept under the second one's name."""
    files = small_set(8)
    photos, root = write_files(tmp_path / "photos", files), tmp_path / "audit"
    table = write_table(tmp_path / "labels.csv", "label", dict.fromkeys(files, "first"))
    assert labels_of(photos, root, table) == {"first"}
    write_table(table, "label", dict.fromkeys(files, "second"))
    assert labels_of(photos, root, table) == {"second"}


class Elsewhere(LocalRunner):
    """Carries tasks out in another working folder, as the workers of a cluster do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        here = Path.cwd()
        os.chdir(self.folder)
        try:
            outcomes = list(super().run(tasks))
        finally:
            os.chdir(here)
        yield from outcomes


def test_workers_need_not_see_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They looked for a relative path in their own folder, and the run could never be resumed."""
    files = small_set(8)
    photos = write_files(tmp_path / "photos", files)
    write_table(tmp_path / "labels.csv", "label", dict.fromkeys(files, "mine"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    values = {"sources": (str(photos),), "root": str(tmp_path / "audit"), "rule": {"table": "labels.csv"}}
    call = Call(lambda *_: Elsewhere(tmp_path / "elsewhere"), SilentReporter(), "the same command")

    assert run_audit(config_from(values), call) is not None
    assert set(pipeline.open(tmp_path / "audit").labels()["label"].to_pylist()) == {"mine"}


def test_a_relative_table_is_of_the_working_folder_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that changed its folder read the table of the one before."""
    files = small_set(8)
    photos = write_files(tmp_path / "photos", files)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_table(tmp_path / folder / "labels.csv", "label", dict.fromkeys(files, folder))
        monkeypatch.chdir(tmp_path / folder)
        assert labels_of(photos, tmp_path / "audit", Path("labels.csv")) == {folder}


def test_a_table_without_columns_is_a_wrong_call(tmp_path: Path) -> None:
    """It was called incomplete (exit 4), with the advice to run the same command again."""
    photos = write_files(tmp_path / "photos", small_set(8))
    table = tmp_path / "labels.csv"
    table.write_text("filename\nx.jpg\n")
    with pytest.raises(UsageError, match="rename its columns"):
        run(photos, root=tmp_path / "audit", rule={"table": str(table)})


def test_more_splits_than_a_mask_holds(tmp_path: Path) -> None:
    """The 64th shared a bit with the images that have none; more were in no split at all."""
    files = {f"{number:02}.jpg": noise_jpeg(number) for number in range(64)}
    photos = write_files(tmp_path / "photos", files)
    table = write_table(tmp_path / "splits.csv", "split", {uri: f"s{uri[:2]}" for uri in files})
    with pytest.raises(UsageError, match=r"64 splits .*want at most 63"):
        run(photos, root=tmp_path / "audit", rule={"table": str(table)})
    assert len(np.unique(split_bits(np.arange(-1, 63, dtype=np.int32)))) == 64


def test_the_part_of_an_offset_does_not_depend_on_the_range() -> None:
    """A row that one of two overlapping parts could not read was ok for one stage and not for another."""
    parts = [Part(0, 10, 0, "a"), Part(5, 20, 0, "b"), Part(12, 16, 0, "c"), Part(18, 30, 0, "d")]
    whole = {at: piece.part.key for piece in cover(parts, 0, 30) for at in range(piece.lo, piece.hi)}
    for lo in range(30):
        assert {at: p.part.key for p in cover(parts, lo, 30) for at in range(p.lo, p.hi)} == {
            at: key for at, key in whole.items() if at >= lo
        }


def only_folder(root: Path, kind: str) -> str:
    (found,) = (root / kind).iterdir()
    return f"{kind}/{found.name}"


def inputs_of(root: Path) -> Inputs:
    place = Root(str(root), StorageConfig())
    dimension = default_model().dimension
    return Inputs(place, 1, *(only_folder(root, kind) for kind in ("features", "annotations", "exact")), dimension)


def test_an_attempt_of_another_audit_does_not_reach_this_one(tmp_path: Path) -> None:
    """It made a row ok, or not, behind the exact groups of an audit that was under way."""
    photos, root = write_files(tmp_path / "photos", small_set(8)), tmp_path / "audit"
    run(photos, root=root)
    before = inputs_of(root).population().ids(0, 11)
    copied = Path(shutil.copytree(root, tmp_path / "copied"))  # no process has read anything there yet
    store, folder = open_store(str(copied)), only_folder(copied, "features")
    row = read_features(store, list_features(store, folder), 0, 1)
    columns = {name: row.rows[name] for name in row.rows.column_names} | {"status": ["timeout"]}
    late = pa.table(columns, schema=FEATURE_ROWS.schema)
    commit_features(store, f"{folder}/{part_name('again', 0, 1, 1)}", Features(late, row.embeddings, row.signatures))

    assert len(list_features(store, folder).again) == 1
    assert inputs_of(copied).population().ids(0, 11).tolist() == before.tolist()


def test_a_lost_part_moves_no_row(tmp_path: Path) -> None:
    """Rows behind it took the places, and the labels, of those in it."""
    photos, root = write_files(tmp_path / "photos", small_set(8)), tmp_path / "audit"
    run(photos, root=root, shard_size=4)
    store, folder = open_store(str(root)), only_folder(root, "features")
    store.delete(list_features(store, folder).base[1].key)
    with pytest.raises(ArtifactError, match=r"\[4, 8\) are not extracted"):
        read_feature_rows(store, list_features(store, folder), 0, 11, ["status"])


def test_other_parameters_of_the_space_make_another_one(tmp_path: Path) -> None:
    """They were ignored, without a word, on a root that had a space."""
    photos, root = write_files(tmp_path / "photos", small_set(8)), tmp_path / "audit"
    spaces = [
        run(photos, root=root, space=params).summary()["space"]["folder"]
        for params in ({}, {"embedding_weight": 0.5}, {})
    ]
    assert spaces[0] == spaces[2] != spaces[1]


def test_a_file_that_cannot_be_read_does_not_hold_up_its_shard(tmp_path: Path) -> None:
    """A bad sector made every run of its shard end as incomplete."""
    photos = write_files(tmp_path / "photos", small_set(8))
    (photos / "train" / "a" / "sector.jpg").symlink_to("/proc/self/mem")  # a regular file whose first byte is an error
    audit = run(photos, root=tmp_path / "audit", max_failed_share=0.5)
    failed = [row for row in audit.invalid().to_pylist() if row["status"] == "timeout"]
    assert [row["uri"] for row in failed] == ["train/a/sector.jpg"]
    assert "Check the disk" in failed[0]["message"]


def test_a_stage_that_was_left_with_nothing_to_do_is_done(tmp_path: Path) -> None:
    """A driver killed between the last part and the record of its stage left it unfinished for ever."""
    photos, root = write_files(tmp_path / "photos", small_set(8)), tmp_path / "audit"
    run(photos, root=root)
    store = open_store(str(root))
    left = read_json(store, status_key("verify")) | {"state": "unfinished"}
    write_json(store, status_key("verify"), left)
    run(photos, root=root)
    assert {row["stage"]: row["state"] for row in status(str(root), {})}["verify"] == "done before"


def test_working_artifacts_are_no_tables_of_an_audit(tmp_path: Path) -> None:
    """They were shown as empty ones."""
    photos = write_files(tmp_path / "photos", small_set(8))
    audit = run(photos, root=tmp_path / "audit")
    with pytest.raises(UsageError, match="no table 'edges'"):
        audit.table("edges")


@pytest.mark.parametrize("thinned_from", [2, 64])
def test_a_leak_does_not_hide_behind_nearer_images_of_its_own_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thinned_from: int
) -> None:
    """In a saturated cluster only the two nearest were compared: with two frames of one split, no other split's.

    A small cluster keeps every candidate: of three copies in another split the third was dropped.
    """
    monkeypatch.setattr("pipeline.stages.pairs.THINNED_FROM", thinned_from)
    photos, root = write_files(tmp_path / "photos", small_set(20)), tmp_path / "audit"
    run(photos, root=root)
    inputs, store = inputs_of(root), open_store(str(root))
    ids = inputs.population().ids(0, 23)
    split = inputs.codes_for(ids).split
    # everything is near everything; the own split is always nearer, and smaller ids are nearer
    rows = [
        (query, match, 0.9 - 0.3 * (a != b) - 0.001 * match, b)
        for query, a in zip(ids.tolist(), split.tolist(), strict=True)
        for match, b in zip(ids.tolist(), split.tolist(), strict=True)
        if query != match
    ]
    rows.sort(key=lambda row: (row[0], row[3], -row[2]))
    candidates = pa.table([*zip(*rows, strict=True)], schema=DIRECTED_SCHEMA)
    found = pairs_of(inputs, store, "all", candidates, star(ids))

    pairs = {(row["image_id"], row["match_id"]) for row in found.to_pylist()}
    for other in np.unique(split):
        nearest = ids[split == other][:2].tolist()
        for query in ids[split != other].tolist():
            assert {(min(query, match), max(query, match)) for match in nearest} <= pairs
    if thinned_from > len(ids):
        assert pairs == {(min(a, b), max(a, b)) for a, b, *_ in rows}
    else:
        assert len(pairs) < 8 * len(ids)


def test_clusters_give_the_same_pairs_however_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, some together, all together: every member beside one medoid of its own cluster."""
    photos, root = write_files(tmp_path / "photos", small_set(20)), tmp_path / "audit"
    run(photos, root=root)
    inputs, store = inputs_of(root), open_store(str(root))
    ids = inputs.population().ids(0, 23)
    clusters = [ids[0::4], ids[1::4], ids[2::4], ids[3::4][:2]]
    stars = pa.concat_tables([star(members) for members in clusters])
    found = []
    for most in (1, 7, 10, 65_536):
        monkeypatch.setattr("pipeline.stages.pairs.BATCH_MEMBERS", most)
        found.append(pairs_of(inputs, store, str(most), DIRECTED_SCHEMA.empty_table(), stars))

    assert all(table.equals(found[0]) for table in found[1:])
    for members in clusters:
        pairs = [
            {a, b} for a, b in zip(*(found[0][name].to_pylist() for name in ("image_id", "match_id")), strict=True)
        ]
        own = [pair for pair in pairs if pair & {*members.tolist()}]
        assert len(own) == len(members) - 1
        assert set.union(*own) == {*members.tolist()}
        assert len(set.intersection(*own)) >= 1


def star(ids: NDArray[np.int64]) -> pa.Table:
    return pa.table({"image_id": ids[1:], "group_id": np.full(len(ids) - 1, ids[0])})


def pairs_of(inputs: Inputs, store: Store, name: str, candidates: pa.Table, clusters: pa.Table) -> pa.Table:
    """What the pairs stages make of candidates of 23 images (nearest first) in two ranges, and of clusters."""
    ranges, folder = ((0, 9), (9, 23)), f"neighbours/{name}"
    query = candidates["image_id"].to_numpy()
    for lo, hi in ranges:
        rows = candidates.filter(pa.array((query >= lo) & (query < hi)))
        commit_table(store, f"{folder}/{part_name(CANDIDATES, lo, hi)}", rows)
    commit_table(store, f"{folder}/{CLUSTERS}", clusters)
    space = only_folder(Path(inputs.root.uri), "spaces")
    for number in range(2):
        thin(ThinSpec(inputs, space, folder, f"work/{name}", ranges, number))
    for number in range(2):
        collect_pairs(PairsSpec(inputs, space, f"work/{name}", -1.0, f"pairs/{name}", ranges, number))
    return pa.concat_tables([read_table(store, pairs_key(f"pairs/{name}", lo, hi)) for lo, hi in ranges])


def test_counts_add_up_over_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The summary of tables in parts of 12 images is that of the whole tables; one image leaks into two splits."""
    files = small_set(24)
    files |= {"val/a/copy.jpg": files["train/a/a00.jpg"], "test/b/half.jpg": files["val/b/half.jpg"]}
    small_parts(monkeypatch.setattr)
    audit = run(write_files(tmp_path / "photos", files), root=tmp_path / "audit")
    facts, groups = audit.summary(), audit.groups()
    serious = [row for row in audit.leaks().to_pylist() if row["severity"] >= 3]
    ids = {split: {row["image_id"] for row in serious if row["split"] == split} for split in ("train", "val", "test")}

    assert len([*tmp_path.glob("audit/audits/*/tables/leaks/*")]) == 3
    assert facts["leaks"]["images"] == {split: len(of) for split, of in sorted(ids.items())}
    assert sum(facts["leaks"]["images"].values()) < len(serious)
    pairs = Counter((row["split"], row["match_split"]) for row in serious)
    assert {(item["split"], item["other"]): item["leaking"] for item in facts["leaks"]["splits"]} == pairs
    assert facts["duplicates"]["groups"] == len(set(groups["group_id"].to_pylist())) >= 2
    assert facts["duplicates"]["grouped_images"] == groups.num_rows
    assert facts["duplicates"]["largest_group"] == max(groups["group_size"].to_pylist())
    assert facts["duplicates"]["pairs"] == Counter(audit.duplicates()["kind"].to_pylist())
