"""Every format in one audit: read by what is in it, lossless copies found as the same pixels, what is unread named."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pyarrow.parquet as pq
import pytest
from audited import by_uri, rows, run, write_files
from PIL import Image

import pipeline
from pipeline.api import Audit

FIRST, SECOND, *OTHERS = (
    Image.open(path).convert("RGB").resize((240, 160))
    for path in sorted((Path(pipeline.__file__).parent / "demo_photos").glob("*.jpg"))[:9]
)
REAL = (np.asarray(SECOND)[:, :, ::-1].astype(np.float32) / 255) ** 2.2


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def heic(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, **options)
    return buffer.getvalue()


SAME = {
    "a.png": encoded(FIRST, "PNG"),
    "b.BMP": encoded(FIRST, "BMP"),
    "c.tif": encoded(FIRST, "TIFF", compression="tiff_lzw"),
    "d.tiff": encoded(FIRST, "TIFF"),
    "e.webp": encoded(FIRST, "WEBP", lossless=True),
    "f.jp2": encoded(FIRST, "JPEG2000", irreversible=False),
    "g.j2k": encoded(FIRST, "JPEG2000", irreversible=False, no_jp2=True),
    "h.jpx": encoded(FIRST, "JPEG2000", irreversible=False),
}
CLOSE = {
    "i.jpg": encoded(FIRST, "JPEG", quality=92),
    "j.heic": heic(FIRST, quality=90),
    "k.HEIF": heic(FIRST, quality=-1, chroma=444),
    "l.avif": encoded(FIRST, "AVIF", quality=90),
    "m.jfif": encoded(FIRST, "JPEG", quality=85),
    "n.gif": encoded(FIRST.quantize(256), "GIF"),
    "o.giff": encoded(FIRST.quantize(250), "GIF"),
}
BRIGHT = {
    "p.png": encoded(SECOND, "PNG"),
    "q.jpg": cv2.imencode(".hdr", REAL)[1].tobytes(),  # a name says nothing
}
INVALID = {
    "r.jpg": (b"just text", "unsupported"),
    "s.heic": (heic(SECOND)[:-50], "truncated"),
    "t.png": (b"%PDF-1.7 and more", "unsupported"),
    "u.jp2": (b"", "empty"),
    "v.avif": (encoded(SECOND.resize((300, 9)), "AVIF"), "too_small"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@pytest.fixture(scope="module")
def audited(folder: Path) -> Audit:
    others = {f"z{number}.png": encoded(image, "PNG") for number, image in enumerate(OTHERS)}
    invalid = {name: data for name, (data, _) in INVALID.items()}
    photos = write_files(folder / "photos", {**SAME, **CLOSE, **BRIGHT, **invalid, **others})
    return run(photos, root=folder / "audit")


def test_files_are_read_by_what_is_in_them(audited: Audit, folder: Path) -> None:
    features = pq.read_table(*folder.glob("audit/features/*/rows-*.parquet")).to_pylist()
    uris = {row["image_id"]: uri for uri, row in by_uri(audited, "images").items()}
    formats = {uris[row["image_id"]]: row["format"] for row in features}
    assert {formats[uri] for uri in SAME} == {"png", "bmp", "tiff", "webp", "jpeg2000"}
    assert [formats[uri] for uri in CLOSE] == ["jpeg", "heif", "heif", "avif", "jpeg", "gif", "gif"]
    assert [formats[uri] for uri in BRIGHT] == ["png", "hdr"]
    assert {row["uri"]: row["status"] for row in rows(audited, "invalid")} == {
        uri: status for uri, (_, status) in INVALID.items()
    }


def test_copies_are_found_across_formats(audited: Audit) -> None:
    groups = by_uri(audited, "groups")
    assert len({groups[uri]["group_id"] for uri in [*SAME, *CLOSE]}) == 1
    kinds = {(row["uri"], row["match_uri"]): row["kind"] for row in rows(audited, "duplicates")}
    assert {kind for (_, other), kind in kinds.items() if other in SAME} == {"same_pixels"}
    assert {kind for (_, other), kind in kinds.items() if other in CLOSE} == {"near_identical"}
    assert groups["p.png"]["group_id"] == groups["q.jpg"]["group_id"] != groups["a.png"]["group_id"]
