"""One audit of the Intel scenes, side by side with fastdup, in one run and on one machine.

`python benchmarks/intel.py --data DIR --peer fastdup --json FILE`. DIR holds train_set and valid_set. Everything that
is timed runs in a process of its own with a cold root: floor, ours, fastdup, ours again. Then train and valid together
for leaks and 5-NN label accuracy, and ten images from command to tables. About five minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import fastdup_peer
from benchmarks.command import add_shared_options, carry_out
from benchmarks.floor import photos_in
from benchmarks.intel_findings import check_exact_leaks, check_listed_pairs, label_accuracy, our_vectors, peer_vectors
from benchmarks.processes import run_measured
from benchmarks.product import account, audit_once, features_of, opened
from benchmarks.report import Owed, at_least, at_most, say

FLOOR = Path(__file__).with_name("floor.py")
TRAIN, VALID = "train_set", "valid_set"
FLOOR_IMAGES = 2048
MEGABYTE = 1e6


def copy_photos(source: Path, target: Path, limit: int | None) -> int:
    """The photos of a folder under another, linked where the disk allows; at most `limit`, spread evenly."""
    paths = photos_in(source)
    if not paths:
        raise SystemExit(f"{source}: no photos there; --data wants a folder with {TRAIN} and {VALID}")
    if limit is not None:
        paths = paths[:: max(1, len(paths) // limit)][:limit]
    for path in paths:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copyfile(path, place)
    return len(paths)


def floor_of(folder: Path, count: int, target: Path) -> dict[str, Any]:
    """`floor.py` over a folder, in its own process."""
    say(f"floor: {folder.name}")
    run_measured([sys.executable, str(FLOOR), "--data", str(folder), "--count", str(count), "--json", str(target)])
    found: dict[str, Any] = json.loads(target.read_text())
    return found


def our_run(name: str, root: Path, *arguments: str) -> dict[str, Any]:
    """One run of the product with a cold root."""
    say(f"image-audit: {name}")
    measured, driver = audit_once(root, *arguments)
    found = account(measured, driver, opened(root))
    each = found["cpu_ms_per_image"]["worker_processes_and_driver"]
    say(f"  {found['wall_seconds']:.1f} s, {each:.2f} ms CPU per image")
    return found


def peer_run(python: Path, folder: Path, work: Path) -> dict[str, Any]:
    """One run of fastdup with its defaults."""
    say(f"fastdup: {folder.name}")
    found = fastdup_peer.run_fastdup(python, folder, work)
    images = len(photos_in(folder))
    return {**found, "images": images, "cpu_ms_per_image": 1e3 * found["cpu_seconds"] / images}


def time_runs(options: argparse.Namespace, both: Path, work: Path) -> dict[str, Any]:
    """Floor, ours, fastdup, ours again."""
    train = both / TRAIN
    found: dict[str, Any] = {"floor": {"these": floor_of(train, options.floor_images, work / "floor.json")}}
    if options.photos_500:
        found["floor"]["500x375"] = floor_of(options.photos_500, options.floor_images, work / "floor500.json")
    runs = [our_run("train, first run", work / "train1", str(train))]
    if options.peer:
        found["fastdup"] = peer_run(options.fastdup_python, train, work / "fastdup-train")
    runs.append(our_run("train, second run", work / "train2", str(train)))
    found["ours"] = runs
    found["ten"] = ten_images(train, work)
    return found


def ten_images(train: Path, work: Path) -> dict[str, Any]:
    """Ten photos from command to tables, the better of two."""
    copy_photos(train, work / "ten", 10)
    runs = [our_run("ten images", work / f"ten-root{number}", str(work / "ten")) for number in range(2)]
    return min(runs, key=lambda run: run["wall_seconds"])


def findings(options: argparse.Namespace, both: Path, work: Path) -> dict[str, Any]:
    """Train and valid in one audit: leaks, fastdup's pairs, 5-NN label accuracy, groups."""
    run = our_run("train and valid", work / "both", str(both))
    audit = opened(work / "both")
    found: dict[str, Any] = {
        "run": run,
        "largest_group": run["facts"]["duplicates"]["largest_group"],
        "exact_leaks": check_exact_leaks(audit, both),
        "five_nn": {"ours": label_accuracy(our_vectors(features_of(audit), VALID))},
    }
    lists = options.fastdup_lists
    if options.peer:
        peer_run(options.fastdup_python, both / VALID, work / "fastdup-valid")
        places = [work / "fastdup-train", work / "fastdup-valid"]
        found["five_nn"]["fastdup"] = label_accuracy(peer_vectors(places))
        lists = lists or work
    if lists:
        found["listed_pairs"] = check_listed_pairs(audit, lists, both, work / "unlisted.png")
    return found


def owed(found: dict[str, Any]) -> list[Owed]:
    """What the project owes against what this run measured."""
    return [*_owed_times(found), *_owed_findings(found["findings"])]


def _owed_times(found: dict[str, Any]) -> list[Owed]:
    best = min(found["ours"], key=lambda run: run["wall_seconds"])
    wall = f"wall clock over fastdup's, {best['images']:,} photos, whole run"
    peer = found.get("fastdup")
    floor = found["floor"]
    photos = floor.get("500x375")
    cpu = min(run["cpu_ms_per_image"]["worker_processes_and_driver"] for run in found["ours"])
    return [
        at_most(wall, 0.4, best["wall_seconds"] / peer["wall_seconds"] if peer else None),
        at_most("CPU ms per image, driver and workers", 2.2, cpu),
        at_most("CPU per image over fastdup's", 2.2 / 7.9, cpu / peer["cpu_ms_per_image"] if peer else None),
        at_most("extraction over decode + model, these photos", 1.35, floor["these"]["extract_over_floor"]),
        at_most("extraction over decode + model, 500x375", 1.7, photos["extract_over_floor"] if photos else None),
        at_most("ten images, command to tables, seconds", 8, found["ten"]["wall_seconds"]),
        at_most("memory of the driver, MB", 500, best["peak_bytes"]["driver"] / MEGABYTE),
        at_most("memory of a worker, MB", 800, best["peak_bytes"]["worker"] / MEGABYTE),
    ]


def _owed_findings(found: dict[str, Any]) -> list[Owed]:
    accuracy = found["five_nn"]
    leaks, listed = found["exact_leaks"], found.get("listed_pairs")
    return [
        at_least("5-NN label accuracy, train to valid", accuracy.get("fastdup", 0.909), accuracy["ours"]),
        at_most("largest group", 50, found["largest_group"], "{:.0f}"),
        at_most(f"exact leaks missing of {leaks['there']}", 0, leaks["there"] - leaks["listed"], "{:.0f}"),
        at_most(
            f"same photos unlisted of fastdup's {listed['pairs'] if listed else 0} pairs >= 0.98",
            0,
            len(listed["unlisted_same_photo"]) if listed else None,
            "{:.0f}",
        ),
    ]


def details(found: dict[str, Any]) -> str:
    """The numbers behind the owed table."""
    lines = [f"{'floor, CPU ms per image':<26}{'decode':>9}{'model':>9}{'extract':>9}{'ratio':>9}"]
    for name, floor in found["floor"].items():
        cells = [floor[key] for key in ("decode_ms", "model_ms", "extract_ms", "extract_over_floor")]
        lines.append(f"  {name:<24}" + "".join(f"{cell:>9.3f}" for cell in cells))
    for number, run in enumerate(found["ours"], 1):
        seconds = {name: round(value, 2) for name, value in run["seconds"].items()}
        lines.append(f"ours, run {number}: {run['wall_seconds']:.1f} s of wall clock, of it {seconds}")
        cpu, each = run["cpu_seconds"], run["cpu_ms_per_image"]
        lines.append(
            f"  CPU ms per image: tasks and driver {each['tasks_and_driver']:.3f}, whole processes "
            f"{each['worker_processes_and_driver']:.3f} (driver {cpu['driver']:.1f} s, tasks {cpu['tasks']:.1f} s)"
        )
    stages = found["ours"][-1]["stages"]
    lines += [f"  {name:<24}{s['seconds']:>9.2f} s{s['cpu_ms_per_image']:>9.3f} ms CPU" for name, s in stages.items()]
    if peer := found.get("fastdup"):
        lines.append(
            f"fastdup {peer['version']}: {peer['wall_seconds']:.1f} s of wall clock ({peer['run_seconds']:.1f} s in "
            f"fastdup.run), {peer['cpu_ms_per_image']:.2f} ms CPU per image"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with {TRAIN} and {VALID}")
    parser.add_argument("--fastdup-lists", type=Path, help="folder with stored similarity.csv files of fastdup")
    parser.add_argument("--photos-500", type=Path, help="photos of about 500x375, for extraction over its floor")
    parser.add_argument("--floor-images", type=int, default=FLOOR_IMAGES, help=f"default {FLOOR_IMAGES}")
    parser.add_argument("--limit", type=int, help="at most so many photos of each set (to try the benchmark out)")
    add_shared_options(parser)
    return parser.parse_args()


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The timed runs, then the findings on both sets together."""
    both = work / "photos"
    images = {name: copy_photos(options.data / name, both / name, options.limit) for name in (TRAIN, VALID)}
    found = {"images": images, **time_runs(options, both, work)}
    return {**found, "findings": findings(options, both, work)}


if __name__ == "__main__":
    carry_out("intel", parse(), measure, details, owed)
