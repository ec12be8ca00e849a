"""Bugs that were found by reading: each test failed before its fix."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from audited import noise_jpeg, run, small_set, write_files

from pipeline.errors import UsageError


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


def test_a_table_without_columns_is_a_wrong_call(tmp_path: Path) -> None:
    """It was called incomplete (exit 4), with the advice to run the same command again."""
    photos = write_files(tmp_path / "photos", small_set(8))
    table = tmp_path / "labels.csv"
    table.write_text("filename\nx.jpg\n")
    with pytest.raises(UsageError, match="rename its columns"):
        run(photos, root=tmp_path / "audit", rule={"table": str(table)})


def test_as_many_splits_as_fit_into_a_mask(tmp_path: Path) -> None:
    """63 and images without one are right; 64 shared a bit with those, and more were in no split at all."""
    files = {f"{number:02}.jpg": noise_jpeg(number) for number in range(64)}
    files |= {"copy of 62.jpg": files["62.jpg"], "copy of 63.jpg": files["63.jpg"]}
    photos, root = write_files(tmp_path / "photos", files), tmp_path / "audit"
    splits = {f"{number:02}.jpg": f"s{number:02}" for number in range(63)} | {"copy of 62.jpg": "s00"}
    audit = run(photos, root=root, rule={"table": str(write_table(tmp_path / "a.csv", "split", splits))})
    exact = audit.leaks(columns=["uri", "match_uri", "severity"]).to_pylist()
    assert {(row["uri"], row["match_uri"]) for row in exact if row["severity"] == 5} == {
        ("62.jpg", "copy of 62.jpg"),
        ("copy of 62.jpg", "62.jpg"),
    }
    table = write_table(tmp_path / "b.csv", "split", splits | {"63.jpg": "s63"})
    with pytest.raises(UsageError, match="64 splits"):
        run(photos, root=root, rule={"table": str(table)})
