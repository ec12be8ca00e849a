"""Broken, cut off, hostile and odd files: each has a status, nothing raises, nothing large is allocated."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pipeline
from pipeline.kernels.measure import Measured, MeasureParams, measure
from pipeline.schemas import TRANSIENT, Status

PARAMS = MeasureParams()
BAD = {Status.TRUNCATED, Status.UNREADABLE}
DEMO_PHOTO = sorted((Path(pipeline.__file__).parent / "demo_photos").glob("*.jpg"))[0]
PHOTO = Image.open(DEMO_PHOTO).convert("RGB").resize((61, 47))


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def heif(mode: str, pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    made = pillow_heif.from_bytes(mode, pixels.shape[1::-1], pixels.tobytes())
    made.save(buffer, quality=50, **options)
    return buffer.getvalue()


def written(extension: str, pixels: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(extension, pixels, options)[1].tobytes()


LEVELS = np.asarray(PHOTO)
DEEP = LEVELS.astype(np.uint16) * 257
EXIF = Image.Exif()
EXIF[0x0112] = 6
FRAMES = {"save_all": True, "append_images": [PHOTO.rotate(90), PHOTO.rotate(180)]}
FILES = {
    "jpeg": encoded(PHOTO, "JPEG", exif=EXIF.tobytes()),
    "jpeg_progressive": encoded(PHOTO, "JPEG", progressive=True),
    "jpeg_cmyk": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "png": encoded(PHOTO, "PNG", exif=EXIF.tobytes()),
    "png_16": written(".png", DEEP),
    "apng": encoded(PHOTO, "PNG", **FRAMES),
    "webp": encoded(PHOTO, "WEBP", exif=EXIF.tobytes()),
    "webp_animated": encoded(PHOTO, "WEBP", **FRAMES),
    "bmp": encoded(PHOTO, "BMP"),
    "gif": encoded(PHOTO, "GIF"),
    "gif_animated": encoded(PHOTO, "GIF", **FRAMES),
    "tiff": encoded(PHOTO, "TIFF"),
    "tiff_pages": encoded(PHOTO, "TIFF", compression="tiff_lzw", **FRAMES),
    "tiff_16": written(".tiff", DEEP),
    "tiff_real": written(".tiff", LEVELS.astype(np.float32)),
    "tiff_jpeg": encoded(PHOTO, "TIFF", compression="jpeg"),
    "tiff_group4": encoded(PHOTO.convert("1"), "TIFF", compression="group4"),
    "ppm": encoded(PHOTO, "PPM"),
    "jpeg2000": encoded(PHOTO, "JPEG2000"),
    "jpeg2000_stream": encoded(PHOTO, "JPEG2000", no_jp2=True, irreversible=True),
    "heif": heif("RGB", LEVELS, exif=EXIF.tobytes()),
    "heif_10": heif("RGB;16", DEEP),
    "heif_tiles": heif("RGB", np.tile(LEVELS, (4, 4, 1)), tile_size=128),
    "avif": encoded(PHOTO, "AVIF", exif=EXIF.tobytes()),
    "avif_10": written(".avif", DEEP >> 6, cv2.IMWRITE_AVIF_DEPTH, 10),
    "hdr": written(".hdr", LEVELS.astype(np.float32) ** 2),
    "hdr_flat": written(".hdr", LEVELS.astype(np.float32), cv2.IMWRITE_HDR_COMPRESSION, 0),
    "pfm": written(".pfm", LEVELS.astype(np.float32)),
    "pam": written(".pam", LEVELS),
    "sun": written(".ras", LEVELS),
}


def assert_bad(measured: Measured, statuses: set[Status]) -> None:
    assert measured.status in statuses, measured.message
    assert measured.message
    assert measured.content_hash is None or len(measured.content_hash) == 16
    assert (measured.pixel_hash, measured.model_input, measured.signature) == (None, None, None)


@pytest.mark.parametrize("name", FILES)
def test_the_whole_file_is_ok(name: str) -> None:
    measured = measure(FILES[name], PARAMS)
    assert (measured.status, measured.message) == (Status.OK, "")
    assert measured.model_input is not None
    assert measured.model_input.shape == (160, 160, 3)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_anywhere_is_never_ok(name: str) -> None:
    data = FILES[name]
    cuts = {len(data) * share // 40 for share in range(40)} | {len(data) - last for last in range(1, 25)}
    for cut in sorted(cuts - {0}):
        measured = measure(data[:cut], PARAMS)
        if name == "tiff_pages" and not any(data[cut:]):  # Pillow pads the last page: nothing is lost
            continue
        wanted = BAD | ({Status.UNSUPPORTED} if cut < 64 else set())  # the first bytes name no format yet
        assert_bad(measured, wanted)
    assert measure(data[: len(data) // 2], PARAMS).status in BAD


def test_a_jpeg2000_cut_before_its_codestream_is_truncated() -> None:
    """A box of an impossible length before it is none that was cut."""
    data = FILES["jpeg2000"]
    for cut in range(12, data.index(b"jp2c") + 60):
        assert_bad(measure(data[:cut], PARAMS), {Status.TRUNCATED})
    assert_bad(measure(data[:12] + b"\0\0\0\2" + data[16:], PARAMS), {Status.UNREADABLE})


@pytest.mark.parametrize("name", ["jpeg", "jpeg_progressive", "png", "webp", "gif", "bmp", "tiff"])
def test_bytes_after_the_end_do_no_harm(name: str) -> None:
    longer = measure(FILES[name] + b"trailing garbage" * 50, PARAMS)
    assert longer.status is Status.OK
    assert longer.pixel_hash == measure(FILES[name], PARAMS).pixel_hash


def test_a_jpeg_cut_in_the_middle_and_closed_again_is_truncated(capfd: pytest.CaptureFixture[str]) -> None:
    measured = measure(FILES["jpeg"][: len(FILES["jpeg"]) * 2 // 3] + b"\xff\xd9", PARAMS)
    assert_bad(measured, {Status.TRUNCATED})
    assert capfd.readouterr().err == ""


def test_a_thumbnail_in_the_exif_does_not_end_the_image() -> None:
    """Its end marker stands before the first scan of the image that is cut off."""
    plain = FILES["jpeg_progressive"]
    payload = b"Exif\0\0" + FILES["jpeg"]
    data = plain[:2] + b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload + plain[2:]
    assert measure(data, PARAMS).status is Status.OK
    assert_bad(measure(data[: len(payload) + 900], PARAMS), {Status.TRUNCATED})


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.integers(0, 40),
)
def test_flipped_bytes_never_raise(name: str, flips: list[tuple[float, int]], near_start: int) -> None:
    data = bytearray(FILES[name])
    for index, (place, value) in enumerate(flips):
        data[near_start + index if index % 2 else int(place * len(data))] = value
    measured = measure(bytes(data), PARAMS)
    assert isinstance(measured.status, Status)
    assert measured.status not in TRANSIENT
    assert (measured.status is Status.OK) == (measured.model_input is not None)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([data[:n] for data in FILES.values() for n in (2, 4, 12, 30, 64)]), st.binary(max_size=200))
def test_arbitrary_bytes_never_raise(head: bytes, tail: bytes) -> None:
    assert isinstance(measure(head + tail, PARAMS).status, Status)


def test_nothing_reaches_standard_error(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    rng = np.random.default_rng(3)
    for data in FILES.values():
        for _ in range(12):
            broken = bytearray(data)
            for place in rng.integers(len(data) // 4, len(data), 4):
                broken[place] = rng.integers(256)
            measure(bytes(broken), PARAMS)
    assert capfd.readouterr().err == ""
    assert not recwarn.list


def png_chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def png(width: int, height: int, *extra: bytes) -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + pixels + png_chunk(b"IEND", b"")


def tiff(width: int, height: int) -> bytes:
    tags = [(256, width), (257, height), (258, 8), (259, 5), (262, 1), (273, 8), (277, 1), (278, height), (279, 2)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI2xH", b"II", 42, 10, len(tags)) + entries + b"\0" * 4


def resized(name: str, mark: bytes) -> bytes:
    """A file that says 65,000 x 65,000 four bytes behind each `mark`, where it says its sides."""
    return re.sub(
        b"(" + re.escape(mark) + b"....)........",
        rb"\1" + struct.pack(">II", 65_000, 65_000),
        FILES[name],
        flags=re.DOTALL,
    )


def tiff_of_one_tile() -> bytes:
    """100 x 100 pixels in a tile of 65,008 x 65,008."""
    tags = [(256, 100), (257, 100), (258, 8), (259, 5), (262, 1), (277, 1), (322, 65_008), (323, 65_008)]
    tags += [(324, 8), (325, 2)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI2xH", b"II", 42, 10, len(tags)) + entries + b"\0" * 4


BOMBS = {
    "png": png(65_000, 65_000),
    "webp": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xe7\xfd\0" * 2 + b"ANIM\0\0\0\0",
    "webp_lossless": b"RIFF\x12\0\0\0WEBPVP8L\x05\0\0\0\x2f" + struct.pack("<I", 16_383 | 16_383 << 14) + b"\0",
    "bmp": struct.pack("<2sI4xIIiiHH24x", b"BM", 54, 54, 40, 65_000, 65_000, 1, 24),
    "bmp_rle": struct.pack("<2sI4xIIiiHHI20x", b"BM", 54, 54, 40, 65_000, -65_000, 1, 8, 1),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 65_000, 65_000, 0, 0, 0) + b"\x3b",
    "tiff": tiff(65_000, 65_000),
    "jpeg": FILES["jpeg"].replace(struct.pack(">HH", 47, 61), struct.pack(">HH", 65_000, 65_000)),
    "ppm": b"P6 65000 65000 255\n" + bytes(1000),
    "jpeg2000": FILES["jpeg2000"].replace(struct.pack(">II", 61, 47), struct.pack(">II", 65_000, 65_000)),
    "jpeg2000_stream": resized("jpeg2000_stream", b"\xff\x51"),
    "heif": resized("heif", b"ispe"),
    "heif_10": resized("heif_10", b"ispe"),
    "heif_tiles": resized("heif_tiles", b"ispe"),
    "avif": resized("avif", b"ispe"),
    "avif_10": resized("avif_10", b"ispe"),
    "hdr": FILES["hdr"].replace(b"-Y 47 +X 61", b"-Y 65000 +X 65000"),
    "pfm": FILES["pfm"].replace(b"61 47", b"65000 65000"),
    "pam": FILES["pam"].replace(b"WIDTH 61", b"WIDTH 65000").replace(b"HEIGHT 47", b"HEIGHT 65000"),
    "sun": FILES["sun"][:4] + struct.pack(">II", 65_000, 65_000) + FILES["sun"][12:],
    "tiff_tile": tiff_of_one_tile(),
}


@pytest.mark.parametrize("name", BOMBS)
def test_the_size_is_checked_before_anything_is_decoded(name: str) -> None:
    measured = measure(BOMBS[name], PARAMS)
    assert_bad(measured, {Status.TOO_LARGE})
    assert measured.format == name.partition("_")[0]


def test_bombs_allocate_nothing(tmp_path: Path) -> None:
    """In a process of its own that may not grow by more than 300 MB."""
    for name, data in BOMBS.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "text").write_bytes(png(50, 50, png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(400_000_000), 1))))
    script = """
import pathlib, resource, sys
from PIL import Image
from pipeline.kernels.measure import MeasureParams, measure
Image.init()
measure(b"BM", MeasureParams())
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    print(path.name, measure(path.read_bytes(), MeasureParams()).status.value)
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    statuses = dict(line.split() for line in run.stdout.splitlines())
    assert len(statuses) == len(BOMBS) + 1
    assert set(statuses.values()) <= {"too_large", "unreadable", "truncated"}


@pytest.mark.parametrize(
    ("size", "status"),
    [
        ((1, 1), Status.TOO_SMALL),
        ((9, 9), Status.TOO_SMALL),
        ((9, 500), Status.TOO_SMALL),
        ((500, 1), Status.TOO_SMALL),
        ((10, 10), Status.OK),
        ((10, 3000), Status.OK),
    ],
)
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "PPM"])
def test_small_sizes(format_name: str, size: tuple[int, int], status: Status) -> None:
    measured = measure(encoded(PHOTO.resize(size), format_name), PARAMS)
    assert measured.status is status
    assert (measured.width, measured.height) == size


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_width_and_height_have_minima_of_their_own_of_the_upright_image(format_name: str) -> None:
    stored = PHOTO.resize((30, 20))
    turned = {"tiffinfo": {274: 6}} if format_name == "TIFF" else {"exif": EXIF}
    plain, upright = encoded(stored, format_name), encoded(stored, format_name, **turned)
    for data, minima, status in (
        (plain, (30, 20), Status.OK),
        (plain, (20, 30), Status.TOO_SMALL),
        (upright, (20, 30), Status.OK),
        (upright, (30, 20), Status.TOO_SMALL),
        (upright, (21, 1), Status.TOO_SMALL),
    ):
        measured = measure(data, MeasureParams(min_width=minima[0], min_height=minima[1]))
        assert measured.status is status, measured.message
        assert (measured.width, measured.height) == ((30, 20) if data is plain else (20, 30))
        assert status is Status.OK or f"{measured.width}x{measured.height} pixels, at least" in measured.message


def test_empty_text_and_unknown_formats() -> None:
    empty = measure(b"", PARAMS)
    assert (empty.status, empty.content_hash) == (Status.EMPTY, None)
    for data in (b"not an image", b"\0", b"%PDF-1.7", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"PK\3\4"):
        assert_bad(measure(data, PARAMS), {Status.UNSUPPORTED})


def test_pixels_without_8_bit_colours_are_unsupported() -> None:
    integers = Image.fromarray(np.arange(1600, dtype=np.int32).reshape(40, 40) * 1000)
    assert_bad(measure(encoded(integers, "TIFF"), PARAMS), {Status.UNSUPPORTED})
    start = FILES["jpeg"].index(b"\xff\xc0")
    twelve = FILES["jpeg"][: start + 4] + b"\x0c" + FILES["jpeg"][start + 5 :]
    assert_bad(measure(twelve, PARAMS), {Status.UNSUPPORTED})


def exif_jpeg(block: bytes) -> bytes:
    payload = b"Exif\0\0" + block
    plain = FILES["jpeg_progressive"]
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + plain[2:]


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II*\0",
        b"XX*\0\x08\0\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x0112, 3, 1, 77),
        b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x0112, 12, 1, 6),
        b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x0112, 3, 0xFFFFFFFF, 6),
        b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0x0201, 4, 1, 0xFFFFFFF0),
        bytes(65_000),
    ],
)
def test_broken_exif_leaves_the_image_as_it_is(block: bytes) -> None:
    measured = measure(exif_jpeg(block), PARAMS)
    assert (measured.status, measured.width, measured.height) == (Status.OK, 61, 47)
    assert measured.pixel_hash == measure(FILES["jpeg_progressive"], PARAMS).pixel_hash


def test_tiff_directories_inside_each_other_are_not_walked_for_ever() -> None:
    """1,000 directories of 65,000 entries in one megabyte, each of which leads to one four bytes further on."""
    count, first = 65_000, 8
    data = bytearray(struct.pack("<2sHI", b"II", 42, first) + struct.pack("<HH", count, 0) * 1000 + bytes(12 * count))
    for number in range(1000):
        end = first + 4 * number + 2 + 12 * count
        data[end : end + 4] = struct.pack("<I", first + 4 * number + 4)
    measured = measure(bytes(data), PARAMS)
    assert_bad(measured, {Status.UNREADABLE})
    assert "directories" in measured.message
    one_tag = struct.pack("<HHII", 273, 4, 900_000, 8)
    repeated = struct.pack("<2sHIH", b"II", 42, 8, 60_000) + one_tag * 60_000 + bytes(4_000_000)
    assert_bad(measure(repeated, PARAMS), BAD)


@pytest.mark.parametrize("offset", [2**63, 2**64 - 1, 2**63 - 1, 2**40])
def test_offsets_of_64_bits_lead_out_of_the_file(offset: int) -> None:
    for order, magic in (("<", b"II+\0"), (">", b"MM\0+")):
        data = magic + struct.pack(order + "HHQ", 8, 0, offset) + bytes(500)
        assert_bad(measure(data, PARAMS), {Status.TRUNCATED})
        entries = struct.pack(order + "QHHQQ", offset, 256, 16, offset, offset)
        data = magic + struct.pack(order + "HHQ", 8, 0, 16) + entries + bytes(500)
        assert_bad(measure(data, PARAMS), BAD)


def test_a_scale_of_a_thousand_digits_is_no_pfm() -> None:
    assert_bad(measure(b"PF\n20 20\n-" + b"1" * 60_000 + b"x" + bytes(5000), PARAMS), {Status.UNREADABLE})


def test_many_exif_segments_are_walked() -> None:
    data = FILES["jpeg_progressive"]
    segment = b"\xff\xe1\xff\xff" + bytes(65_533)
    assert measure(data[:2] + segment * 64 + data[2:], PARAMS).status is Status.OK


def test_measuring_works_without_standard_error() -> None:
    """A daemon may have closed it; then warnings have nowhere to go and are not asked for."""
    script = (
        "import os, sys; from pipeline.kernels.measure import MeasureParams, measure; os.close(2);"
        f"print(measure(open({str(DEMO_PHOTO)!r}, 'rb').read(), MeasureParams()).status.value)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "ok"
