"""Every format and mode decodes to Pillow's RGB; hashes of pixels do not depend on the file format."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

import pipeline
from pipeline.kernels.decode import decode, decode_rgb, luminance_thumbnail
from pipeline.kernels.header import ImageError
from pipeline.kernels.measure import MeasureParams, measure
from pipeline.kernels.pillow_decode import to_shown
from pipeline.schemas import Status

PARAMS = MeasureParams()
DEMO_PHOTO = sorted((Path(pipeline.__file__).parent / "demo_photos").glob("*.jpg"))[0]
PHOTO = Image.open(DEMO_PHOTO).convert("RGB").resize((131, 97))  # odd sides show wrong strides and turns


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def reference(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def assert_like_pillow(data: bytes) -> None:
    seen, wanted = decode_rgb(data, PARAMS), reference(data)
    assert seen.shape == wanted.shape
    assert seen.dtype == np.uint8
    assert np.abs(seen.astype(int) - wanted).max() <= 2


ALPHA = Image.fromarray(np.random.default_rng(5).integers(0, 256, (97, 131), dtype=np.uint8))
RGBA = Image.merge("RGBA", (*PHOTO.split(), ALPHA))
GREY = PHOTO.convert("L")
PALETTE = PHOTO.quantize(64)
CASES = {
    "jpeg": (PHOTO, "JPEG", {"quality": 90}),
    "jpeg_444": (PHOTO, "JPEG", {"quality": 90, "subsampling": 0}),
    "jpeg_progressive": (PHOTO, "JPEG", {"progressive": True}),
    "jpeg_grey": (GREY, "JPEG", {}),
    "jpeg_cmyk": (PHOTO.convert("CMYK"), "JPEG", {}),
    "jpeg_adobe_rgb": (PHOTO, "JPEG", {"keep_rgb": True}),
    "jpeg_restarts": (PHOTO, "JPEG", {"restart_marker_blocks": 3}),
    "png": (PHOTO, "PNG", {}),
    "png_grey": (GREY, "PNG", {}),
    "png_1_bit": (PHOTO.convert("1"), "PNG", {}),
    "png_la": (Image.merge("LA", (GREY, ALPHA)), "PNG", {}),
    "png_rgba": (RGBA, "PNG", {}),
    "png_palette": (PALETTE, "PNG", {}),
    "png_palette_transparent": (PALETTE, "PNG", {"transparency": 3}),
    "png_palette_alpha": (PALETTE, "PNG", {"transparency": bytes(range(64))}),
    "png_rgb_transparent": (PHOTO, "PNG", {"transparency": PHOTO.getpixel((5, 5))}),
    "gif": (PALETTE, "GIF", {}),
    "gif_transparent": (PALETTE, "GIF", {"transparency": 3}),
    "bmp": (PHOTO, "BMP", {}),
    "bmp_grey": (GREY, "BMP", {}),
    "bmp_palette": (PALETTE, "BMP", {}),
    "bmp_1_bit": (PHOTO.convert("1"), "BMP", {}),
    "webp": (PHOTO, "WEBP", {}),
    "webp_lossless": (PHOTO, "WEBP", {"lossless": True}),
    "webp_rgba": (RGBA, "WEBP", {"lossless": True, "exact": True}),
    "tiff": (PHOTO, "TIFF", {}),
    "tiff_lzw": (PHOTO, "TIFF", {"compression": "tiff_lzw"}),
    "tiff_jpeg": (PHOTO, "TIFF", {"compression": "jpeg"}),
    "tiff_cmyk": (PHOTO.convert("CMYK"), "TIFF", {}),
    "tiff_grey": (GREY, "TIFF", {}),
    "tiff_1_bit": (PHOTO.convert("1"), "TIFF", {"compression": "group4"}),
    "ppm": (PHOTO, "PPM", {}),
    "pgm": (GREY, "PPM", {}),
    "jpeg2000": (PHOTO, "JPEG2000", {"irreversible": False}),
}


@pytest.mark.parametrize("name", CASES)
def test_colours_are_pillows(name: str) -> None:
    image, format_name, options = CASES[name]
    assert_like_pillow(encoded(image, format_name, **options))


def ycck(data: bytes) -> bytes:
    """The same CMYK JPEG, said to be YCCK by its Adobe marker."""
    place = data.index(b"Adobe")
    return data[: place + 11] + b"\x02" + data[place + 12 :]


def test_ycck_jpeg_is_pillows() -> None:
    assert_like_pillow(ycck(encoded(PHOTO.convert("CMYK"), "JPEG")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(format_name: str, orientation: int) -> None:
    options = {"tiffinfo": {274: orientation}} if format_name == "TIFF" else {"exif": with_orientation(orientation)}
    data = encoded(PHOTO, format_name, **options)
    assert_like_pillow(data)
    measured = measure(data, PARAMS)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (measured.width, measured.height) == upright.size
    grey = luminance_thumbnail(data, 64, PARAMS.max_pixels).astype(int)
    full = cv2.cvtColor(reference(data), cv2.COLOR_RGB2GRAY)
    wanted = cv2.resize(full, grey.shape[::-1], interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(grey - wanted).mean() < 0.5  # a JPEG's own luminance is not clipped to its RGB


def test_orientation_in_xmp_of_a_jpeg_counts_where_exif_has_none() -> None:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain = encoded(PHOTO, "JPEG")
    data = plain[:2] + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp + plain[2:]
    assert reference(data).shape[:2] == (131, 97)
    assert_like_pillow(data)


@pytest.mark.parametrize("orientation", [1, 6, 2])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_16_bits_show_their_high_byte_and_hash_all(extension: str, channels: int, orientation: int) -> None:
    deep = np.random.default_rng(channels).integers(0, 65536, (40, 30, channels), dtype=np.uint16)
    data = cv2.imencode(extension, deep)[1].tobytes()
    if extension == ".png":
        exif = with_orientation(orientation).removeprefix(b"Exif\0\0")
        chunk = len(exif).to_bytes(4, "big") + b"eXIf" + exif
        data = data[:33] + chunk + crc(chunk[4:]) + data[33:]
    shown = deep[:, :, 2::-1] >> 8 if channels > 1 else np.repeat(deep >> 8, 3, axis=2)
    if extension == ".png":
        shown = {1: shown, 2: shown[:, ::-1], 6: np.rot90(shown, -1)}[orientation]
    np.testing.assert_array_equal(decode_rgb(data, PARAMS), shown)
    shifted = deep.copy()
    shifted[7, 7, 0] ^= 1  # a difference that 8 bits do not show
    first = measure(cv2.imencode(extension, deep)[1].tobytes(), PARAMS)
    second = measure(cv2.imencode(extension, shifted)[1].tobytes(), PARAMS)
    assert first.mean == second.mean
    assert first.pixel_hash != second.pixel_hash
    assert first.channels == channels


def crc(chunk: bytes) -> bytes:
    return zlib.crc32(chunk).to_bytes(4, "big")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_tiff_is_turned_once(orientation: int) -> None:
    """Pillow writes no 16-bit RGB and OpenCV no orientation: a TIFF of one strip, by hand."""
    deep = np.random.default_rng(1).integers(0, 65536, (40, 30, 3), dtype="<u2")
    tags = [(256, 30), (257, 40), (258, 16), (259, 1), (262, 2), (273, 8), (274, orientation), (277, 3), (278, 40)]
    tags.append((279, deep.nbytes))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags if tag != 258)
    depths = struct.pack("<HHII", 258, 3, 3, 8 + deep.nbytes)
    directory = struct.pack("<H", len(tags)) + entries[:24] + depths + entries[24:] + b"\0\0\0\0"
    data = struct.pack("<2sHI", b"II", 42, 8 + deep.nbytes + 6) + deep.tobytes() + struct.pack("<3H", 16, 16, 16)
    assert_like_pillow(data + directory)
    assert decode(data + directory, PARAMS).native.dtype == np.uint16


def test_same_pixels_hash_the_same_in_every_lossless_format() -> None:
    for image, formats in ((PHOTO, ("PNG", "BMP", "TIFF", "PPM")), (GREY, ("PNG", "BMP", "TIFF", "PPM"))):
        files = [encoded(image, name) for name in formats]
        if image is PHOTO:
            files.append(encoded(image, "WEBP", lossless=True))
        measured = [measure(data, PARAMS) for data in files]
        assert len({one.pixel_hash for one in measured}) == 1
        assert len({one.content_hash for one in measured}) == len(files)
        assert {one.channels for one in measured} == {1 if image is GREY else 3}
    decoded = Image.fromarray(decode_rgb(encoded(PHOTO, "JPEG"), PARAMS))
    assert measure(encoded(PHOTO, "JPEG"), PARAMS).pixel_hash == measure(encoded(decoded, "PNG"), PARAMS).pixel_hash


def test_alpha_and_a_single_level_change_the_pixel_hash() -> None:
    opaque = Image.merge("RGBA", (*PHOTO.split(), Image.new("L", PHOTO.size, 255)))
    touched = np.array(PHOTO)
    touched[96, 130, 2] ^= 1
    images = [PHOTO, opaque, RGBA, GREY, GREY.convert("RGB"), Image.fromarray(touched), PHOTO.transpose(5)]
    hashes = [measure(encoded(image, "PNG"), PARAMS).pixel_hash for image in images]
    assert len(set(hashes)) == len(images)


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_several(format_name: str) -> None:
    frames = [PHOTO, PHOTO.transpose(Image.Transpose.FLIP_LEFT_RIGHT), PHOTO.rotate(30)]
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
    assert_like_pillow(data)
    measured = measure(data, PARAMS)
    assert (measured.status, measured.frames, measured.pixel_hash) == (Status.OK, 3, None)
    assert measured.content_hash is not None


def test_cmyk_and_rgba_of_equal_bytes_are_different_pixels() -> None:
    other = Image.frombytes("CMYK", RGBA.size, RGBA.tobytes())
    first, second = measure(encoded(RGBA, "TIFF"), PARAMS), measure(encoded(other, "TIFF"), PARAMS)
    assert first.channels == second.channels == 4
    assert first.pixel_hash != second.pixel_hash


@pytest.mark.parametrize("size", [(2600, 1300), (640, 480), (61, 50), (16, 3000)])
@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
def test_thumbnail_is_the_area_shrink_of_the_luminance(format_name: str, size: tuple[int, int]) -> None:
    data = encoded(PHOTO.resize(size, Image.Resampling.BICUBIC), format_name)
    thumbnail = luminance_thumbnail(data, 256, PARAMS.max_pixels)
    assert max(thumbnail.shape) == min(256, max(size))
    full = cv2.cvtColor(decode_rgb(data, PARAMS), cv2.COLOR_RGB2GRAY)
    wanted = cv2.resize(full, thumbnail.shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(thumbnail.astype(int) - wanted).mean() < 1.5


def test_thumbnail_refuses_what_decode_refuses() -> None:
    data = encoded(PHOTO, "JPEG")
    for bad, status in ((data[:1500], Status.TRUNCATED), (b"", Status.EMPTY), (b"text", Status.UNSUPPORTED)):
        with pytest.raises(ImageError) as error:
            luminance_thumbnail(bad, 256, PARAMS.max_pixels)
        assert error.value.status is status
    with pytest.raises(ImageError) as error:
        luminance_thumbnail(data, 256, 1000)
    assert error.value.status is Status.TOO_LARGE


def test_decoded_header_has_the_size_of_the_pixels() -> None:
    decoded = decode(encoded(PHOTO, "JPEG", exif=with_orientation(6)), PARAMS)
    assert (decoded.header.width, decoded.header.height) == (97, 131) == to_shown(decoded).shape[1::-1]
