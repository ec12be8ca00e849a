"""Huge and broken EXIF, ICC and XMP beside an image: they say nothing about its pixels, and cost next to nothing."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import pipeline
from pipeline.kernels.measure import MeasureParams, measure
from pipeline.schemas import Status

PARAMS = MeasureParams()
DEMO_PHOTO = sorted((Path(pipeline.__file__).parent / "demo_photos").glob("*.jpg"))[0]
PHOTO = Image.open(DEMO_PHOTO).convert("RGB").resize((61, 47))


def pillow_file(format_name: str) -> Callable[..., bytes]:
    def save(**metadata: bytes) -> bytes:
        buffer = io.BytesIO()
        PHOTO.save(buffer, format_name, **metadata)
        return buffer.getvalue()

    return save


def heif_file(**metadata: bytes) -> bytes:
    buffer = io.BytesIO()
    image = PHOTO.copy()
    if "icc_profile" in metadata:
        image.info["icc_profile"] = metadata.pop("icc_profile")
    pillow_heif.from_pillow(image).save(buffer, quality=50, **metadata)
    return buffer.getvalue()


def tiff_file(**metadata: bytes) -> bytes:
    """XMP is tag 700; the EXIF of a TIFF is its own directory, and broken bytes can only stand in a maker's note."""
    tags = {700: metadata["xmp"]} if "xmp" in metadata else {37500: metadata["exif"]} if "exif" in metadata else {}
    buffer = io.BytesIO()
    PHOTO.save(buffer, "TIFF", tiffinfo=tags, **{name: metadata[name] for name in metadata if name == "icc_profile"})
    return buffer.getvalue()


FORMATS: dict[str, Callable[..., bytes]] = {
    "jpeg": pillow_file("JPEG"),
    "png": pillow_file("PNG"),
    "webp": pillow_file("WEBP"),
    "avif": pillow_file("AVIF"),
    "heif": heif_file,
    "tiff": tiff_file,
}
PLAIN = {name: measure(save(), PARAMS) for name, save in FORMATS.items()}
BROKEN = [
    b"II*\0",
    b"XX*\0\x08\0\0\0",
    b"II*\0\xff\xff\xff\xff",
    b"II*\0\x08\0\0\0\xff\xff",
    b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x0112, 3, 1, 77),
    b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x8769, 4, 1, 8),  # a directory inside itself
    b'<x:xmpmeta tiff:Orientation="9" \xff\xfe</rdf:RDF',
    b"\0" * 300,
    bytes(range(256)) * 4,
]


@pytest.mark.parametrize("kind", ["exif", "icc_profile", "xmp"])
@pytest.mark.parametrize("name", FORMATS)
def test_broken_metadata_leaves_the_image_as_it_is(
    name: str, kind: str, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    for block in BROKEN:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = with_block(name, kind, block)
        measured = measure(data, PARAMS)
        assert (measured.status, measured.message) == (Status.OK, "")
        assert measured.pixel_hash == PLAIN[name].pixel_hash
        assert (measured.width, measured.height) == (61, 47)
    assert capfd.readouterr().err == ""
    assert not recwarn.list


def with_block(name: str, kind: str, block: bytes) -> bytes:
    try:
        return FORMATS[name](**{kind: b"Exif\0\0" + block if kind == "exif" and name == "jpeg" else block})
    except (ValueError, SyntaxError, struct.error):  # its writer reads it; the place of a good block is overwritten
        return overwritten(name, block)


def overwritten(name: str, block: bytes) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "d" * 1200
    data = FORMATS[name](exif=exif.tobytes())
    place = data.index(b"d" * 1200) - 40
    start = max(data.rfind(b"II*\0", 0, place + 40), data.rfind(b"MM\0*", 0, place + 40))
    return data[:start] + block + data[start + len(block) :]


@pytest.mark.parametrize("name", FORMATS)
def test_ten_megabytes_of_metadata_are_passed_by(name: str, tmp_path: Path) -> None:
    """In a process of its own, which may take what the file has a few times over."""
    large = bytes(range(256)) * 40_000
    if name == "jpeg":  # a segment has 64 KB
        plain = FORMATS["jpeg"]()
        segment = b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)
        data = plain[:2] + segment * 160 + plain[2:]
    elif name == "avif":
        data = FORMATS[name](exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0" + large)
    else:
        data = FORMATS[name](exif=b"MM\0*\0\0\0\x08\0\0\0\0" + large)
    assert len(data) > 10_000_000
    (tmp_path / "large").write_bytes(data)
    script = """
import pathlib, sys
from pipeline.kernels.measure import MeasureParams, measure
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
data = pathlib.Path(sys.argv[1]).read_bytes()
measure(data[:2000], MeasureParams()), measure(pathlib.Path(sys.argv[2]).read_bytes(), MeasureParams())
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = peak()
measured = measure(data, MeasureParams())
print(measured.status.value, measured.pixel_hash.hex(), peak() - before)
"""
    plain_file = tmp_path / "plain"
    plain_file.write_bytes(FORMATS[name]())
    arguments = [sys.executable, "-c", script, str(tmp_path / "large"), str(plain_file)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    status, pixels, taken = run.stdout.split()
    assert PLAIN[name].pixel_hash is not None
    assert (status, pixels, run.stderr) == ("ok", PLAIN[name].pixel_hash.hex(), "")
    assert int(taken) < 6 * len(data) / 1000


def piled(count: int, size: int) -> bytes:
    """An EXIF block of `count` tags, the values of all of them the same `size` bytes, and the orientation 6."""
    tags = [struct.pack("<HHII", 0x0112, 3, 1, 6)]
    tags += [struct.pack("<HHII", 0x0200 + number, 7, size, 8) for number in range(count)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4) + bytes(size)


def jpeg_of_four_inks(block: bytes) -> bytes:
    buffer = io.BytesIO()
    PHOTO.convert("CMYK").save(buffer, "JPEG")
    plain = buffer.getvalue()
    parts = [block[start : start + 65_000] for start in range(0, len(block), 65_000)]
    segments = [b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts]
    return plain[:2] + b"".join(segments) + plain[2:]


def png_by_imagemagick(block: bytes) -> bytes:
    text = PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(block)}\n" + block.hex())
    buffer = io.BytesIO()
    PHOTO.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("save", "size"),
    [
        (lambda block: FORMATS["webp"](exif=block), 1_000_000),
        (lambda block: FORMATS["png"](exif=block), 1_000_000),
        (jpeg_of_four_inks, 1_000_000),
        (png_by_imagemagick, 20_000),
    ],
)
def test_values_that_lie_on_top_of_each_other_are_not_copied(
    save: Callable[[bytes], bytes], size: int, tmp_path: Path
) -> None:
    """20,000 tags of 1 MB would be 20 GB; the orientation among them counts."""
    (tmp_path / "piled").write_bytes(save(piled(20_000, size)))
    script = """
import pathlib, resource, sys
from PIL import Image
from pipeline.kernels.measure import MeasureParams, measure
Image.init()
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
measured = measure(pathlib.Path(sys.argv[1]).read_bytes(), MeasureParams())
print(measured.status.value, measured.width, measured.height, measured.message)
"""
    arguments = [sys.executable, "-c", script, str(tmp_path / "piled")]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["ok", "47", "61"]


def test_tiff_values_that_lie_on_top_of_each_other_are_refused() -> None:
    entries = b"".join(struct.pack("<HHII", 256 + number, 7, 1_000_000, 8) for number in range(2000))
    data = struct.pack("<2sHI", b"II", 42, 1_000_008) + bytes(1_000_000) + struct.pack("<H", 2000) + entries + bytes(4)
    measured = measure(data, PARAMS)
    assert (measured.status, "on top of each other" in measured.message) == (Status.UNREADABLE, True)
