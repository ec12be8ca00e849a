"""What measuring one image costs over decoding it: `python benchmarks/extract_floor.py --data DIR [--json FILE]`.

CPU milliseconds per image, best of several rounds, for the images as they are and for mosaics of them at 500x375.
`measure` is the whole kernel; the steps are timed alone and add up to less, since each finds its data in the cache.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import PIL

from pipeline.kernels.decode import as_luminance, decode
from pipeline.kernels.hashing import content_hash, pixel_hash
from pipeline.kernels.header import read_header
from pipeline.kernels.measure import MeasureParams, measure
from pipeline.kernels.pillow_decode import to_shown
from pipeline.kernels.quality import channel_difference, entropy, quality
from pipeline.kernels.shrink import shrink
from pipeline.kernels.signature import signature

PARAMS = MeasureParams()


def seconds_each(work: Callable[[int], object], count: int, rounds: int) -> float:
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        for index in range(count):
            work(index)
        best = min(best, (time.process_time() - start) / count)
    return best


def mosaics(files: list[bytes], count: int) -> list[bytes]:
    """JPEGs of 500x375 with the detail of real photos: 4 x 3 of them at 150x150, cut."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        tiles = [cv2.imdecode(np.frombuffer(files[i], np.uint8), 1) for i in rng.integers(0, len(files), 12)]
        tiles = [cv2.resize(tile, (150, 150), interpolation=cv2.INTER_AREA) for tile in tiles]
        whole = np.vstack([np.hstack(tiles[row : row + 4]) for row in (0, 4, 8)])[:375, :500]
        made.append(cv2.imencode(".jpg", whole, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
    return made


def table(files: list[bytes], rounds: int) -> dict[str, float]:
    decoded = [decode(data, PARAMS) for data in files]
    small = [shrink(to_shown(one), *PARAMS.input_shape) for one in decoded]
    grey = [as_luminance(one) for one in small]
    steps: dict[str, Callable[[int], object]] = {
        "decode alone": lambda i: cv2.imdecode(np.frombuffer(files[i], np.uint8), cv2.IMREAD_COLOR),
        "measure": lambda i: measure(files[i], PARAMS),
        "  header": lambda i: read_header(files[i]),
        "  decode": lambda i: decode(files[i], PARAMS),
        "  content hash": lambda i: content_hash(files[i]),
        "  pixel hash": lambda i: pixel_hash(decoded[i].native, decoded[i].space),
        "  quality": lambda i: quality(to_shown(decoded[i])),
        "  shrink": lambda i: shrink(to_shown(decoded[i]), *PARAMS.input_shape),
        "  luminance": lambda i: as_luminance(small[i]),
        "  signature": lambda i: signature(grey[i]),
        "  entropy": lambda i: entropy(grey[i]),
        "  colour": lambda i: channel_difference(as_rgb_of(small[i])),
    }
    return {name: 1e3 * seconds_each(work, len(files), rounds) for name, work in steps.items()}


def as_rgb_of(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with JPEGs, searched recursively")
    parser.add_argument("--count", type=int, default=64, help="images per size (default 64)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which the best counts (default 7)")
    parser.add_argument("--json", type=Path, help="write the table there as well")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    paths = sorted(path for path in options.data.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        parser.error(f"no .jpg or .jpeg under {options.data}")
    files = [path.read_bytes() for path in paths[:: max(1, len(paths) // options.count)][: options.count]]
    tables = {"as they are": table(files, options.rounds), "500x375": table(mosaics(files, len(files)), options.rounds)}
    print(f"{'CPU ms per image':<20}" + "".join(f"{name:>14}" for name in tables))
    for step in tables["500x375"]:
        print(f"{step:<20}" + "".join(f"{one[step]:>14.3f}" for one in tables.values()))
    over = {name: one["measure"] - one["decode alone"] for name, one in tables.items()}
    print(f"{'over decode alone':<20}" + "".join(f"{value:>14.3f}" for value in over.values()))
    if options.json:
        versions = {"python": platform.python_version(), "cv2": cv2.__version__, "pillow": PIL.__version__}
        about = {"machine": platform.processor() or platform.machine(), "versions": versions, "images": len(files)}
        options.json.write_text(json.dumps({**about, "cpu_ms_per_image": tables}, indent=2) + "\n")


if __name__ == "__main__":
    main()
