"""Everything after extraction, at any scale, on synthetic features: time, memory, disk, recall, and what was planted.

`python benchmarks/scale.py --images 1000000 --root DIR --json FILE`. The features are made first, which is not counted;
called again with the same root it goes on where it stopped, and the seconds of all its sessions add up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import product_environment
from benchmarks.report import Owed, at_least, at_most, begin, finish, say
from benchmarks.scale_sessions import Sessions, Watch
from benchmarks.scale_truth import check
from benchmarks.synthetic import World
from benchmarks.synthetic_root import Place, write_synthetic
from pipeline.audit import Audit
from pipeline.config import AuditConfig, config_from
from pipeline.layout.audits import Published
from pipeline.layout.features import list_features
from pipeline.layout.models import store_model
from pipeline.layout.parts import shard_size
from pipeline.layout.root import Root, claim
from pipeline.layout.served import Recipe, write_recipe
from pipeline.layout.snapshots import read_snapshot
from pipeline.plan import annotate_snapshot, choose_space, group_exact, publish, search, summary_of
from pipeline.plan.preparing import features_folder, measure_params
from pipeline.plan.session import Session
from pipeline.progress import LineReporter
from pipeline.runner import LocalRunner, Runner
from pipeline.storage import canonical_uri
from pipeline.threads import threads_given_back

LIMITS = {  # (seconds, bytes per task, bytes of the driver, bytes on disk) up to so many images
    1_000_000: (420.0, 3e9, 1.5e9, 50e9),
    11_582_724: (6_000.0, 4e9, 1.5e9, 50e9),
}


GROWTH, FRAMES_COST = 16.0, 1.5
"""CPU seconds of 11,582,724 images over those of a million; of a million with 100,000 frames over those without."""


def main() -> int:
    """Makes the features, runs the audit, checks it, writes the document."""
    options = _options()
    document = begin("scale")
    config = _config(options)
    root = Root(canonical_uri(config.root, config.storage), config.storage)
    claim(root)
    session = Session(config, root, LocalRunner(), LineReporter(say), "the same command")
    world = World(options.images, options.seed)
    features = _made(session, world, options)
    sessions = Sessions(Path(config.root) / "scale/sessions.json")
    published = _run(session, features, sessions, options)
    audit = Audit(root, published)
    document |= sessions.account(options.images)
    document |= {
        "sessions": sessions.sessions,
        "threshold": published.facts["threshold"],
        "recall": published.facts["recall"],
        "tables": {name: published.facts[name] for name in ("duplicates", "leaks", "outliers", "labels")},
        **check(audit, world, features),
    }
    document["results"] = {"facts": published.facts}
    finish(document, [*_owed(document), *_growth(document, options.against)], options.json)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--root", type=Path, required=True, help="kept; a later call goes on there")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: the cores)")
    parser.add_argument("--runner", choices=("ray", "local"), default="ray")
    parser.add_argument("--frames", type=int, default=0, help="plant so many near-identical frames, as one set")
    parser.add_argument("--partition-rows", type=int, help="neighbours.partition_rows of the configuration")
    parser.add_argument("--exact-limit", type=int, help="neighbours.exact_limit of the configuration")
    parser.add_argument("--shard-size", type=int, help="images per part of the features (default: as extraction does)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--against", type=Path, help="what an earlier call wrote: compare the CPU seconds with it")
    options = parser.parse_args()
    if options.images < 1_000 or options.frames > options.images // 5:
        parser.error(f"{options.images} images, {options.frames} frames: want 1,000 images or more, a fifth frames")
    return options


def _config(options: argparse.Namespace) -> AuditConfig:
    named = {"partition_rows": options.partition_rows, "exact_limit": options.exact_limit}
    root = str(options.root.resolve())
    return config_from(
        {
            "sources": [f"{root}-images"],
            "root": root,
            "verify": {"pixels": False},
            "neighbours": {name: value for name, value in named.items() if value is not None},
        }
    )


def _made(session: Session, world: World, options: argparse.Namespace) -> str:
    """The features folder, with everything in it."""
    model = store_model(session.root, "", {})
    folder = features_folder(session, model)
    shard = options.shard_size or shard_size(world.images)
    place = Place(session.root, session.config.sources[0], folder, shard)
    write_synthetic(world, options.frames, place, max(1, min(options.workers, os.cpu_count() or 1)))
    return folder


def _run(session: Session, features: str, sessions: Sessions, options: argparse.Namespace) -> Published:
    """What an audit does once everything is extracted, watched."""
    with Watch(session, sessions), threads_given_back():
        session.runner = _runner(options)
        try:
            model = store_model(session.root, "", {})
            snapshot = read_snapshot(session.store, 1)
            annotations = annotate_snapshot(session, snapshot)
            stored = list_features(session.store, features)
            inputs = group_exact(session, snapshot, stored, annotations, model.dimension)
            space = choose_space(session, inputs, summary_of(session, inputs), model)
            say(f"space: {space.said}\nthreshold: {space.threshold_said}")
            found = search(session, snapshot, inputs, space)
            published = publish(session, snapshot, inputs, space, found)
            count = summary_of(session, inputs).representatives
            measured = measure_params(session, model)
            recipe = Recipe(inputs, model, measured, space.folder, space.copy, found.semantic, count)
            write_recipe(session.store, published.audit_id, recipe)
            return published
        finally:
            session.runner.close()


def _runner(options: argparse.Namespace) -> Runner:
    if options.runner == "local":
        return LocalRunner()
    os.environ.update(product_environment())  # for the workers
    from pipeline.cluster import start_ray

    return start_ray(options.workers)


def _owed(found: dict[str, Any]) -> Sequence[Owed]:
    limits = next((LIMITS[most] for most in sorted(LIMITS) if found["images"] <= most), None)
    pairs, leaks = found["pairs_planted"], found["leaks_planted"]
    rows = [
        at_least("planted pairs over the threshold found", 0.998, found["pairs_found"] / max(pairs, 1), "{:.4f}"),
        at_least("planted leaks across splits found", 1.0, found["leaks_found"] / max(leaks, 1), "{:.6f}"),
    ]
    if limits is not None:
        seconds, task, driver, disk = limits
        rows += [
            at_most("seconds after extraction", seconds, found["wall_seconds"], "{:,.0f}"),
            at_most("bytes per task", task, found["peak_task_bytes"], "{:,.0f}"),
            at_most("bytes of the driver", driver, found["driver_bytes"], "{:,.0f}"),
            at_most("bytes on disk at the peak", disk, found["peak_disk_bytes"], "{:,.0f}"),
        ]
    return rows


def _growth(found: dict[str, Any], against: Path | None) -> list[Owed]:
    """CPU seconds over those of another run: of a smaller set, or of the same one without frames."""
    if against is None:
        return []
    other = json.loads(against.read_text())
    times = found["cpu_seconds"] / other["cpu_seconds"]
    found["against"] = {name: other[name] for name in ("command", "images", "cpu_seconds", "wall_seconds")}
    if found["images"] == other["images"]:
        return [at_most("CPU seconds, times those without frames", FRAMES_COST, times)]
    what = f"CPU seconds, times those of {other['images']:,} images"
    return [at_most(what, GROWTH * found["images"] / (11.582724 * other["images"]), times)]


if __name__ == "__main__":
    sys.exit(main())
