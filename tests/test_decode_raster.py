"""Radiance, PFM, PAM, Sun rasters and TIFF of real numbers: the values that were written, and how they are shown."""

from __future__ import annotations

import io
import struct
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.kernels.decode import decode, decode_rgb, luminance_thumbnail
from pipeline.kernels.measure import MeasureParams, measure
from pipeline.kernels.pillow_decode import to_shown
from pipeline.kernels.tone import exposure_of, logarithms, toned
from pipeline.schemas import Status

PARAMS = MeasureParams()
RNG = np.random.default_rng(9)
LIGHT = np.exp(RNG.normal(0, 3, (33, 47, 3))).astype(np.float32)
LEVELS = RNG.integers(0, 256, (33, 47, 4), dtype=np.uint8)


def swapped(pixels: np.ndarray) -> np.ndarray:
    """RGB as OpenCV's BGR and back, alpha last."""
    if pixels.ndim == 2:
        return pixels
    return np.ascontiguousarray(pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]])


def cv2_written(extension: str, pixels: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(extension, swapped(pixels), options)[1].tobytes()


def cv2_read(data: bytes) -> np.ndarray:
    return swapped(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))


@pytest.mark.parametrize("packing", [cv2.IMWRITE_HDR_COMPRESSION_RLE, cv2.IMWRITE_HDR_COMPRESSION_NONE])
@pytest.mark.parametrize("width", [10, 47, 300])
def test_radiance_is_opencvs(width: int, packing: int) -> None:
    pixels = np.exp(RNG.normal(0, 3, (20, width, 3))).astype(np.float32)
    pixels[3:9, 5:] = pixels[3, 5]  # long runs
    pixels[12] = 0
    data = cv2_written(".hdr", pixels, cv2.IMWRITE_HDR_COMPRESSION, packing)
    decoded = decode(data, PARAMS)
    np.testing.assert_array_equal(decoded.native, cv2_read(data))
    assert (
        np.abs(
            decoded.native / pixels.max(axis=2, keepdims=True).clip(1e-9)
            - pixels / pixels.max(axis=2, keepdims=True).clip(1e-9)
        ).max()
        < 0.01
    )
    assert (decoded.space, decoded.header.format, measure(data, PARAMS).status) == ("RGB", "hdr", Status.OK)


def test_radiance_headers_that_are_not_read_say_why() -> None:
    data = cv2_written(".hdr", LIGHT)
    for wrong in (
        data.replace(b"-Y 33 +X 47", b"+Y 33 +X 47"),
        data.replace(b"-Y 33 +X 47", b"-Y 0 +X 47"),
        data.replace(b"rle_rgbe", b"rle_xyze"),
        data.replace(b"-Y 33", b"+Z 33"),
    ):
        measured = measure(wrong, PARAMS)
        assert measured.status is Status.UNREADABLE
        assert measured.message.startswith("hdr: ")


@pytest.mark.parametrize("channels", [1, 3])
def test_pfm_is_what_was_written(channels: int) -> None:
    pixels = LIGHT if channels == 3 else LIGHT[:, :, 0].copy()
    data = cv2_written(".pfm", pixels)
    decoded = decode(data, PARAMS)
    np.testing.assert_array_equal(decoded.native, pixels)
    big = f"P{'F' if channels == 3 else 'f'}\n47 33\n1.0\n".encode() + pixels[::-1].astype(">f4").tobytes()
    assert measure(big, PARAMS).pixel_hash == measure(data, PARAMS).pixel_hash
    if channels == 1:
        np.testing.assert_array_equal(decoded.native, np.asarray(Image.open(io.BytesIO(data))))


PAM_KINDS = {1: "GRAYSCALE", 2: "GRAYSCALE_ALPHA", 3: "RGB", 4: "RGB_ALPHA"}


def pam(pixels: np.ndarray, top: int) -> bytes:
    height, width, channels = pixels.shape
    head = f"P7\n# a comment\nWIDTH {width}\nHEIGHT {height}\nDEPTH {channels}\nMAXVAL {top}\n"
    return (
        f"{head}TUPLTYPE {PAM_KINDS[channels]}\nENDHDR\n".encode()
        + pixels.astype(">u2" if top > 255 else "u1").tobytes()
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pam_is_what_was_written(channels: int) -> None:
    pixels = LEVELS[:, :, :channels]
    decoded = decode(pam(pixels, 255), PARAMS)
    np.testing.assert_array_equal(decoded.native.reshape(pixels.shape), pixels)
    assert (decoded.space, decoded.native.dtype) == ({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels], np.uint8)
    deep = RNG.integers(0, 65_536, pixels.shape, dtype=np.uint16)
    np.testing.assert_array_equal(decode(pam(deep, 65_535), PARAMS).native.reshape(pixels.shape), deep)
    if channels == 1:  # OpenCV takes the first colour for blue
        np.testing.assert_array_equal(decoded.native, cv2_read(pam(pixels, 255)))
    if channels != 2:
        png = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(png, "PNG")
        assert measure(pam(pixels, 255), PARAMS).pixel_hash == measure(png.getvalue(), PARAMS).pixel_hash


@pytest.mark.parametrize("top", [1, 7, 200, 1023, 40_000])
def test_pam_of_few_levels_is_stretched_to_all(top: int) -> None:
    pixels = RNG.integers(0, top + 1, (20, 30, 3))
    pixels[0, 0] = top
    full = 255 if top < 256 else 65_535
    native = decode(pam(pixels, top), PARAMS).native
    np.testing.assert_array_equal(native, np.rint(pixels / top * full + 1e-9))


@pytest.mark.parametrize("channels", [1, 3])
def test_sun_raster_is_what_was_written(channels: int) -> None:
    pixels = LEVELS[:, :, :channels].squeeze()
    data = cv2_written(".ras", pixels)
    np.testing.assert_array_equal(decode(data, PARAMS).native, pixels)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    assert measure(data, PARAMS).pixel_hash == measure(png.getvalue(), PARAMS).pixel_hash
    assert measure(data, PARAMS).format == "sun"


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiff_of_real_numbers_is_what_was_written(channels: int, kind: str) -> None:
    pixels = np.dstack([LIGHT, LIGHT[:, :, :1]])[:, :, :channels].astype(kind).squeeze()
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="minisblack" if channels == 1 else "rgb", compression="zlib")
    decoded = decode(file.getvalue(), PARAMS)
    np.testing.assert_array_equal(decoded.native, pixels)
    colours = pixels if channels == 1 else pixels[:, :, :3]
    wanted = toned(colours, exposure_of(*logarithms(colours)))
    np.testing.assert_array_equal(to_shown(decoded), wanted)
    first = measure(file.getvalue(), PARAMS)
    pixels[5, 5] *= 1 + 1e-6
    tifffile.imwrite(file := io.BytesIO(), pixels, photometric="minisblack" if channels == 1 else "rgb")
    assert measure(file.getvalue(), PARAMS).pixel_hash != first.pixel_hash
    assert (first.status, first.channels) == (Status.OK, channels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_of_real_numbers_is_turned_once(orientation: int) -> None:
    file, plain = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(file, LIGHT, photometric="rgb", extratags=[(274, 3, 1, orientation, True)], metadata=None)
    Image.fromarray(LEVELS[:, :, :3]).save(plain, "TIFF", tiffinfo={274: orientation})
    assert decode(file.getvalue(), PARAMS).native.shape[1::-1] == ImageOps.exif_transpose(Image.open(plain)).size
    turn = {1: "", 2: "h", 3: "hv", 4: "v", 5: "t", 6: "th", 7: "tvh", 8: "tv"}[orientation]
    upright = LIGHT.transpose(1, 0, 2) if "t" in turn else LIGHT
    upright = upright[:: -1 if "v" in turn else 1, :: -1 if "h" in turn else 1]
    np.testing.assert_array_equal(decode(file.getvalue(), PARAMS).native, upright)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (4, 5), elements=st.floats(0, 1e6, width=32)),
    st.floats(1e-3, 1e3),
)
def test_what_is_shown_keeps_the_order_and_forgets_the_exposure(values: np.ndarray, factor: float) -> None:
    values = np.where(values < 1e-6, 0, values).astype(np.float64)
    shown = toned(values, exposure_of(*logarithms(values)))
    brighter = toned(values * factor, exposure_of(*logarithms(values * factor)))
    order = np.argsort(values.ravel())
    assert (np.diff(shown.ravel()[order].astype(int)) >= 0).all()
    assert np.abs(shown.astype(int) - brighter).max() <= 1
    assert not shown[values == 0].any()


def test_what_is_no_number_is_black_and_infinity_white() -> None:
    values = np.array([[np.nan, -5, 0, 1, np.inf, -np.inf, 3e38, 1e-30]], np.float32)
    np.testing.assert_array_equal(toned(values, 1.0)[0, [0, 1, 2, 4, 5, 6, 7]], [0, 0, 0, 255, 0, 255, 0])
    assert toned(values, 1.0)[0, 3] == round(255 * 0.5 ** (1 / 2.2))
    picture = np.tile(values, (40, 5))
    for kept in (picture, np.zeros_like(picture), np.full_like(picture, np.nan), np.full_like(picture, -1)):
        assert measure(cv2_written(".pfm", kept), PARAMS).status is Status.OK
    middle = to_shown(decode(cv2_written(".pfm", np.full((40, 50), 7.25, np.float32)), PARAMS))
    assert set(middle.ravel().tolist()) == {round(255 * (0.18 / 1.18) ** (1 / 2.2))}


@pytest.mark.parametrize("extension", [".hdr", ".pfm", ".tiff"])
def test_two_exposures_of_a_picture_show_the_same(extension: str) -> None:
    first, second = (cv2_written(extension, LIGHT * factor) for factor in (1, 64))
    assert np.abs(decode_rgb(first, PARAMS).astype(int) - decode_rgb(second, PARAMS)).max() <= 1
    assert measure(first, PARAMS).pixel_hash != measure(second, PARAMS).pixel_hash
    assert luminance_thumbnail(first, 16, PARAMS.max_pixels).shape == (11, 16)


def test_a_large_picture_is_shown_as_a_whole() -> None:
    """Bands of 2^18 pixels share one exposure, and are written over the picture that they are made of."""
    steps = np.linspace(0.1, 10, 1000 * 700, dtype=np.float32).reshape(1000, 700)
    for pixels in (steps, np.dstack([steps, steps * 2, steps * 3])):
        data = cv2_written(".pfm", pixels)
        np.testing.assert_array_equal(to_shown(decode(data, PARAMS)), toned(pixels, exposure_of(*logarithms(pixels))))


@pytest.mark.parametrize("size", [(1, 1), (1, 12), (12, 1)])
@pytest.mark.parametrize("extension", [".pfm", ".hdr", ".tiff", ".ras", ".pam"])
def test_one_row_or_column_is_measured_where_it_is_wanted(extension: str, size: tuple[int, int]) -> None:
    pixels = LIGHT[: size[1], : size[0]] if extension not in (".ras", ".pam") else LEVELS[: size[1], : size[0], :3]
    measured = measure(cv2_written(extension, pixels), MeasureParams(min_width=1, min_height=1))
    assert (measured.status, measured.width, measured.height) == (Status.OK, *size), measured.message
    assert measure(cv2_written(extension, pixels), PARAMS).status is Status.TOO_SMALL


UNREAD = {
    "pdf": (b"%PDF-1.7\n", "pdf"),
    "dicom": (bytes(128) + b"DICM", "dicom"),
    "exr": (b"v/1\x01\x02\0\0\0", "exr"),
    "jpeg xl": (b"\xff\x0a\xfa\x1f", "jpeg xl"),
    "psd": (b"8BPS\0\1", "psd"),
    "mp4": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "video"),
    "zip": (b"PK\3\4", "zip"),
    "tar": (bytes(257) + b"ustar\0", "tar"),
    "svg": (b"<svg xmlns", "svg"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_format_that_is_not_read_is_named(name: str) -> None:
    head, said = UNREAD[name]
    measured = measure(head + bytes(500), PARAMS)
    assert measured.status is Status.UNSUPPORTED
    assert f"{said} is not read here" in measured.message or said in measured.message.split("is not read")[0]


def test_pam_of_many_channels_is_unsupported() -> None:
    data = b"P7\nWIDTH 20\nHEIGHT 20\nDEPTH 7\nMAXVAL 255\nTUPLTYPE MULTI\nENDHDR\n" + bytes(2800)
    assert measure(data, PARAMS).status is Status.UNSUPPORTED
    for wrong in (b"MAXVAL 0", b"MAXVAL 70000", b"HEIGHT 20"):
        assert measure(data.replace(b"MAXVAL 255", wrong), PARAMS).status is Status.UNREADABLE


def test_sun_raster_with_a_wrong_size_is_too_large() -> None:
    data = cv2_written(".ras", LEVELS[:, :, :3])
    huge = data[:4] + struct.pack(">II", 65_000, 65_000) + data[12:]
    assert measure(huge, PARAMS).status is Status.TOO_LARGE


DEEP = (LEVELS.astype(np.uint16) * 251) + 3


def tiff_of(pixels: NDArray[Any], **kept: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **kept)
    return file.getvalue()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kept", [{}, {"compression": "zlib"}, {"tile": (16, 16)}], ids=str)
def test_tiff_that_counts_from_white_is_no_negative(order: Any, kept: dict[str, Any]) -> None:
    """The same pixels as from black up, of 1, 8 and 16 bits."""
    deep, plain = DEEP[:, :, 0], LEVELS[:, :, 0]
    for pixels in (deep, plain):
        negative = tiff_of(~pixels, photometric="miniswhite", byteorder=order, **kept)
        np.testing.assert_array_equal(decode(negative, PARAMS).native, pixels)
    two = tiff_of(plain > 99, photometric="miniswhite", byteorder=order)
    np.testing.assert_array_equal(decode(two, PARAMS).native, np.where(plain > 99, 0, 255))


@pytest.mark.parametrize("kind", ["u2", "f4"])
@pytest.mark.parametrize("kept", [{}, {"compression": "zlib"}, {"tile": (16, 16)}], ids=str)
def test_tiff_in_planes_is_right_or_refused(kind: str, kept: dict[str, Any]) -> None:
    """OpenCV mixes the planes of more than 8 bits up; Pillow reads those of 8."""
    planes = np.moveaxis(LEVELS[:, :, :3], 2, 0)
    eight = tiff_of(planes, photometric="rgb", planarconfig="separate", **kept)
    np.testing.assert_array_equal(decode(eight, PARAMS).native, LEVELS[:, :, :3])
    deep = tiff_of(planes.astype(kind), photometric="rgb", planarconfig="separate", **kept)
    row = measure(deep, PARAMS)
    assert row.status == Status.UNSUPPORTED
    assert "each channel in a plane of its own is not read; save it with the channels" in (row.message or "")
    beside = tiff_of(DEEP[:, :, 0].astype(kind), photometric="minisblack", planarconfig="separate", **kept)
    assert measure(beside, PARAMS).status == Status.OK


def lab_of(pixels: NDArray[np.uint8]) -> bytes:
    Image.frombytes("LAB", pixels.shape[1::-1], pixels.tobytes()).save(file := io.BytesIO(), "TIFF")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (tiff_of(DEEP[:, :, 0].view(np.int16)), "signed whole numbers of 16 bits does not tell which number is black"),
        (tiff_of(DEEP[:, :, :3].view(np.int16), photometric="rgb"), "signed whole numbers of 16 bits"),
        (tiff_of(DEEP[:, :, 0].astype(np.uint32)), "whole numbers of 32 bits does not tell which"),
        (tiff_of(LIGHT.astype(np.float16), photometric="rgb"), "real numbers of 16 bits is not read"),
        (tiff_of(LIGHT.astype(np.complex64)[:, :, 0]), "complex numbers is not read"),
        (lab_of(np.ascontiguousarray(LEVELS[:, :, :3])), "in Lab colours is not read; convert it to RGB"),
        (tiff_of(DEEP[:, :, :2], photometric="minisblack", planarconfig="contig"), "2 channels of 16 bits is not read"),
    ],
    ids=["int16", "int16 rgb", "uint32", "float16", "complex", "lab", "grey and alpha"],
)
def test_tiff_of_a_kind_that_is_not_read_says_what_to_do(data: bytes, said: str) -> None:
    row = measure(data, PARAMS)
    assert row.status == Status.UNSUPPORTED
    assert said in (row.message or "")
    assert "convert it to" in (row.message or "")


@pytest.mark.parametrize("start", [b"GIF89a", b"II*\0\x08\0\0\0"], ids=["gif", "tiff"])
def test_what_pillow_does_not_know_is_said_the_same_each_time(start: bytes) -> None:
    """Its own message has an address in memory."""
    rows = [measure(start + bytes(60 + more), PARAMS) for more in (0, 0)]
    assert rows[0].message == rows[1].message
    assert " at 0x" not in (rows[0].message or "")
    assert rows[0].status == Status.UNREADABLE
