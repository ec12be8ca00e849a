"""The benchmarks run end to end on a few dozen photographs and write the keys that benchmarks/README.md documents."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.edits import EDITS
from benchmarks.intel_findings import Labelled, aligned_correlation, label_accuracy
from benchmarks.planting import Planted, plant_copies
from benchmarks.processes import CommandFailed, product_environment, run_measured
from benchmarks.report import at_least, at_most, owed_table
from pipeline.demo import demo_photos

ROOT = Path(__file__).parents[1]
HEAD = {"benchmark", "date", "command", "machine", "versions", "results", "owed"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 photographs in train_set and valid_set, one of them in both."""
    folder = tmp_path_factory.mktemp("scenes")
    photos = [data for _, data in zip(range(39), demo_photos().values(), strict=False)]
    for number, data in enumerate([*photos, photos[0]]):
        place = folder / ("valid_set" if number >= 28 else "train_set") / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(data)
    return folder


def run(script: str, target: Path, *arguments: str) -> dict[str, Any]:
    """The document that a benchmark writes."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments, "--json", str(target)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found: dict[str, Any] = json.loads(target.read_text())
    assert set(found) >= HEAD
    assert found["machine"]["cores"] > 0
    assert found["machine"]["memory_bytes"] > 0
    assert all(set(row) == {"what", "owed", "measured", "ok"} for row in found["owed"])
    return found


def test_archives_have_every_photo_of_the_loose_files(scenes: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(scenes), "--images", "8", "--turns", "1", "--runner", "local"]
    found = run("archives.py", tmp_path / "archives.json", *arguments)
    assert {kind: one["ok"] for kind, (one,) in found["results"].items()} == dict.fromkeys(
        ("loose", "tar", "tgz", "zip"), 8
    )
    assert [row["what"].split()[0] for row in found["owed"]] == ["tar", "tar", "tgz", "tgz", "zip", "zip"]


@pytest.mark.slow
def test_intel_counts_what_every_stage_costs_and_finds_the_planted_leak(scenes: Path, tmp_path: Path) -> None:
    found = run("intel.py", tmp_path / "intel.json", "--data", str(scenes), "--floor-images", "20")["results"]
    assert len(found["ours"]) == 2
    for one in [*found["ours"], found["ten"]]:
        assert one["wall_seconds"] > 0
        assert one["peak_bytes"]["driver"] > 1e7
        assert {"catalog", "extract", "join copy", "findings"} <= set(one["stages"])
        assert one["cpu_seconds"]["driver"] >= one["stages"]["extract"]["cpu_seconds"]
        assert one["cpu_ms_per_image"]["worker_processes_and_driver"] > 0
    assert found["ours"][0]["images"] == 28
    assert found["ten"]["images"] == 10
    assert found["floor"]["these"]["decode_ms"] > 0
    assert found["floor"]["these"]["model_ms"] > found["floor"]["these"]["decode_ms"] / 10
    assert found["floor"]["these"]["extract_over_floor"] > 0.5
    findings = found["findings"]
    assert findings["exact_leaks"]["there"] == findings["exact_leaks"]["listed"] == 1
    (leak,) = findings["exact_leaks"]["rows"]
    assert (leak["kind"], leak["severity"]) == ("same_bytes", 5)
    assert findings["largest_group"] >= 2
    assert 0 <= findings["five_nn"]["ours"] <= 1


@pytest.mark.slow
def test_copies_scores_spaces_groups_and_small_folders(scenes: Path, tmp_path: Path) -> None:
    arguments = ["--originals", "3", "--distractors", "10", "--sizes", "2", "--seeds", "1", "--data", str(scenes)]
    found = run("copies.py", tmp_path / "copies.json", *arguments)["results"]
    spaces, product = found["copies"]["spaces"], found["copies"]["product"]
    assert set(spaces) == {"embedding", "whitened embedding", "whitened signature", "copy space"}
    assert all(0 <= row["recall_at_p90"] <= 1 and 0 < row["uap"] <= 1 for row in spaces.values())
    assert spaces["copy space"]["uap"] > 0.8
    assert set(product["recall_by_edit"]) == set(EDITS)
    assert product["recall"] == pytest.approx(np.mean([*product["recall_by_edit"].values()]))
    assert product["near_duplicate_pairs"] > 0
    assert 0 <= product["precision"] <= 1
    assert found["copies"]["run"]["images"] == 3 * 10 + 10
    small = found["small_folders"]
    assert small["folders"] == len(EDITS)
    assert set(small["found_by_size"]) == {"2"}
    assert len(small["missed"]) == small["folders"] - round(small["found_by_size"]["2"] * small["folders"])


def test_planting_follows_from_the_seed(scenes: Path, tmp_path: Path) -> None:
    made = [plant_copies(scenes, tmp_path / name, 2, 3, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert isinstance(made[0], Planted)
    assert len(made[0].photo) == 2 * (1 + len(EDITS)) + 3
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc"]
    assert files[0] == files[1]
    assert files[0] != files[2]
    assert all(made[0].photo[name] == name.split("-")[0].removesuffix(".jpg") + ".jpg" for name in files[0])


def test_a_measured_command_is_accounted_for_and_its_failure_shown() -> None:
    burn = "import time\nend = time.process_time() + 0.8\nwhile time.process_time() < end: pass\nprint('done')"
    found = run_measured([sys.executable, "-c", burn])
    assert found.output == "done\n"
    assert 0 < found.roles["main"].cpu_seconds <= found.seconds + 0.5
    assert found.roles["main"].peak_bytes > 1e6
    with pytest.raises(CommandFailed, match="exited with 3"):
        run_measured([sys.executable, "-c", "raise SystemExit(3)"])
    assert str(ROOT) in product_environment()["PYTHONPATH"]


def test_neighbours_vote_for_a_label() -> None:
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 1, 1]]
    labels = np.array(["a", "a", "b", "c", "c", "c"], object)
    queries = np.eye(4, dtype=np.float32)[[0, 1, 1]]
    asked = np.array(["a", "c", "b"], object)
    assert label_accuracy(Labelled(vectors, labels, queries, asked), k=3) == pytest.approx(2 / 3)


def test_alignment_tells_a_shifted_mirrored_photo_from_another() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 40, 40)).astype(np.float32)
    import cv2

    first, other = (cv2.resize(one, (180, 180), interpolation=cv2.INTER_CUBIC) * 40 + 128 for one in noise)
    moved = np.ascontiguousarray(first[4:154, 3:153][:, ::-1])
    assert aligned_correlation(np.ascontiguousarray(first[:150, :150]), moved) > 0.97
    assert aligned_correlation(np.ascontiguousarray(first[:150, :150]), np.ascontiguousarray(other[:150, :150])) < 0.5


def test_what_is_owed_is_compared_in_the_right_direction() -> None:
    rows = [
        at_most("a", 2, 2),
        at_most("b", 2, 2.1),
        at_least("c", 0.9, 0.9),
        at_least("d", 0.9, 0.8),
        at_most("e", 1, None),
    ]
    assert [row.ok for row in rows] == [True, False, True, False, None]
    lines = owed_table(rows).splitlines()
    assert len(lines) == 6
    assert lines[2].rstrip().endswith("NO")
    assert "not measured" in lines[5]
