"""Rates of an object store on loopback: listing, extraction beside the same files on disk, memory.

    python benchmarks/s3_rates.py --data DIR [--objects 100000] [--images 5000] [--json FILE]
    python benchmarks/s3_rates.py --data DIR --endpoint http://127.0.0.1:7480 --bucket NAME --server-pid PID ...

Without `--endpoint` the server is `synthetic_bucket.py`, a process of its own; with it, a real one, whose bucket is
filled first and whose credentials are those of the environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from benchmarks.command import Found, carry_out
from benchmarks.processes import run_measured
from benchmarks.product import extract_once, photos_of
from benchmarks.report import Owed, at_least, at_most, say
from benchmarks.synthetic_bucket import Keys
from pipeline.storage import StorageConfig, open_store

HERE = Path(__file__).resolve().parent
PER_CLASS = 530
FEW = 1000
REGION = ("--region", "us-east-1")


@contextmanager
def synthetic(data: Path, objects: int, latency: float) -> Iterator[tuple[str, list[psutil.Process]]]:
    """A server with that many objects: its uri and its process."""
    command = [sys.executable, str(HERE / "synthetic_bucket.py"), "--photos", str(data), "--objects", str(objects)]
    command += ["--per-class", str(PER_CLASS), "--latency", str(latency)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield f"minio://127.0.0.1:{int(child.stdout.readline())}/bucket", [psutil.Process(child.pid)]
    finally:
        child.terminate()
        child.wait()


@contextmanager
def real(options: argparse.Namespace, objects: int) -> Iterator[tuple[str, list[psutil.Process]]]:
    """The bucket of the options, with that many objects under a prefix of its own."""
    server = options.endpoint.partition("://")[2].rstrip("/")
    uri = f"minio://{server}/{options.bucket}/{objects}"
    store = open_store(uri, StorageConfig(region="us-east-1"))
    photos = [path.read_bytes() for path in photos_of(options.data, 2000)]
    held = {info.key for info in store.list()}
    keys = Keys(objects, PER_CLASS)
    missing = [number for number in range(objects) if keys[number] not in held]
    say(f"{len(missing)} of {objects} objects to be put into {uri}")
    with ThreadPoolExecutor(8) as pool:
        for done in pool.map(lambda number: store.put(keys[number], photos[number % len(photos)]), missing):
            assert done is None
    yield uri, [psutil.Process(pid) for pid in options.server_pid]


def bucket(options: argparse.Namespace, objects: int) -> Any:
    """A server with that many objects, as the options want it."""
    return real(options, objects) if options.endpoint else synthetic(options.data, objects, options.latency)


def server_cpu(processes: Sequence[psutil.Process]) -> float:
    """CPU seconds that the server's processes used so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def listing(options: argparse.Namespace, objects: int) -> Found:
    """One listing in a fresh process."""
    say(f"listing {objects} keys")
    with bucket(options, objects) as (uri, server):
        before = server_cpu(server)
        found: Found = json.loads(
            run_measured([sys.executable, str(HERE / "s3_child.py"), uri]).output.splitlines()[-1]
        )
        found["server_cpu_seconds"] = server_cpu(server) - before
    if found["keys"] != objects:
        raise SystemExit(f"{found['keys']} keys were listed, {objects} are there")
    found["keys_per_second"] = objects / found["seconds"]
    return found


def extraction(root: Path, source: str, server: Sequence[psutil.Process], *more: str) -> Found:
    """One extraction, and what it cost the server meanwhile."""
    say(f"extracting {source}")
    before = server_cpu(server)
    found = extract_once(root, source, *more)
    return {**found, "server_cpu_seconds": server_cpu(server) - before}


def on_disk(options: argparse.Namespace, folder: Path) -> Path:
    """The objects of the extraction as files."""
    keys, photos = Keys(options.images, PER_CLASS), photos_of(options.data, 2000)
    for number in range(options.images):
        path = folder / keys[number]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos[number % len(photos)].read_bytes())
    return folder


def measure(options: argparse.Namespace, work: Path) -> Found:
    """Listings of three sizes; extraction from disk and from the server, turn by turn, the better of each."""
    sizes = [FEW, options.objects, *([options.many] if options.many else [])]
    found: Found = {"listings": [listing(options, size) for size in sizes], "disk": [], "s3": []}
    files = on_disk(options, work / "files")
    more = ("--runner", options.runner, *REGION)
    with bucket(options, options.images) as (uri, server):
        for turn in range(options.turns):
            found["disk"].append(extraction(work / f"disk-{turn}", str(files), [], *more))
            found["s3"].append(extraction(work / f"s3-{turn}", uri, server, *more))
    disk, s3 = (min(found[kind], key=lambda one: float(one["seconds"])) for kind in ("disk", "s3"))
    found["rate_ratio"] = s3["images_per_second"] / disk["images_per_second"]
    disk_cpu, s3_cpu, served = (
        min(float(one[name]) for one in found[kind])
        for kind, name in (("disk", "cpu_seconds"), ("s3", "cpu_seconds"), ("s3", "server_cpu_seconds"))
    )
    found["cpu_ratio"] = disk_cpu / s3_cpu
    found["cpu_ratio_with_server"] = disk_cpu / (s3_cpu + served)
    return found


def details(found: Found) -> str:
    """The listings and extractions as lines."""
    lines = [
        f"{one['keys']:>9} keys: {one['seconds']:.1f} s, {one['cpu_seconds']:.1f} s CPU, server "
        f"{one['server_cpu_seconds']:.1f} s CPU, {one['requests']['s3.list']} requests, {_mb(one):.0f} MB"
        for one in found["listings"]
    ]
    lines += [
        f"{kind:>9}: {one['images_per_second']:.0f} images/s, {one['cpu_ms_per_image']:.2f} ms CPU an image, server "
        f"{one['server_cpu_seconds']:.1f} s CPU"
        for kind in ("disk", "s3")
        for one in found[kind]
    ]
    return "\n".join(lines)


def owed(found: Found) -> list[Owed]:
    """What issue and design ask for."""
    few, listed, *many = found["listings"]
    largest = (many or [listed])[-1]
    return [
        at_most(f"listing {listed['keys']} keys, seconds", 15, listed["seconds"], "{:.1f}"),
        at_most("memory of the largest listing over that of 1,000 keys, MB", 64, _mb(largest) - _mb(few), "{:.0f}"),
        at_least("images/s from the store over those from disk", 0.8, found["rate_ratio"]),
        at_least("the same by CPU, the client's alone", 0.8, found["cpu_ratio"]),
        at_least("the same by CPU, the server's included", 0.8, found["cpu_ratio_with_server"]),
    ]


def _mb(one: Found) -> float:
    return float(one["peak_bytes"]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with photos, searched for .jpg")
    parser.add_argument("--objects", type=int, default=100_000, help="keys to be listed (default 100,000)")
    parser.add_argument("--many", type=int, default=1_000_000, help="keys of the largest listing, 0 = none")
    parser.add_argument("--images", type=int, default=5000, help="images to be extracted (default 5,000)")
    parser.add_argument("--turns", type=int, default=2, help="extractions of each kind, the better of which counts")
    parser.add_argument("--runner", default="auto", choices=("auto", "local", "ray"))
    parser.add_argument("--latency", type=float, default=0.0, help="of the synthetic server, seconds a request")
    parser.add_argument("--endpoint", help="URL of a real server")
    parser.add_argument("--bucket", default="image-audit", help="bucket of the real server, which exists")
    parser.add_argument("--server-pid", type=int, nargs="*", default=[], help="its processes, for their CPU")
    parser.add_argument("--work", type=Path, help="folder for everything that is made, kept (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.set_defaults(peer=None)
    options = parser.parse_args()
    if not options.endpoint:
        os.environ.update(AWS_ACCESS_KEY_ID="none", AWS_SECRET_ACCESS_KEY="nonenone", AWS_EC2_METADATA_DISABLED="true")
    carry_out("s3_rates", options, measure, details, owed)


if __name__ == "__main__":
    main()
