"""Extraction from archives beside the same photos as loose files, on disk.

python benchmarks/archives.py --data DIR [--images 4000] [--turns 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.command import Found, carry_out
from benchmarks.product import extract_once, photos_of
from benchmarks.report import Owed, at_least, say

LOOSE = "loose"
Photos = Iterable[tuple[str, bytes]]


def write_loose(folder: Path, photos: Photos) -> None:
    """Each photo as a file."""
    for name, data in photos:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_tar(folder: Path, photos: Photos) -> None:
    """One tar of all."""
    _tar(folder / "photos.tar", "w", photos)


def write_tgz(folder: Path, photos: Photos) -> None:
    """One packed tar of all."""
    _tar(folder / "photos.tgz", "w:gz", photos)


def _tar(path: Path, mode: str, photos: Photos) -> None:
    with tarfile.open(str(path), mode) as archive:  # type: ignore[call-overload]
        for name, data in photos:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def write_zip(folder: Path, photos: Photos) -> None:
    """One deflated zip of all."""
    with zipfile.ZipFile(folder / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in photos:
            archive.writestr(name, data)


WRITERS: dict[str, Callable[[Path, Photos], None]] = {
    LOOSE: write_loose, "tar": write_tar, "tgz": write_tgz, "zip": write_zip,
}  # fmt: skip


def measure(options: argparse.Namespace, work: Path) -> Found:
    """Each kind turn by turn, every time in a fresh root; the better of each counts."""
    found: Found = {kind: [] for kind in WRITERS}
    photos = photos_of(options.data, options.images)
    for kind, write in WRITERS.items():
        (work / kind).mkdir()
        write(work / kind, ((str(path.relative_to(options.data)), path.read_bytes()) for path in photos))
    for turn in range(options.turns):
        for kind, runs in found.items():
            say(f"extracting {kind}")
            runs.append(extract_once(work / f"root-{kind}-{turn}", str(work / kind), "--runner", options.runner))
    return found


def details(found: Found) -> str:
    """The extractions as lines."""
    return "\n".join(
        f"{kind:>6}: {one['ok']:.0f} images, {one['images_per_second']:.0f} images/s, "
        f"{one['cpu_ms_per_image']:.2f} ms CPU an image, {one['peak_bytes'] / 1e6:.0f} MB"
        for kind, runs in found.items()
        for one in runs
    )


def owed(found: Found) -> list[Owed]:
    """Archives against loose files, by wall clock and by CPU."""
    lines = []
    for kind in [kind for kind in found if kind != LOOSE]:
        limit = 0.95 if kind == "tar" else 0.9
        for what, name in (("images/s", "seconds"), ("CPU", "cpu_seconds")):
            best, loose = (min(float(one[name]) for one in found[of]) for of in (kind, LOOSE))
            lines.append(at_least(f"{kind} over loose files, {what}", limit, loose / best))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with photos, searched for .jpg")
    parser.add_argument("--images", type=int, default=4000, help="photos at most (default 4,000)")
    parser.add_argument("--turns", type=int, default=2, help="extractions of each kind, the better of which counts")
    parser.add_argument("--runner", default="auto", choices=("auto", "local", "ray"))
    parser.add_argument("--work", type=Path, help="folder for everything that is made, kept (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.set_defaults(peer=None)
    carry_out("archives", parser.parse_args(), measure, details, owed)


if __name__ == "__main__":
    main()
