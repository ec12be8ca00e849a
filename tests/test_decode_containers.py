"""HEIF, AVIF and JPEG 2000: upright pixels at their own depth, the primary image, and what a missing decoder says."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

import pipeline
from pipeline.kernels.decode import decode, decode_rgb, luminance_thumbnail
from pipeline.kernels.header import read_header, sniff
from pipeline.kernels.measure import MeasureParams, measure
from pipeline.schemas import Status

PARAMS = MeasureParams()
DEMO_PHOTO = sorted((Path(pipeline.__file__).parent / "demo_photos").glob("*.jpg"))[0]
PHOTO = Image.open(DEMO_PHOTO).convert("RGB").resize((130, 98))
DEEP = np.random.default_rng(2).integers(0, 1024, (46, 62, 4), dtype=np.uint16)


def heif(mode: str, pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    shape = (pixels.shape[1], pixels.shape[0])
    pillow_heif.from_bytes(mode, shape, pixels.tobytes()).save(buffer, **{"quality": -1, "chroma": 444, **options})
    return buffer.getvalue()


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def turned_exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def difference(seen: np.ndarray, wanted: np.ndarray) -> int:
    assert seen.shape == wanted.shape
    return int(np.abs(seen.astype(int) - wanted).max())


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_heif_of_8_bits_without_loss_is_what_was_written(mode: str) -> None:
    image = PHOTO.convert(mode)
    if mode == "RGBA":
        image.putalpha(PHOTO.convert("L").rotate(90))
    decoded = decode(heif(mode, np.asarray(image)), PARAMS)
    assert (decoded.space, decoded.native.dtype, decoded.header.format) == (mode, np.uint8, "heif")
    assert difference(decoded.native, np.asarray(image)) <= 1  # through YCbCr
    if mode != "L":
        assert difference(decode_rgb(heif(mode, np.asarray(image)), PARAMS), np.asarray(PHOTO)) <= 1


@pytest.mark.parametrize("twelve", [False, True])
@pytest.mark.parametrize(("mode", "channels"), [("I;16", 1), ("RGB;16", 3), ("RGBA;16", 4)])
def test_heif_of_10_and_12_bits_keeps_them(
    mode: str, channels: int, twelve: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", twelve)
    pixels = DEEP[:, :, :channels] << 6
    data = heif(mode, pixels)
    decoded = decode(data, PARAMS)
    bits = 12 if twelve else 10
    assert (decoded.header.bits, decoded.native.dtype) == (bits, np.uint16)
    wanted = pixels[:, :, 0] if channels == 1 else pixels
    assert difference(decoded.native, wanted) <= 2 << (16 - bits)
    assert not (decoded.native & (1 << 16 - bits) - 1).any()
    measured = measure(data, PARAMS)
    assert (measured.status, measured.channels) == (Status.OK, channels)
    assert abs(measured.max - 255) <= 1  # the high bytes are shown
    changed = pixels.copy()
    changed[20:30, 20:30, 0] ^= 64
    assert measure(heif(mode, changed), PARAMS).pixel_hash != measured.pixel_hash


def test_heif_with_loss_and_half_colour_is_close() -> None:
    data = heif("RGB", np.asarray(PHOTO), quality=90, chroma=420)
    seen = decode_rgb(data, PARAMS).astype(int)
    assert np.abs(seen - np.asarray(PHOTO)).mean() < 4
    thumbnail = luminance_thumbnail(data, 64, PARAMS.max_pixels)
    assert thumbnail.shape == (48, 64)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heif_is_turned_once(orientation: int) -> None:
    """The writer turns an EXIF orientation into boxes; whatever the EXIF then says, the boxes are what counts."""
    data = heif("RGB", np.asarray(PHOTO), exif=turned_exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(PHOTO, "PNG", exif=turned_exif(orientation)))))
    for exif_says in (1, 3, 6, 8):
        place = data.index(struct.pack(">HH", 0x0112, 3)) if b"MM\0*" in data else data.index(b"\x12\x01\x03\0")
        form = ">H" if b"MM\0*" in data else "<H"
        said = data[: place + 8] + struct.pack(form, exif_says) + data[place + 10 :]
        assert difference(decode_rgb(said, PARAMS), np.asarray(upright)) <= 1
    measured = measure(data, PARAMS)
    assert (measured.width, measured.height) == upright.size


def test_primary_image_of_several_is_measured() -> None:
    other = PHOTO.transpose(Image.Transpose.ROTATE_90)
    for primary, wanted in ((0, PHOTO), (1, other)):
        buffer = io.BytesIO()
        file = pillow_heif.from_pillow(PHOTO)
        file.add_from_pillow(other)
        file.save(buffer, quality=-1, chroma=444, primary_index=primary)
        measured = measure(buffer.getvalue(), PARAMS)
        assert (measured.status, measured.frames, measured.pixel_hash) == (Status.OK, 2, None)
        assert difference(decode_rgb(buffer.getvalue(), PARAMS), np.asarray(wanted)) <= 1


def test_heif_of_tiles_is_one_image() -> None:
    data = heif("RGB", np.asarray(PHOTO.resize((320, 200))), tile_size=128)
    assert b"grid" in data
    assert difference(decode_rgb(data, PARAMS), np.asarray(PHOTO.resize((320, 200)))) <= 1
    measured = measure(data, PARAMS)
    assert (measured.frames, measured.width, measured.height) == (1, 320, 200)
    assert measured.pixel_hash is not None


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1", b"hevc"])
def test_heif_is_known_by_any_of_its_brands(brand: bytes) -> None:
    data = heif("RGB", np.asarray(PHOTO))
    assert sniff(data[:8] + brand + data[12:]) == "heif"
    assert sniff(data[:8] + b"unkn" + data[12:]) == "heif"  # by its compatible brands
    other = b"\0\0\0\x18ftypisom\0\0\0\0mp42isom" + data[24:]
    assert sniff(other) == ""
    assert "video" in measure(other, PARAMS).message


@pytest.mark.parametrize("coding", [b"jpeg", b"avc1", b"unci"])
def test_heif_of_another_coding_is_unsupported(coding: bytes) -> None:
    measured = measure(heif("RGB", np.asarray(PHOTO)).replace(b"hvc1", coding), PARAMS)
    assert measured.status is Status.UNSUPPORTED
    assert "no image of a coding that this build reads" in measured.message


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("depth", [8, 10])
def test_avif_is_turned_once_at_any_depth(depth: int, orientation: int) -> None:
    """Boxes turn it: made by Pillow from an EXIF orientation, put into a deep file that OpenCV wrote without any."""
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(PHOTO, "PNG", exif=turned_exif(orientation)))))
    data = encoded(PHOTO, "AVIF", quality=100, subsampling="4:4:4", exif=turned_exif(orientation), speed=9)
    if depth == 8:
        assert difference(decode_rgb(data, PARAMS), np.asarray(upright)) <= 4  # with loss
        return
    turns = {1: [], 2: [b"imir\1"], 3: [b"irot\2"], 4: [b"imir\0"], 5: [b"irot\1", b"imir\0"], 6: [b"irot\3"]}
    turns |= {7: [b"irot\3", b"imir\0"], 8: [b"irot\1"]}
    deep = avif_with_turns(deep_avif(np.asarray(PHOTO).astype(np.uint16) << 2, 10), turns[orientation])
    decoded = decode(deep, PARAMS)
    assert decoded.native.dtype == np.uint16
    assert difference(decoded.native >> 8, np.asarray(upright)) <= 1
    assert decoded.native.shape[1::-1] == upright.size == (decoded.header.width, decoded.header.height)


def deep_avif(pixels: np.ndarray, depth: int) -> bytes:
    options = [cv2.IMWRITE_AVIF_DEPTH, depth, cv2.IMWRITE_AVIF_QUALITY, 100, cv2.IMWRITE_AVIF_SPEED, 9]
    swapped = pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]] if pixels.ndim == 3 else pixels
    return cv2.imencode(".avif", np.ascontiguousarray(swapped), options)[1].tobytes()


def avif_with_turns(data: bytes, turns: list[bytes]) -> bytes:
    """Properties `turns` (type and one byte) put at the end of `ipco` and associated with the first item of `ipma`."""
    ipco, ipma = data.index(b"ipco") - 4, data.index(b"ipma") - 4
    (size,) = struct.unpack_from(">I", data, ipco)
    count, place = 0, ipco + 8
    while place < ipco + size:
        count, place = count + 1, place + struct.unpack_from(">I", data, place)[0]
    added = b"".join(struct.pack(">I", 9) + turn for turn in turns)
    numbers = bytes(0x80 | count + 1 + index for index in range(len(turns)))
    entry = ipma + 8 + 4 + 4 + 2  # box, version and flags, entries, item id
    grown = bytearray(data[:entry] + bytes([data[entry] + len(turns)]) + data[entry + 1 :])
    end = entry + 1 + data[entry]
    grown[end:end] = numbers
    struct.pack_into(">I", grown, ipma, struct.unpack_from(">I", data, ipma)[0] + len(numbers))
    grown[ipco + size : ipco + size] = added
    struct.pack_into(">I", grown, ipco, size + len(added))
    extra = len(added) + len(numbers)
    for name in (b"iprp", b"meta"):
        at = grown.index(name) - 4
        struct.pack_into(">I", grown, at, struct.unpack_from(">I", grown, at)[0] + extra)
    iloc, mdat = grown.index(b"iloc"), grown.index(b"mdat") + 4
    old = struct.pack(">I", mdat - extra)
    at = grown.index(old, iloc)
    grown[at : at + 4] = struct.pack(">I", mdat)
    return bytes(grown)


@pytest.mark.parametrize("depth", [10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_avif_of_10_and_12_bits_keeps_them(channels: int, depth: int) -> None:
    pixels = DEEP[:, :, :channels] << (depth - 10)
    data = deep_avif(pixels[:, :, 0] if channels == 1 else pixels, depth)
    assert read_header(data).bits == depth
    decoded = decode(data, PARAMS)
    wanted = (pixels[:, :, 0] if channels == 1 else pixels) << (16 - depth)
    assert difference(decoded.native, wanted) <= 2 << (16 - depth)
    assert abs(measure(data, PARAMS).max - 255) <= 1


def test_avif_of_several_frames_is_measured_by_its_first() -> None:
    frames = [PHOTO, PHOTO.rotate(90), PHOTO.rotate(180)]
    data = encoded(
        frames[0], "AVIF", save_all=True, append_images=frames[1:], quality=100, subsampling="4:4:4", speed=9
    )
    measured = measure(data, PARAMS)
    assert (measured.status, measured.frames, measured.pixel_hash) == (Status.OK, 3, None)
    assert np.abs(decode_rgb(data, PARAMS).astype(int) - np.asarray(PHOTO)).mean() < 2


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("no_jp2", [False, True])
def test_jpeg2000_without_loss_is_what_was_written(mode: str, no_jp2: bool) -> None:
    image = Image.fromarray(DEEP[:, :, 0] << 6) if mode == "I;16" else PHOTO.convert(mode)
    data = encoded(image, "JPEG2000", irreversible=False, no_jp2=no_jp2)
    header = read_header(data)
    assert (header.format, header.width, header.height, header.channels) == (
        "jpeg2000",
        *image.size,
        len(image.getbands()),
    )
    assert header.bits == (16 if mode == "I;16" else 8)
    decoded = decode(data, PARAMS)
    assert not difference(decoded.native, np.asarray(image))
    assert measure(data, PARAMS).pixel_hash == measure(encoded(image, "PNG"), PARAMS).pixel_hash


def test_jpeg2000_that_opencv_wrote_is_read() -> None:
    bgr = np.ascontiguousarray(np.asarray(PHOTO)[:, :, ::-1])
    data = cv2.imencode(".jp2", bgr, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])[1].tobytes()
    assert difference(decode_rgb(data, PARAMS), np.asarray(PHOTO)) <= 2


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("pillow_heif", lambda: heif("RGB", np.asarray(PHOTO)), "heif"),
        ("_pillow_heif", lambda: heif("RGB", np.asarray(PHOTO)), "heif"),
        ("PIL._avif", lambda: encoded(PHOTO, "AVIF"), "avif"),
    ],
)
def test_a_missing_decoder_is_named_with_its_extra(module: str, make: object, extra: str, tmp_path: Path) -> None:
    """In a process that cannot import it, as where it is not installed; all other formats are read there."""
    (tmp_path / "missing").write_bytes(make())  # type: ignore[operator]
    (tmp_path / "other").write_bytes(encoded(PHOTO, "WEBP"))
    script = f"""
import pathlib, sys
sys.modules[{module!r}] = None
from pipeline.kernels.measure import MeasureParams, measure
for name in ("missing", "other"):
    for _ in range(2):
        measured = measure((pathlib.Path(sys.argv[1]) / name).read_bytes(), MeasureParams())
    print(measured.status.value, measured.format, measured.message)
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    missing, other = run.stdout.splitlines()
    assert missing.startswith("unsupported ")
    assert f"pip install 'image-audit[{extra}]'" in missing
    assert other.startswith("ok webp")
    assert run.stderr == ""
