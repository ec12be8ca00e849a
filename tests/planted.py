"""A seeded set of real photographs with planted faults, and the uris of every planted one.

`plant(seed)` makes 170 files or so in memory, `build(folder, seed)` writes them; `Truth` lists what an end-to-end test
must find. Each fault has originals of its own, so that no fact hides another. Uris are relative to the folder.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.edits import EDITS, SAME_FRAME, Pixels, decode, edited_jpeg, encode_jpeg
from pipeline.demo import OUTLIERS, SUBJECTS, demo_photos

Pair = tuple[str, str]

HOSTILE_NAMES = (
    "with space .jpg",
    "quote\"and'quote.jpg",
    "comma, semicolon;.jpg",
    "new\nline.jpg",
    "tab\tcr\r.jpg",
    "<script>alert(1)<!-- &amp;.jpg",
    "=1+1.jpg",
    "-rf.jpg",
    "@at.jpg",
    "50%2541.jpg",
    "back\\slash.jpg",
    "%23hash?query.jpg",
    "emoji \U0001f600.jpg",
    "right\u202eleft.jpg",
    "nfc \u00e9.jpg",
    "nfd e\u0301.jpg",
    "long" * 60 + ".jpg",
)
RAW_NAMES = {"latin %E9.jpg": b"latin \xe9.jpg", "%FF%FE.jpg": b"\xff\xfe.jpg"}
"""Uris of names that are not UTF-8, and those names; only a disk can hold them."""
DISK_NAMES = {**RAW_NAMES, "50%2541.jpg": b"50%41.jpg", "%23hash?query.jpg": b"#hash?query.jpg"}
"""Every uri that differs from its name on disk, and that name."""

OTHER = {"tools": "fish", "fish": "buildings", "buildings": "tools"}
"""Label -> a wrong one."""
WRONG_LABELS = (
    ("buildings", "fish", ("fish_12", "fish_13", "fish_14", "fish_16", "fish_19")),
    ("fish", "buildings", ("building_berlin-cathedral", "building_reims-cathedral", "building_santiago-cathedral")),
    ("tools", "buildings", ("building_arc-du-carrousel", "building_brandenburg-gate", "building_india-gate")),
    ("tools", "buildings", ("windmill_05", "windmill_06", "windmill_08")),
)
"""Given label, right label, photographs of which one gets the wrong one: kinds that do not resemble each other."""


@dataclass
class Truth:
    """What was planted. A pair is (original, copy)."""

    photos: list[str] = field(default_factory=list)
    """Nothing but photographs: no fault, no copy."""
    same_bytes: list[Pair] = field(default_factory=list)
    same_pixels: list[Pair] = field(default_factory=list)
    """The same pixels in another container."""
    edits: dict[str, list[Pair]] = field(default_factory=dict)
    """Name of the edit -> pairs in one split and label."""
    leaks: dict[Pair, bool] = field(default_factory=dict)
    """Pairs over two splits -> whether their labels differ."""
    web: list[str] = field(default_factory=list)
    """One photograph, byte for byte, in three splits and under two labels."""
    web_edits: list[str] = field(default_factory=list)
    """An edited copy of it in each of those splits; with `web` it is one group."""
    wrong_labels: dict[str, str] = field(default_factory=dict)
    """Uri -> the label that it should have."""
    outliers: list[str] = field(default_factory=list)
    quality: dict[str, list[str]] = field(default_factory=dict)
    """Name of the check (dark, bright, blurry, grey, low_contrast) -> images."""
    invalid: dict[str, frozenset[str]] = field(default_factory=dict)
    """Uri -> the statuses that are right for it. Some are equal byte for byte and yet no duplicates."""
    hostile: list[Pair] = field(default_factory=list)
    """(uri of a difficult name, uri of an exact copy under a plain name)."""
    animations: list[str] = field(default_factory=list)

    def groups(self) -> list[frozenset[str]]:
        """Every group of duplicates and near-duplicates."""
        pairs = [*self.same_bytes, *self.same_pixels, *self.leaks, *self.hostile]
        pairs += [pair for listed in self.edits.values() for pair in listed]
        return [*map(frozenset, pairs), frozenset([*self.web, *self.web_edits])]

    def kinds(self) -> dict[frozenset[str], str]:
        """The kind of every planted pair but those of leaks and of the web."""
        kinds = {frozenset(pair): "same_bytes" for pair in [*self.same_bytes, *self.hostile]}
        kinds |= {frozenset(pair): "same_pixels" for pair in self.same_pixels}
        for edit, pairs in self.edits.items():
            kinds |= {frozenset(pair): "near_identical" if edit in SAME_FRAME else "edited" for pair in pairs}
        return kinds


@dataclass
class Planted:
    """The set in memory: uri -> bytes of the file, and what was planted."""

    files: dict[str, bytes] = field(default_factory=dict)
    truth: Truth = field(default_factory=Truth)


@dataclass
class _Pen:
    """What the planting functions share: the set so far, the originals that are left, and the random numbers."""

    planted: Planted
    left: dict[str, list[tuple[str, bytes]]]
    """Label -> name and bytes of the photographs that nothing uses yet."""
    rng: np.random.Generator

    def put(self, uri: str, data: bytes) -> str:
        assert uri not in self.planted.files, uri
        self.planted.files[uri] = data
        return uri

    def take(self) -> tuple[str, str, bytes]:
        """Label, name and bytes of a photograph that nothing else uses, from the fullest label."""
        label = max(self.left, key=lambda key: len(self.left[key]))
        return (label, *self.left[label].pop())


def plant(seed: int = 7) -> Planted:
    """The planted set; equal seeds give equal bytes."""
    rng = np.random.default_rng(seed)
    pen = _Pen(Planted(), _originals(rng), rng)
    for step in (_wrong_labels, _faults, _exact, _edited, _leaks, _web, _invalid, _hostile, _photos):
        step(pen)
    pen.planted.files = dict(sorted(pen.planted.files.items()))
    return pen.planted


def build(folder: Path, seed: int = 7) -> Truth:
    """Writes the planted set into `folder`, difficult names as they are, and returns what was planted."""
    planted = plant(seed)
    for uri, data in planted.files.items():
        parent, _, name = uri.rpartition("/")
        path = folder / parent / os.fsdecode(DISK_NAMES.get(name, os.fsencode(name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return planted.truth


def _originals(rng: np.random.Generator) -> dict[str, list[tuple[str, bytes]]]:
    photos = demo_photos()
    piles = {}
    for label, kinds in SUBJECTS.items():
        names = [name for name in photos if name.partition("_")[0] in kinds]
        piles[label] = [(names[i], photos[names[i]]) for i in rng.permutation(len(names))]
    return piles


def _exact(pen: _Pen) -> None:
    for i in range(4):
        label, name, data = pen.take()
        original = pen.put(f"train/{label}/{name}.jpg", data)
        pen.planted.truth.same_bytes.append((original, pen.put(f"train/{label}/{name}_again{i}.jpg", data)))
    for suffix, options in (("bmp", {}), ("tiff", {}), ("webp", {"lossless": True})):
        label, name, data = pen.take()
        original = pen.put(f"train/{label}/{name}.png", _saved(decode(data), "png"))
        copy = pen.put(f"train/{label}/{name}.{suffix}", _saved(decode(data), suffix, **options))
        pen.planted.truth.same_pixels.append((original, copy))


def _edited(pen: _Pen) -> None:
    for edit in EDITS:
        for _ in range(3 if edit in ("jpeg", "half") else 2):
            label, name, data = pen.take()
            original = pen.put(f"train/{label}/{name}.jpg", data)
            copy = pen.put(f"train/{label}/{name}_{edit}.jpg", edited_jpeg(edit, decode(data), pen.rng))
            pen.planted.truth.edits.setdefault(edit, []).append((original, copy))


def _leaks(pen: _Pen) -> None:
    plan = [("again", "val"), ("again", "test"), ("half", "test"), ("crop", "val"), ("jpeg", "val"), ("mirror", "test")]
    for number, (edit, split) in enumerate(plan):
        label, name, data = pen.take()
        differ = number in (1, 5)
        original = pen.put(f"train/{label}/{name}.jpg", data)
        copied = data if edit == "again" else edited_jpeg(edit, decode(data), pen.rng)
        copy = pen.put(f"{split}/{OTHER[label] if differ else label}/{name}_{edit}.jpg", copied)
        pen.planted.truth.leaks[original, copy] = differ


def _web(pen: _Pen) -> None:
    true, name, data = pen.take()
    for split, label, edit in (("train", true, "half"), ("val", true, "jpeg"), ("test", OTHER[true], "crop")):
        pen.planted.truth.web.append(pen.put(f"{split}/{label}/{name}_web.jpg", data))
        copied = edited_jpeg(edit, decode(data), pen.rng)
        pen.planted.truth.web_edits.append(pen.put(f"{split}/{label}/{name}_web_{edit}.jpg", copied))


def _wrong_labels(pen: _Pen) -> None:
    for given, true, names in WRONG_LABELS:
        name, data = next(photo for photo in pen.left[true] if photo[0] in names)
        pen.left[true].remove((name, data))
        pen.planted.truth.wrong_labels[pen.put(f"train/{given}/{name}.jpg", data)] = true


def _faults(pen: _Pen) -> None:
    """The outliers, and one image for each quality check."""
    photos = demo_photos()
    for name, label in zip(OUTLIERS, [*SUBJECTS] * 2, strict=True):
        pen.planted.truth.outliers.append(pen.put(f"train/{label}/{name}.jpg", photos[name]))
    changes: dict[str, Callable[[Pixels], Pixels]] = {
        "dark": lambda pixels: _scaled(pixels, 0.05, 0),
        "bright": lambda pixels: _scaled(pixels, 0.06, 239),
        "low_contrast": lambda pixels: _scaled(pixels, 0.08, 118),
        "blurry": lambda pixels: np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(6))),
        "grey": lambda pixels: EDITS["grey"](pixels, pen.rng),
    }
    for check, change in changes.items():
        name, data = pen.left["buildings"].pop()
        uri = pen.put(f"train/buildings/{name}_{check}.jpg", encode_jpeg(change(decode(data)), 92))
        pen.planted.truth.quality[check] = [uri]


def _invalid(pen: _Pen) -> None:
    _, _, data = pen.take()
    png = _saved(decode(data), "png")
    text = b"This is no photograph.\n" * 40
    no_image, unreadable = frozenset({"unsupported"}), frozenset({"unreadable", "truncated"})
    broken: list[tuple[str, bytes, frozenset[str]]] = [
        ("empty.jpg", b"", frozenset({"empty"})),
        ("empty_too.png", b"", frozenset({"empty"})),
        ("text.jpg", text, no_image),
        ("text_too.jpg", text, no_image),
        ("archive.png", b"PK\x03\x04" + bytes(200), no_image),
        ("garbage.jpg", data[:20] + bytes(len(data) - 20), unreadable),
        ("garbage.png", png[: len(png) // 3] + bytes(64) + png[len(png) // 3 + 64 :], unreadable),
        ("cut.jpg", data[: len(data) * 6 // 10], frozenset({"truncated"})),
        ("cut.png", png[: len(png) * 6 // 10], frozenset({"truncated"})),
        ("bomb.png", _png_bomb(), frozenset({"too_large"})),
        ("bomb.jpg", _jpeg_bomb(data), frozenset({"too_large"})),
        ("dot.png", _saved(np.full((1, 1, 3), 90, np.uint8), "png"), frozenset({"too_small"})),
    ]
    for name, content, statuses in broken:
        pen.planted.truth.invalid[pen.put(f"train/buildings/{name}", content)] = statuses


def _hostile(pen: _Pen) -> None:
    for number, name in enumerate([*HOSTILE_NAMES, *RAW_NAMES]):
        label, _, data = pen.take()
        pair = pen.put(f"train/{label}/{name}", data), pen.put(f"train/{label}/plain{number:02}.jpg", data)
        pen.planted.truth.hostile.append(pair)


def _photos(pen: _Pen) -> None:
    """Everything left, over three splits, and one animation."""
    label, name, data = pen.take()
    frames = [Image.fromarray(decode(data)).rotate(90 * turn) for turn in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:], duration=80)
    pen.planted.truth.animations.append(pen.put(f"train/{label}/{name}.gif", buffer.getvalue()))
    rest = [(label, name, data) for label, pile in pen.left.items() for name, data in pile]
    for position, (label, name, data) in enumerate(rest):
        split = ("train", "train", "train", "val", "test")[position % 5]
        pen.planted.truth.photos.append(pen.put(f"{split}/{label}/{name}.jpg", data))


def _saved(pixels: Pixels, suffix: str, **options: bool) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=suffix, **options)
    return buffer.getvalue()


def _scaled(pixels: Pixels, gain: float, offset: float) -> Pixels:
    return np.clip(np.rint(pixels * gain + offset), 0, 255).astype(np.uint8)


def _png_bomb() -> bytes:
    """A valid PNG of 65,500 x 65,500 grey pixels by its header, and of 60 bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 65_500, 65_500, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _jpeg_bomb(data: bytes) -> bytes:
    """A JPEG whose frame header says 65,500 x 65,500."""
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", 65_500, 65_500) + data[start + 4 :]
