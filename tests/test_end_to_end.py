"""The planted set, audited whole: every planted fact stands in its table, and nothing else does."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from audited import SEED, Audited, by_uri, planted_audit, rows, run, write_files
from planted import DISK_NAMES

from pipeline.audit import FINDINGS, leak_lines, summary_lines
from pipeline.demo import SUBJECTS, demo_photos
from pipeline.layout.audits import table_keys
from pipeline.schemas import CHECKS, GROUPING_KINDS, TABLES
from pipeline.sources.labels import RuleParams, assign

GROUPING = {kind.value for kind in GROUPING_KINDS}
SEEDS = [SEED, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (3, 11, 19))]


@pytest.fixture(scope="module", params=SEEDS)
def found(request: pytest.FixtureRequest) -> Audited:
    return planted_audit(request.param)


def pair_of(row: dict[str, Any]) -> frozenset[str]:
    return frozenset((row["uri"], row["match_uri"]))


def test_every_file_is_an_image_of_the_snapshot(found: Audited) -> None:
    """The images table has each file once, sorted by the bytes of its name; hostile names are spelled exactly."""
    files = sorted(os.fsencode(path.relative_to(found.photos)) for path in found.photos.rglob("*.*"))
    plain = [name.decode() for name in files if name.rpartition(b"/")[2] not in DISK_NAMES.values()]
    listed = [row["uri"] for row in rows(found.audit, "images")]
    spelled = {f"train/{label}/{name}" for label in SUBJECTS for name in DISK_NAMES}

    assert [row["image_id"] for row in rows(found.audit, "images")] == [*range(len(files))]
    assert len(set(listed)) == len(files) == len(plain) + len(DISK_NAMES)
    assert [uri for uri in listed if uri not in spelled] == plain
    assert {uri for pair in found.truth.hostile for uri in pair} <= set(listed)


def test_splits_and_labels_follow_the_folders(found: Audited) -> None:
    """Split and label of every row of the images table are those that its path names."""
    listed = rows(found.audit, "images")
    splits, labels = assign([row["uri"] for row in listed], RuleParams())

    assert [row["split"] for row in listed] == splits
    assert [row["label"] for row in listed] == labels


def test_planted_pairs_have_their_kind(found: Audited) -> None:
    """Each planted pair is in the duplicates table with its kind; no other pair is a duplicate or near-duplicate."""
    listed = {pair_of(row): row for row in rows(found.audit, "duplicates")}
    planted = found.truth.kinds()

    assert {pair: listed[pair]["kind"] if pair in listed else None for pair in planted} == planted
    groups = found.truth.groups()
    strangers = [
        sorted(pair)
        for pair, row in listed.items()
        if row["kind"] in GROUPING and not any(pair <= group for group in groups)
    ]
    assert strangers == []
    assert all(row["image_id"] < row["match_id"] for row in listed.values())


def test_exact_pairs_are_identical(found: Audited) -> None:
    """Exact duplicates have similarity 1 in every space; only the most alike of the others are taken without a look."""
    for row in rows(found.audit, "duplicates"):
        similarities = [row["similarity"], row["semantic_similarity"], row["signature_similarity"]]
        if row["kind"] in ("same_bytes", "same_pixels"):
            assert similarities == [1, 1, 1], row
        else:
            assert max(similarities) <= 1, row
            seen_alike = row["kind"] == "near_identical" and min(similarities) >= 0.9
            assert row["is_verified"] or seen_alike, row


def test_groups_are_the_planted_clusters(found: Audited) -> None:
    """Every planted cluster is one group with all of its members and nobody else's."""
    groups: dict[int, set[str]] = {}
    for row in rows(found.audit, "groups"):
        groups.setdefault(row["group_id"], set()).add(row["uri"])
    listed = rows(found.audit, "groups")
    keepers = Counter(row["group_id"] for row in listed if row["is_keeper"])

    assert {frozenset(group) for group in groups.values()} == set(found.truth.groups())
    assert keepers == Counter(dict.fromkeys(groups, 1))
    assert all(row["group_size"] == len(groups[row["group_id"]]) for row in listed)
    assert all(
        row["group_id"] == min(r["image_id"] for r in listed if r["group_id"] == row["group_id"]) for row in listed
    )


def test_leaks_list_both_sides_with_severity(found: Audited) -> None:
    """Each planted leak has a row for either side, its severity by kind and labels; nothing else leaks."""
    leaks = [row for row in rows(found.audit, "leaks") if row["severity"] >= 3]
    for pair, differ in found.truth.leaks.items():
        severity = leak_severity(pair[1], differ)
        listed = [(row["uri"], row["severity"], row["is_label_conflict"]) for row in leaks if row["uri"] in pair]
        assert sorted(listed) == sorted((uri, severity, differ) for uri in pair)
        assert all(pair_of(row) == set(pair) for row in leaks if row["uri"] in pair)
    planted = {uri for pair in found.truth.leaks for uri in pair} | {*found.truth.web, *found.truth.web_edits}

    assert {row["uri"] for row in leaks} == planted


def leak_severity(copy: str, differ: bool) -> int:
    if "_again" in copy:
        return 5
    by_kind = 4 if copy.endswith(("_half.jpg", "_jpeg.jpg")) else 3
    return by_kind + differ


def test_web_of_copies_leaks_from_every_member_into_every_split(found: Audited) -> None:
    """One photograph in three splits under two labels, with an edited copy in each: six images, two rows each."""
    truth = found.truth
    web = {*truth.web, *truth.web_edits}
    leaks = [row for row in rows(found.audit, "leaks") if row["uri"] in web]
    sides = {(row["uri"], row["match_split"]): row for row in leaks}

    assert len(leaks) == len(sides) == 12
    assert {split for _, split in sides} == {"train", "val", "test"}
    for (uri, split), row in sides.items():
        assert row["split"] != split
        assert row["match_uri"] in web
        assert row["is_label_conflict"] == (row["label"] != row["match_label"])
        assert row["group_id"] is not None
        if uri in truth.web:  # its best match is the exact copy there, not an edit
            assert (row["kind"], row["severity"], row["match_uri"] in truth.web) == ("same_bytes", 5, True)
        else:
            least = 3 if uri.endswith("_crop.jpg") else 4
            assert least <= row["severity"] <= 5, row
            assert row["severity"] == (least if row["kind"] != "near_identical" else 4) + row["is_label_conflict"]


def test_one_photograph_under_two_labels(found: Audited) -> None:
    """The conflicts are those planted: leaks under another label, and the web."""
    truth = found.truth
    wanted = {uri for pair, differ in truth.leaks.items() if differ for uri in pair} | {*truth.web, *truth.web_edits}
    conflicts = by_uri(found.audit, "label_conflicts")

    assert set(conflicts) == wanted
    exact = {uri for uri in wanted if uri in truth.web or any(uri in p and "_again" in p[1] for p in truth.leaks)}
    assert {uri for uri, row in conflicts.items() if row["is_certain"]} == exact
    assert all(row["conflict_label"] != row["label"] for row in conflicts.values())


def test_outliers_are_flagged(found: Audited) -> None:
    """Planted outliers are flagged and score above all else; of the rest only spoiled pictures are flagged."""
    listed = by_uri(found.audit, "outliers")
    truth = found.truth
    worst = sorted(listed, key=lambda uri: -listed[uri]["score"])[: len(truth.outliers)]
    flagged = {uri for uri, row in listed.items() if row["is_outlier"]}
    spoiled = {uri for uris in truth.quality.values() for uri in uris}
    spoiled |= {copy for pairs in truth.edits.values() for _, copy in pairs}

    assert set(worst) == set(truth.outliers)
    assert set(truth.outliers) <= flagged <= {*truth.outliers, *spoiled}
    assert all(row["is_exact"] for row in listed.values())


def test_wrong_labels_are_flagged(found: Audited, request: pytest.FixtureRequest) -> None:
    """Planted wrong labels get the right suggestion and are issues; all other issues are in a wrong folder.

    The rule puts precision first: of other seeds' four wrong labels, among some 27 images per label, one may be missed.
    """
    listed = by_uri(found.audit, "labels")
    truth = found.truth
    issues = {uri for uri, row in listed.items() if row["is_label_issue"]}
    misplaced = {copy for (_, copy), differ in truth.leaks.items() if differ}
    misplaced |= {*truth.web, *truth.web_edits, *truth.outliers}

    assert {uri: listed[uri]["suggested_label"] for uri in truth.wrong_labels} == truth.wrong_labels
    missed = set(truth.wrong_labels) - issues
    assert len(missed) <= (0 if request.node.callspec.params["found"] == SEED else 1), missed
    assert issues <= {*truth.wrong_labels, *misplaced}
    assert all(listed[uri]["score"] < 20 for uri in truth.wrong_labels)


def test_invalid_files_have_the_right_status(found: Audited) -> None:
    """The invalid table is the planted broken files, each with a right status and a message, and in no other table."""
    listed = by_uri(found.audit, "invalid")

    assert set(listed) == set(found.truth.invalid)
    assert all(row["status"] in found.truth.invalid[uri] for uri, row in listed.items())
    assert all(row["message"] for row in listed.values())
    for name in ("duplicates", "groups", "leaks", "outliers", "labels", "label_conflicts", "quality"):
        table = found.audit.table(name)
        for column in {"uri", "match_uri", "nearest_uri"} & set(table.column_names):
            assert not set(listed) & set(table[column].to_pylist()), (name, column)


def test_quality_issues_are_flagged(found: Audited) -> None:
    """Each planted fault is flagged by its check; plain photographs are neither dark, bright nor blurry."""
    listed = by_uri(found.audit, "quality")
    truth = found.truth
    for check, uris in truth.quality.items():
        assert all(listed[uri][f"is_{check}_issue"] for uri in uris), check
    for check in CHECKS:
        assert all((row[f"{check}_score"] >= 0.5) == row[f"is_{check}_issue"] for row in listed.values())
    plain = [*truth.photos, *truth.wrong_labels, *truth.outliers, *truth.animations]
    for check in ("dark", "bright", "blurry", "odd_aspect"):
        assert [uri for uri in plain if listed[uri][f"is_{check}_issue"]] == [], check


def test_schemas_at_rest(found: Audited) -> None:
    """Every part of every table has the schema of `pipeline.schemas`, types, order and nullability, and its order."""
    store = found.audit.root.open()
    for name in FINDINGS:
        keys = table_keys(store, found.audit.published, name)
        assert keys, name
        for key in keys:
            assert pq.read_schema(found.root / key).equals(TABLES[name].schema), key
        table = found.audit.table(name)
        keys_of_rows = [tuple(row[column] for column in TABLES[name].sort_by) for row in table.to_pylist()]
        if name == "leaks":
            keys_of_rows = [(row[0], row[1] or "") for row in keys_of_rows]
        assert keys_of_rows == sorted(set(keys_of_rows)), name
        for column in TABLES[name].columns:
            assert column.nullable or not table[column.name].null_count, (name, column.name)


def test_tables_agree_with_each_other(found: Audited) -> None:
    """Counts: images are ok or invalid; ok images are those of outliers and quality; groups follow from pairs."""
    tables = {name: rows(found.audit, name) for name in FINDINGS}
    images = {row["image_id"]: row for row in tables["images"]}
    ok = {image_id for image_id, row in images.items() if row["status"] == "ok"}
    labelled = {image_id for image_id in ok if images[image_id]["label"] is not None}

    assert {row["image_id"] for row in tables["outliers"]} == ok
    assert {row["image_id"] for row in tables["quality"]} == ok
    assert {row["image_id"] for row in tables["labels"]} == labelled
    assert {row["image_id"] for row in tables["invalid"]} == set(images) - ok
    grouped = {row["image_id"]: row["group_id"] for row in tables["groups"]}
    assert grouped == {i: row["group_id"] for i, row in images.items() if row["group_id"] in grouped and i in grouped}
    assert all(row["group_id"] in (None, i) for i, row in images.items() if i not in grouped)
    joined = [row for row in tables["duplicates"] if row["kind"] in GROUPING]
    assert {row[side] for row in joined for side in ("image_id", "match_id")} == set(grouped)
    assert all(grouped[row["image_id"]] == grouped[row["match_id"]] == row["group_id"] for row in joined)
    assert all(row["group_id"] is None for row in tables["duplicates"] if row["kind"] not in GROUPING)
    for row in tables["leaks"]:
        same = grouped.get(row["image_id"], -1) == grouped.get(row["match_id"], -2)
        assert same == (row["severity"] >= 3) == (row["group_id"] is not None), row
        assert images[row["image_id"]]["split"] == row["split"] != row["match_split"]
        assert images[row["match_id"]]["split"] == row["match_split"]


def test_summary_counts_the_tables(found: Audited) -> None:
    """The numbers of the summary are counts over the tables."""
    facts = found.audit.summary()
    tables = {name: rows(found.audit, name) for name in FINDINGS}
    statuses = Counter(row["status"] for row in tables["images"])

    assert facts["images"]["live"] == len(tables["images"])
    assert facts["images"]["invalid"] == len(tables["invalid"])
    assert {name: count for name, count in facts["images"]["statuses"].items() if count} == dict(statuses)
    assert facts["images"]["splits"] == dict(Counter(row["split"] for row in tables["images"]))
    assert facts["duplicates"]["pairs"] == dict(Counter(row["kind"] for row in tables["duplicates"]))
    assert facts["duplicates"]["groups"] == len({row["group_id"] for row in tables["groups"]})
    assert facts["duplicates"]["grouped_images"] == len(tables["groups"])
    assert facts["outliers"]["flagged"] == sum(row["is_outlier"] for row in tables["outliers"])
    assert facts["labels"]["issues"] == sum(row["is_label_issue"] for row in tables["labels"])
    assert facts["labels"]["conflicts"] == len(tables["label_conflicts"])
    assert facts["quality"] == {check: sum(row[f"is_{check}_issue"] for row in tables["quality"]) for check in CHECKS}
    leaking = Counter((row["split"], row["match_split"]) for row in tables["leaks"] if row["severity"] >= 3)
    assert {(item["split"], item["other"]): item["leaking"] for item in facts["leaks"]["splits"]} == dict(leaking)


def test_headline_is_the_share_of_ok_images_that_leak(found: Audited) -> None:
    """Per split, 0 included: images with a row of severity 3 or more in any other split, of those that are ok."""
    ok = Counter(row["split"] for row in rows(found.audit, "images") if row["status"] == "ok")
    leaking = {split: set[int]() for split in ok}
    for row in rows(found.audit, "leaks"):
        if row["severity"] >= 3:
            leaking[row["split"]].add(row["image_id"])
    headline = {item["split"]: item for item in found.audit.summary()["leaks"]["headline"]}

    assert ok["train"] < Counter(row["split"] for row in rows(found.audit, "images"))["train"]  # the invalid ones
    assert {split: item["images"] for split, item in headline.items()} == dict(ok)
    for split, images in leaking.items():
        assert headline[split]["leaking"] == len(images) > 0
        assert headline[split]["share"] == len(images) / ok[split]
    assert all(
        item["share"] == item["leaking"] / ok[item["split"]] for item in found.audit.summary()["leaks"]["splits"]
    )
    lines = [line for line in summary_lines(found.audit.summary()) if line.startswith("leaks ")]
    assert [re.sub(r" \(.*", "", line) for line in lines] == [
        f"leaks       {len(leaking[split])} of {ok[split]} {split} images" for split in ("test", "val")
    ]


def test_splits_without_a_leak_are_in_the_headline(tmp_path: Path) -> None:
    """An evaluation split whose images occur nowhere else is said to have 0; without two splits it is said why."""
    photos = dict(sorted(demo_photos().items())[:12])
    named = [f"{('train', 'val', 'dev')[place % 3]}/{name}.jpg" for place, name in enumerate(photos)]
    split = run(write_files(tmp_path / "split", dict(zip(named, photos.values(), strict=True))), root=tmp_path / "a")
    alone = run(tmp_path / "split/val", root=tmp_path / "b", rule={"split": "val"})
    flat = run(
        write_files(tmp_path / "flat", {f"{name}.jpg": data for name, data in photos.items()}), root=tmp_path / "c"
    )

    assert leak_lines(split.summary()["leaks"]) == [
        f"0 of 4 {name} images (0.00%) have a duplicate or near-duplicate in another split" for name in ("dev", "val")
    ]
    assert leak_lines(alone.summary()["leaks"]) == ["none can be found: every image that has a split is in val"]
    assert leak_lines(flat.summary()["leaks"]) == ["none can be found: no image has a split"]
