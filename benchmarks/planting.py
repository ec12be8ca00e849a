"""Folders of photos with planted copies: what `copies.py` audits. Everything follows from a seed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.edits import EDITS, decode, edited_jpeg, encode_jpeg
from benchmarks.floor import photos_in

SCALES = (0.25, 0.5, 0.75, 1.5, 2.0, 4.0)
MAX_PIXELS = 80_000_000
LONG_SIDE = 1500


@dataclass(frozen=True)
class Planted:
    """Name of every file of a folder -> name of the photo that it shows; the edit that made it, "" for none."""

    photo: dict[str, str]
    edit: dict[str, str]


def choose(data: Path, count: int, rng: np.random.Generator) -> list[Path]:
    """`count` photos of a folder at random, none of them of equal pixels."""
    paths = photos_in(data)
    chosen: list[Path] = []
    seen: set[bytes] = set()
    for place in rng.permutation(len(paths)):
        pixels = cv2.imread(str(paths[place]), cv2.IMREAD_COLOR)
        if pixels is None or pixels.tobytes() in seen:
            continue
        seen.add(pixels.tobytes())
        chosen.append(paths[place])
        if len(chosen) == count:
            return chosen
    raise SystemExit(f"{data}: {len(chosen)} different photos, want {count}")


def plant_copies(data: Path, folder: Path, originals: int, distractors: int, seed: int) -> Planted:
    """Originals, the nine edits of each, and distractors, as JPEG files in one flat folder."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    photo: dict[str, str] = {}
    edit: dict[str, str] = {}
    for number, path in enumerate(choose(data, originals + distractors, rng)):
        name = f"{number:05d}.jpg"
        shutil.copyfile(path, folder / name)
        photo[name], edit[name] = name, ""
        if number >= originals:
            continue
        pixels = decode(path.read_bytes())
        for kind in EDITS:
            copy = f"{number:05d}-{kind}.jpg"
            (folder / copy).write_bytes(edited_jpeg(kind, pixels, rng))
            photo[copy], edit[copy] = name, kind
    return Planted(photo, edit)


def plant_one(paths: list[Path], folder: Path, kind: str, rng: np.random.Generator) -> tuple[str, str]:
    """A folder of these photos and one edit of one of them; names of that photo and of its edit."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths):
        place = folder / f"{number:05d}.jpg"
        if not place.exists():
            shutil.copyfile(path, place)
    for old in folder.glob("copy-*.jpg"):
        old.unlink()
    number = int(rng.integers(len(paths)))
    copy = f"copy-{number:05d}-{kind}.jpg"
    (folder / copy).write_bytes(edited_jpeg(kind, decode(paths[number].read_bytes()), rng))
    return f"{number:05d}.jpg", copy


def plant_scales(large: Path, folder: Path) -> dict[str, list[str]]:
    """Every photo of 1,500 px and more, and itself at 1/4 to 4 times that size; names of the sizes of each."""
    folder.mkdir(parents=True)
    found: dict[str, list[str]] = {}
    for number, path in enumerate(photos_in(large)):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        if max(image.size) < LONG_SIDE:
            continue
        original = f"{number:03d}-1.jpg"
        (folder / original).write_bytes(encode_jpeg(np.asarray(image), 95))
        found[original] = []
        for scale in SCALES:
            size = (round(image.width * scale), round(image.height * scale))
            if size[0] * size[1] > MAX_PIXELS:
                continue
            name = f"{number:03d}-{scale}.jpg"
            image.resize(size, Image.Resampling.LANCZOS).save(folder / name, quality=90)
            found[original].append(name)
    return found
