"""Extraction over its floor: `python benchmarks/floor.py --data DIR [--count N] [--json FILE]`.

CPU milliseconds per image in one process with one thread, on the same images: the decoder alone, the model alone, and
the product's extract stage (reading, decoding, measuring, embedding, committing; the model loaded before).
`benchmarks/extract_floor.py` shows what each step of measuring costs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np

import pipeline
from pipeline import api
from pipeline.kernels.embed import BATCH
from pipeline.kernels.measure import MeasureParams, measure
from pipeline.models import default_model
from pipeline.threads import single_thread

WARM = 16
ROUNDS = 3
SUFFIXES = (".jpg", ".jpeg", ".png")


def photos_in(folder: Path) -> list[Path]:
    """Image files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def cpu_seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """CPU seconds of one call, the best of several."""
    best = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def decode_seconds(files: list[bytes]) -> float:
    """Decoding every file in full, and nothing else."""
    return cpu_seconds(lambda: [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in files])


def model_seconds(files: list[bytes]) -> float:
    """The default model over every file's prepared input, in batches as extraction makes them."""
    model = default_model().load()
    measured = [measure(data, MeasureParams()).model_input for data in files]
    inputs = np.stack([item for item in measured if item is not None])
    return cpu_seconds(lambda: [model.embed(inputs[at : at + BATCH]) for at in range(0, len(inputs), BATCH)])


def extract_seconds(folder: Path, count: int, root: Path) -> float:
    """The extract stage over offsets [WARM, count) of a folder, as the product accounts for it."""
    for lo, hi in ((0, WARM), (WARM, count)):
        pipeline.run(folder, root=root, where=api.Where("local"), min_offset=lo, max_offset=hi)
    (stage,) = (row for row in api.status(str(root), {}) if row["stage"] == "extract")
    return float(stage["cpu_seconds"]) / (count - WARM)


def measure_floor(data: Path, count: int, work: Path) -> dict[str, Any]:
    """CPU milliseconds per image, and extraction over decode and model."""
    single_thread()
    paths = photos_in(data)
    if len(paths) <= WARM:
        raise SystemExit(f"{data}: {len(paths)} images, want more than {WARM}")
    paths = paths[:: max(1, len(paths) // count)][:count]
    folder = work / "photos"
    folder.mkdir()
    for number, path in enumerate(paths):
        shutil.copyfile(path, folder / f"{number:06d}{path.suffix.lower()}")
    files = [path.read_bytes() for path in paths]
    decode, model = decode_seconds(files) / len(files), model_seconds(files) / len(files)
    rounds = [extract_seconds(folder, len(paths), work / f"root{number}") for number in range(2)]
    sizes = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8) for data in files[:64]]
    return {
        "images": len(files),
        "median_side_pixels": float(np.median([max(size.shape) * 8 for size in sizes if size is not None])),
        "decode_ms": 1e3 * decode,
        "model_ms": 1e3 * model,
        "extract_ms": 1e3 * min(rounds),
        "extract_over_floor": min(rounds) / (decode + model),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of photos, searched recursively")
    parser.add_argument("--count", type=int, default=1024, help="images (default 1024)")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = measure_floor(options.data, options.count, Path(work))
    text = json.dumps(found, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
