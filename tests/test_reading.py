"""What is read of a source: no file over the limit, few bytes ahead, and no other bytes than were extracted."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audited import by_uri, half_size, rows, run, small_set, write_files
from PIL import Image

from pipeline.audit import Audit, summary_lines
from pipeline.kernels.crop import BoxParams
from pipeline.kernels.measure import MeasureParams
from pipeline.layout.images import ImageObject
from pipeline.layout.pixels import Cutting
from pipeline.layout.root import Root
from pipeline.plan import searching
from pipeline.stages import reads
from pipeline.storage import StorageConfig, open_store
from pipeline.storage.ahead import BYTES_AHEAD
from pipeline.storage.counts import request_counts


def peak_bytes() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def test_a_file_over_the_limit_is_never_read(tmp_path: Path) -> None:
    """3 GB of a hole with a photo's header in front."""
    photos = small_set(12)
    folder = write_files(tmp_path / "photos", photos)
    (folder / "huge.jpg").write_bytes(photos["train/a/a00.jpg"])
    os.truncate(folder / "huge.jpg", 3 * 10**9)
    before = request_counts().bytes_read
    audit = run(folder, root=tmp_path / "root")
    assert request_counts().bytes_read - before < 10**9
    refused = by_uri(audit, "invalid")["huge.jpg"]
    assert refused["status"] == "too_large"
    assert "3,000,000,000 bytes" in refused["message"]
    assert "raise measure.max_bytes" in refused["message"]


def test_the_limit_is_a_key(tmp_path: Path) -> None:
    photos = small_set(12)
    sizes = sorted({len(data) for data in photos.values()})
    limit = sizes[len(sizes) // 2]
    folder = write_files(tmp_path / "photos", photos)
    audit = run(folder, root=tmp_path / "root", measure={"max_bytes": limit})
    refused = {row["uri"] for row in rows(audit, "invalid") if row["status"] == "too_large"}
    assert refused == {uri for uri, data in photos.items() if len(data) > limit}


def test_few_bytes_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 objects of 10 MB and one over the budget, as from a remote source: in order, and not 290 MB at once.

    80 to 95 MB are seen: the budget, the one in use, and what malloc keeps for threads that freed it.
    """
    sizes = [10_000_000] * 12 + [BYTES_AHEAD + 1_000_000] + [10_000_000] * 12
    for at, size in enumerate(sizes):
        (tmp_path / f"{at:02}.jpg").write_bytes(bytes([at]))
        os.truncate(tmp_path / f"{at:02}.jpg", size)
    wanted = [ImageObject(str(tmp_path), info) for info in open_store(tmp_path).list()]
    monkeypatch.setattr(reads, "is_remote", lambda _: True)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    root = Root(str(tmp_path / "root"), StorageConfig())
    params = MeasureParams()
    first = [data[:1] for data in reads.read_images(root, wanted, params.max_bytes, Cutting(params, BoxParams()))]
    assert first == [bytes([at]) for at in range(len(sizes))]
    assert peak_bytes() - before < 130_000_000


def audited_with(meanwhile: Callable[[Path], None], folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Audit:
    """An audit during which something happens to the folder after extraction and before pixels are compared."""
    verify = searching.verify_pairs

    def then(*arguments: Any) -> str:
        meanwhile(folder)
        return verify(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(searching, "verify_pairs", then)
        return run(folder, root=root)


def verdict(audit: Audit) -> tuple[str, bool]:
    (found,) = (row for row in rows(audit, "duplicates") if {row["uri"], row["match_uri"]} == PAIR)
    return found["kind"], found["is_verified"]


PAIR = {"train/b/b00.jpg", "val/b/half.jpg"}


def test_another_image_of_the_same_size_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The half of a photo becomes an unrelated picture of as many bytes between extraction and comparison."""
    photos = small_set(12)
    with Image.open(io.BytesIO(photos["train/b/b00.jpg"])) as image:
        crop = image.crop((25, 15, image.width - 25, image.height - 15))
        buffer = io.BytesIO()
        crop.save(buffer, "JPEG", quality=90)
    photos["val/b/half.jpg"] = buffer.getvalue()
    other = half_size(half_size(photos["train/a/a00.jpg"]))
    assert len(other) < len(photos["val/b/half.jpg"])

    def swap(folder: Path) -> None:
        (folder / "val/b/half.jpg").write_bytes(other.ljust(len(photos["val/b/half.jpg"]), b"\0"))

    folder = write_files(tmp_path / "photos", photos)
    assert verdict(audited_with(lambda _: None, folder, tmp_path / "as it is", monkeypatch)) == ("edited", True)
    swapped = audited_with(swap, folder, tmp_path / "swapped", monkeypatch)
    assert not verdict(swapped)[1]
    assert swapped.summary()["duplicates"]["unread"] >= 1
    assert summary_lines(swapped.summary())[1].endswith("could not be compared")


def test_a_touched_file_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the comparison, and before a later audit, whose catalog keeps the row and the times of the first."""
    folder = write_files(tmp_path / "photos", small_set(12))

    def touch(folder: Path) -> None:
        for at, path in enumerate(sorted(folder.rglob("*.jpg"))):
            os.utime(path, ns=(10**18 + at, 10**18 + at))

    touched = audited_with(touch, folder, tmp_path / "root", monkeypatch)
    assert verdict(touched)[1]
    again = run(folder, root=tmp_path / "root", verify={"skip_similarity": 0.96})
    assert verdict(again) == verdict(touched)
