"""Sources without an image left: refused with advice that works, on disk and object stores, in ranges and at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from audited import noise_jpeg, rows, run, write_files
from held import ended, start
from s3_servers import moto_port, new_store, use_credentials

import pipeline
from pipeline.cli import main
from pipeline.layout.snapshots import latest_snapshot
from pipeline.storage import open_store

FILES = {f"{number}.jpg": noise_jpeg(number) for number in range(4)}
REFUSED = "no image is left of the 4 that the root "
ADVICE = "say --accept-empty (accept_empty) where it was emptied on purpose"


def two_sources(folder: Path) -> list[str]:
    return [str(write_files(folder / name, FILES)) for name in ("stays", "goes")]


def call(sources: list[str], root: Path, *more: str) -> list[str]:
    return ["run", *sources, "--root", str(root), "--runner", "local", *more]


def live(root: Path) -> int:
    return latest_snapshot(open_store(root)).live


@pytest.mark.parametrize("keeps_folder", [True, False])
def test_emptied_or_deleted_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], keeps_folder: bool) -> None:
    """Either is refused with the number of images at stake; accepted once it is so for good, also without the flag."""
    sources, root = two_sources(tmp_path), tmp_path / "audit"
    run(*sources, root=root)
    shutil.rmtree(sources[1])
    if keeps_folder:
        Path(sources[1]).mkdir()
    assert main(call(sources, root, "--quiet")) == 3
    said = capsys.readouterr().err
    assert f"{sources[1]}: {REFUSED}" in said
    assert ADVICE in said
    assert live(root) == 8
    assert main(call(sources, root, "--quiet", "--accept-empty")) == 0
    assert main(call(sources, root, "--quiet")) == 0
    assert (live(root), len([*root.glob("audits/*")])) == (4, 2)
    write_files(Path(sources[1]), FILES)
    assert {row["image_id"] for row in rows(run(*sources, root=root), "images")} == {0, 1, 2, 3, 8, 9, 10, 11}


def test_emptied_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An object store has no empty folders: the prefix goes with its last object, and that can be accepted too."""
    use_credentials(monkeypatch)
    store, root = new_store(moto_port(), "photos"), tmp_path / "audit"
    for name, data in FILES.items():
        store.put(name, data)
    words = call([store.uri], root, "--region", "us-east-1", "--quiet")
    assert main(words) == 0
    for name in FILES:
        store.delete(name)
    assert main(words) == 3
    said = capsys.readouterr().err
    assert f"{store.uri}: {REFUSED}" in said
    assert ADVICE in said
    assert main([*words, "--accept-empty"]) == 0
    assert main(words) == 0
    assert live(root) == 0


@pytest.mark.slow
def test_emptied_source_in_ranges(tmp_path: Path) -> None:
    """The first process of a range accepts it for all that follow, and the printed command finishes the audit."""
    sources, root = two_sources(tmp_path), tmp_path / "audit"
    run(*sources, root=root)
    shutil.rmtree(sources[1])
    write_files(Path(sources[0]), {"new.jpg": noise_jpeg(9)})
    assert REFUSED in ended(start(call(sources, root, "--min-offset", "4")), code=3)
    said = ended(start(call(sources, root, "--min-offset=4", "--max-offset=8", "--accept-empty")))
    assert "offsets [4, 8) of snapshot 2 (9 images) are extracted (all were removed)" in said
    ended(start(call(sources, root, "--min-offset", "8")))
    ended(start(call(sources, root)))
    assert pipeline.open(root).table("images").num_rows == 5


def test_emptied_source_of_two_audits_at_once(tmp_path: Path) -> None:
    """Whichever of both comes first: who accepts it ends well, who does not is refused or finds it accepted."""
    sources, root = two_sources(tmp_path), tmp_path / "audit"
    run(*sources, root=root)
    shutil.rmtree(sources[1])
    accepting, refusing = start(call(sources, root, "--accept-empty")), start(call(sources, root))
    ended(accepting)
    said = refusing.communicate()[0]
    assert refusing.returncode == (3 if REFUSED in said else 0)
    ended(start(call(sources, root)))
    assert pipeline.open(root).table("images").num_rows == 4
    assert latest_snapshot(open_store(root)).number == 2
