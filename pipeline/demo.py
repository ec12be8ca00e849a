"""The demo: a small photo set with planted faults, and what an audit found of them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageFilter

from pipeline.errors import NotFound, UsageError
from pipeline.schemas import GROUPING_KINDS, Kind, Status
from pipeline.storage import Store, open_store

SUBJECTS = {"buildings": ("building", "windmill"), "fish": ("fish",), "tools": ("tool",)}
"""Class folder of the demo -> how the names of its photographs begin (see demo_photos/CREDITS.txt)."""
OUTLIERS = ("other_baseball", "other_car", "other_crab", "other_koala", "other_orchestra", "other_retriever")
"""Photographs of something else, two for each class folder."""
SPLITS = ("train", "train", "train", "val", "test")
JPEG_QUALITY = 90

Edit = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Fact:
    """One kind of planted fault and where an audit shows it.

    table, column, value: the rows of `table` where `column` equals `value` (every row where column is None).
    items: the planted ones, each a tuple of one uri, or of two that must be a pair (or share a group).
    """

    name: str
    table: str
    column: str | None
    value: object
    items: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class DemoTruth:
    """What `make_demo` wrote: the number of files and every planted fact."""

    images: int
    facts: tuple[Fact, ...]


def demo_photos() -> dict[str, bytes]:
    """The photographs of the package: name without suffix -> JPEG bytes, sorted by name."""
    folder = resources.files("pipeline").joinpath("demo_photos")
    found = {entry.name[:-4]: entry for entry in folder.iterdir() if entry.name.endswith(".jpg")}
    return {name: found[name].read_bytes() for name in sorted(found)}


def require_own(place: Path) -> None:
    """Raises UsageError where a folder holds anything beside the demo's own folders: its photos go nowhere else."""
    strange = _first_other(open_store(str(place)), {}, ("photos/", "audit/"))
    if strange is not None:
        raise UsageError(f"{place} holds {strange!r}, which is not of the demo: give an empty folder or a new name")


def make_demo(target: Path, seed: int = 7) -> DemoTruth:
    """Writes the planted photo set into the folder `target` and returns what was planted, as uris relative to it.

    Equal seeds write equal names and, with one version of Pillow, equal bytes. Raises UsageError where the folder holds
    a file that is not of the set, StorageError where it cannot be written.
    """
    files, facts = plant(demo_photos(), seed)
    store = open_store(str(target))
    strange = _first_other(store, files)
    if strange is not None:
        raise UsageError(
            f"demo folder {target} holds {strange!r}, which is not of the demo: give an empty folder or a new name"
        )
    for key, data in files.items():
        store.put(key, data)
    return DemoTruth(images=len(files), facts=facts)


def plant(photos: dict[str, bytes], seed: int) -> tuple[dict[str, bytes], tuple[Fact, ...]]:
    """The files of the demo (uri -> bytes) and its facts, from `photos` (name -> JPEG bytes)."""
    piles = {
        subject: [name for name in photos if name.partition("_")[0] in kinds] for subject, kinds in SUBJECTS.items()
    }
    for pile in piles.values():
        random.Random(seed).shuffle(pile)
    files: dict[str, bytes] = {}
    facts = [*_plant_single(files, piles, photos), *_plant_copies(files, piles, photos)]
    for subject, pile in piles.items():
        for position, name in enumerate(pile):
            files[f"{SPLITS[position % len(SPLITS)]}/{subject}/{name}.jpg"] = photos[name]
    return dict(sorted(files.items())), tuple(facts)


def report_demo(truth: DemoTruth, tables: dict[str, pa.Table]) -> list[str]:
    """A line per fact: planted, found, and how many images the same rows name that were not planted as anything."""
    planted = {uri for fact in truth.facts for item in fact.items for uri in item}
    lines = [f"{truth.images} files"]
    for fact in truth.facts:
        rows = _rows(tables[fact.table], fact)
        found = _count_found(rows, fact.items)
        others = len(_uris(rows) - planted)
        also = f", and {others} image{'s' if others > 1 else ''} not planted" if others else ""
        lines.append(f"{fact.name}: planted {len(fact.items)}, found {found}{also}")
    return lines


def _first_other(store: Store, files: dict[str, bytes], folders: tuple[str, ...] = ()) -> str | None:
    try:
        keys = (entry.key for entry in store.list())
        return next((key for key in keys if key not in files and not key.startswith(folders)), None)
    except NotFound:
        return None


def _plant_single(files: dict[str, bytes], piles: dict[str, list[str]], photos: dict[str, bytes]) -> list[Fact]:
    """Faults of one image. Their originals are taken from the piles, so that no fault is also a copy."""

    def place(folder: str, pile: str, ending: str, change: Callable[[bytes], bytes] = bytes) -> str:
        name = piles[pile].pop()
        uri = f"{folder}/{name}{ending}.jpg"
        files[uri] = change(photos[name])
        return uri

    wrong = [
        place("train/tools", "fish", ""),
        place("val/fish", "buildings", ""),
        place("train/buildings", "tools", ""),
    ]
    no_image = place("train/fish", "fish", "_page", lambda _: b"<html>Sign in to see this photo.</html>\n")
    short = place("val/tools", "tools", "_truncated", lambda data: data[: len(data) * 6 // 10])
    dark = place("train/buildings", "buildings", "_dark", _edit(lambda image: image.point(lambda value: value * 0.06)))
    blurry = place("test/tools", "tools", "_blurry", _edit(lambda image: image.filter(ImageFilter.GaussianBlur(6))))
    grey = place("train/fish", "fish", "_grey", _edit(lambda image: image.convert("L").convert("RGB")))
    strange = [f"train/{subject}/{name}.jpg" for name, subject in zip(OUTLIERS, [*SUBJECTS] * 2, strict=True)]
    files.update({uri: photos[name] for uri, name in zip(strange, OUTLIERS, strict=True)})
    return [
        _single("wrong labels", "labels", "is_label_issue", True, wrong),
        _single("outliers", "outliers", "is_outlier", True, strange),
        _single("files that are no image", "invalid", "status", Status.UNSUPPORTED.value, [no_image]),
        _single("truncated files", "invalid", "status", Status.TRUNCATED.value, [short]),
        _single("dark images", "quality", "is_dark_issue", True, [dark]),
        _single("blurry images", "quality", "is_blurry_issue", True, [blurry]),
        _single("grey images", "quality", "is_grey_issue", True, [grey]),
    ]


def _plant_copies(files: dict[str, bytes], piles: dict[str, list[str]], photos: dict[str, bytes]) -> list[Fact]:
    """Copies, most of them in another split than their original, which is always in train."""

    def copy(subject: str, folder: str, ending: str, change: Callable[[bytes], bytes] = bytes) -> tuple[str, str]:
        name = piles[subject].pop()
        original, copied = f"train/{subject}/{name}.jpg", f"{folder}/{name}_{ending}.jpg"
        files[original], files[copied] = photos[name], change(photos[name])
        return original, copied

    exact = [
        copy("tools", "test/tools", "again"),
        copy("buildings", "val/buildings", "again"),
        copy("fish", "train/fish", "again"),
    ]
    conflict = [copy("fish", "test/buildings", "again")]
    edited = [
        copy("buildings", "val/buildings", "small", _edit(_half)),
        copy("fish", "test/fish", "small", _edit(_half)),
        copy("tools", "test/tools", "jpeg", _edit(lambda image: image, quality=25)),
        copy("fish", "train/fish", "jpeg", _edit(lambda image: image, quality=25)),
        copy("buildings", "test/buildings", "crop", _edit(_crop)),
        copy("tools", "val/tools", "crop", _edit(_crop)),
        copy("fish", "val/fish", "mirror", _edit(_mirror)),
        copy("buildings", "train/buildings", "mirror", _edit(_mirror)),
    ]
    crossing = [pair for pair in exact + conflict + edited if pair[0].split("/")[0] != pair[1].split("/")[0]]
    return [
        Fact("exact copies", "duplicates", "kind", Kind.SAME_BYTES.value, tuple(exact + conflict)),
        Fact("resized, re-encoded, cropped and mirrored copies", "groups", None, None, tuple(edited)),
        Fact("leaks between splits", "leaks", None, None, tuple(crossing)),
        Fact("leaks under another label", "leaks", "is_label_conflict", True, tuple(conflict)),
    ]


def _single(name: str, table: str, column: str, value: object, uris: list[str]) -> Fact:
    return Fact(name, table, column, value, tuple((uri,) for uri in uris))


def _edit(change: Edit, quality: int = JPEG_QUALITY) -> Callable[[bytes], bytes]:
    def encoded(data: bytes) -> bytes:
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(data)) as image:
            change(image.convert("RGB")).save(buffer, format="JPEG", quality=quality)
        return buffer.getvalue()

    return encoded


def _half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2))


def _mirror(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((width // 10, height // 10, width - width // 10, height - height // 10))


def _rows(table: pa.Table, fact: Fact) -> pa.Table:
    if fact.column is not None:
        table = table.filter(pc.equal(table[fact.column], fact.value))
    if "kind" in table.column_names:
        joins = pc.is_in(table["kind"], pa.array(sorted(kind.value for kind in GROUPING_KINDS)))
        table = table.filter(pc.or_(joins, pc.is_null(table["kind"])))
    return table


def _count_found(rows: pa.Table, items: Iterable[tuple[str, ...]]) -> int:
    if "match_uri" in rows.column_names:
        pairs = {frozenset(pair) for pair in zip(*_columns(rows, "uri", "match_uri"), strict=True)}
        return sum(frozenset(item) in pairs for item in items)
    if "group_id" in rows.column_names:
        groups = dict(zip(*_columns(rows, "uri", "group_id"), strict=True))
        return sum(all(uri in groups and groups[uri] == groups[item[0]] for uri in item) for item in items)
    uris = _uris(rows)
    return sum(item[0] in uris for item in items)


def _uris(rows: pa.Table) -> set[str]:
    names = [name for name in ("uri", "match_uri") if name in rows.column_names]
    return {uri for name in names for uri in rows[name].to_pylist()}


def _columns(rows: pa.Table, *names: str) -> list[list[object]]:
    return [rows[name].to_pylist() for name in names]
