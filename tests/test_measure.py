"""The numbers of one image against fastdup's formulas, brute force and reference libraries."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pipeline
from pipeline.errors import UsageError
from pipeline.kernels.hashing import content_hash, pixel_hash
from pipeline.kernels.measure import Measured, MeasureParams, measure
from pipeline.kernels.quality import channel_difference, entropy, quality
from pipeline.kernels.shrink import fitted_size, shrink
from pipeline.schemas import Status

PARAMS = MeasureParams()
DEMO = sorted((Path(pipeline.__file__).parent / "demo_photos").glob("*.jpg"))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def brute_laplacian_variance(plane: np.ndarray) -> float:
    padded = np.pad(plane.astype(np.float64), 1, mode="reflect")
    ring = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return float((ring - 4 * padded[1:-1, 1:-1]).var())


def brute_quality(rgb: np.ndarray) -> dict[str, float]:
    low, high = int(rgb.min()), int(rgb.max())
    return {
        "mean": rgb.mean(),
        "stdv": rgb.reshape(-1, 3).astype(np.float64).std(axis=0).mean(),
        "contrast": (high - low) / (high + low) if high else 0.0,
        "blur": brute_laplacian_variance(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)),
        "blur_blue": brute_laplacian_variance(rgb[:, :, 2]),
        "min": low,
        "max": high,
        "unique": np.unique(rgb).size,
    }


FROZEN = {
    "mean": 123.5183,
    "stdv": 50.0960,
    "min": 20,
    "max": 240,
    "unique": 221,
    "contrast": 0.8462,
    "blur": 10111.7373,
}
"""Columns of fastdup 2.54's atrain_stats.csv for `waves()` saved as PNG; its blur is of the blue channel."""


def waves() -> np.ndarray:
    y, x = np.mgrid[0:120, 0:150]
    return np.stack([(x * y // 37) % 200 + 20, 240 - (x + 2 * y) % 150, (x * 3 ^ y * 5) % 180 + 27], axis=2).astype(
        np.uint8
    )


def test_numbers_are_fastdups() -> None:
    measured = measure(png(waves()), PARAMS)
    for name, wanted in FROZEN.items():
        seen = measured.blur_blue if name == "blur" else getattr(measured, name)
        assert seen == pytest.approx(wanted, rel=2e-6, abs=6e-5), name


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 90), st.integers(2, 60), st.integers(0, 255), st.integers(0, 255), st.integers(0, 10**6))
def test_quality_is_brute_force(height: int, width: int, low: int, high: int, seed: int) -> None:
    low, high = min(low, high), max(low, high)
    rgb = np.random.default_rng(seed).integers(low, high, (height, width, 3), np.uint8, endpoint=True)
    assert quality(rgb)._asdict() == pytest.approx(brute_quality(rgb), rel=1e-9, abs=1e-9)
    grey = np.ascontiguousarray(rgb[:, :, 0])
    wanted = brute_quality(np.repeat(rgb[:, :, :1], 3, axis=2))
    assert quality(grey)._asdict() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_quality_of_bands_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(2)
    for shape in ((700, 431, 3), (3, 70_000, 3), (5000, 17, 3), (2, 66_000, 3)):
        rgb = rng.integers(0, 256, shape, dtype=np.uint8)
        assert quality(rgb)._asdict() == pytest.approx(brute_quality(rgb), rel=1e-9)


def test_a_level_on_one_pixel_is_counted() -> None:
    rgb = np.full((400, 300, 3), 7, np.uint8)
    rgb[201, 150, 1] = 200  # between the rows of the sample
    assert quality(rgb)[5:] == (7, 200, 2)


@pytest.mark.parametrize("path", DEMO[:3])
def test_a_real_photo(path: Path) -> None:
    measured = measure(path.read_bytes(), PARAMS)
    rgb = np.asarray(Image.open(path).convert("RGB"))
    wanted = brute_quality(rgb)
    assert {name: getattr(measured, name) for name in wanted} == pytest.approx(wanted, rel=1e-9)
    assert (measured.status, measured.format, measured.frames) == (Status.OK, "jpeg", 1)
    assert (measured.width, measured.height) == (rgb.shape[1], rgb.shape[0])
    assert measured.content_hash == content_hash(path.read_bytes())
    assert measured.model_input is not None
    grey = Image.fromarray(measured.model_input).convert("L")
    assert measured.entropy == pytest.approx(grey.entropy(), abs=0.02)
    assert measured.signature is not None
    box = np.asarray(grey.resize((16, 16), Image.Resampling.BOX)).reshape(-1).astype(int)
    assert np.abs(measured.signature - box).max() <= 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(2, 40), st.integers(1, 256), st.integers(0, 10**6))
def test_entropy_and_colour_are_brute_force(height: int, width: int, levels: int, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, levels, (height, width, 3), dtype=np.uint8)
    assert channel_difference(rgb) == pytest.approx(np.ptp(rgb.astype(int), axis=2).mean(), rel=1e-12, abs=1e-12)
    share = np.unique(rgb[:, :, 0], return_counts=True)[1] / (height * width)
    assert entropy(np.ascontiguousarray(rgb[:, :, 0])) == pytest.approx(-(share * np.log2(share)).sum(), abs=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2), (57, 131), (131, 57)])
def test_the_laplacian_is_opencvs(shape: tuple[int, int]) -> None:
    plane = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    edges = cv2.Laplacian(plane, cv2.CV_16S, ksize=1).astype(np.int64)
    assert quality(plane).blur == pytest.approx(edges.var(), rel=1e-12, abs=1e-9)


def test_entropy_and_colour_by_definition() -> None:
    assert entropy(np.zeros((160, 160), np.uint8)) == 0
    assert entropy(np.arange(256, dtype=np.uint8).reshape(16, 16)) == pytest.approx(8)
    rgb = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    assert channel_difference(rgb) == pytest.approx(np.ptp(rgb.astype(int), axis=2).mean())
    grey = np.repeat(rgb[:, :, :1], 3, axis=2)
    for pixels in (grey, grey[:, :, 0]):
        assert measure(png(np.ascontiguousarray(pixels)), PARAMS).channel_difference == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 900), st.integers(10, 900), st.integers(96, 224), st.integers(96, 224), st.booleans())
def test_shrink_gives_the_size_asked_and_keeps_the_mean(w: int, h: int, width: int, height: int, grey: bool) -> None:
    y, x = np.mgrid[0:h, 0:w]
    plane = (x * 120 // w + y * 120 // h).astype(np.uint8)
    pixels = plane if grey else np.repeat(plane[:, :, None], 3, axis=2)
    small = shrink(pixels, width, height)
    assert small.shape == (height, width, *pixels.shape[2:])
    assert small.dtype == np.uint8
    assert small.mean() == pytest.approx(pixels.mean(), abs=1.5)


def test_shrink_averages_every_pixel() -> None:
    """Lines of one pixel: sampling would show them or not, depending on the phase; averages are even."""
    for size in (500, 640, 1000, 1333, 3000):
        stripes = np.zeros((size, size), np.uint8)
        stripes[:, ::2] = 200
        worst = np.abs(shrink(stripes, 160, 160).astype(int) - 100).max()
        assert worst <= (60 if size < 640 else 12)  # one bilinear sample: 100
    exact = np.random.default_rng(1).integers(0, 256, (640, 1280, 3), dtype=np.uint8)
    area = cv2.resize(exact, (160, 160), interpolation=cv2.INTER_AREA)
    assert np.abs(shrink(exact, 160, 160).astype(int) - area).max() <= 3


def test_shrink_is_nearly_the_same_at_a_quarter_to_four_times_the_size() -> None:
    photo = cv2.imread(str(DEMO[0]))
    original = cv2.resize(photo, (1600, 1200), interpolation=cv2.INTER_CUBIC)
    wanted = shrink(original, 160, 160).astype(int)
    for factor in (0.25, 0.4, 0.5, 0.77, 1.5, 2, 3.1, 4):
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        other = cv2.resize(original, None, fx=factor, fy=factor, interpolation=how)
        assert np.abs(shrink(other, 160, 160) - wanted).mean() < 2


def test_fitted_size() -> None:
    assert fitted_size(4000, 10, 256) == (256, 1)
    assert fitted_size(300, 200, 256) == (256, 171)
    assert fitted_size(200, 256, 256) == (200, 256)


def test_the_model_may_ask_for_any_size() -> None:
    data = DEMO[0].read_bytes()
    measured, usual = measure(data, MeasureParams(input_width=96, input_height=224)), measure(data, PARAMS)
    assert measured.model_input is not None
    assert measured.model_input.shape == (224, 96, 3)
    assert measured.model_input.flags.c_contiguous
    assert measured.signature is not None
    assert (measured.signature.shape, measured.signature.dtype) == ((256,), np.uint8)
    assert np.array_equal(measured.signature, usual.signature)  # what is not the model's does not depend on it
    assert measured[:19] == usual[:19]
    assert usual._fields[17:19] == ("entropy", "channel_difference")


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40_000), st.data())
def test_pixel_hash_sees_every_byte(length: int, data: st.DataObject) -> None:
    pixels = np.random.default_rng(length).integers(0, 256, (1, length), dtype=np.uint8)
    place, bit = data.draw(st.integers(0, length - 1)), data.draw(st.integers(0, 7))
    other = pixels.copy()
    other[0, place] ^= 1 << bit
    assert pixel_hash(pixels, "L") == pixel_hash(pixels.copy(), "L")
    assert pixel_hash(pixels, "L") != pixel_hash(other, "L")


def test_pixel_hash_sees_shape_depth_space_and_not_the_memory_layout() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (60, 200, 4), dtype=np.uint8)
    hashes = [
        pixel_hash(pixels, "RGBA"),
        pixel_hash(pixels, "CMYK"),
        pixel_hash(pixels.reshape(200, 60, 4), "RGBA"),
        pixel_hash(pixels.view(np.uint16), "RGBA"),
    ]
    assert len(set(hashes)) == 4
    assert {len(one) for one in hashes} == {16}
    assert pixel_hash(np.asfortranarray(pixels), "RGBA") == hashes[0]
    deep = pixels.view("<u2")
    assert pixel_hash(deep.astype(">u2"), "RGBA") == hashes[3]


def test_hashes_never_change() -> None:
    """They are stored: another value after an update would make every image look new."""
    small, large = np.arange(300, dtype=np.uint8).reshape(10, 10, 3), waves()
    assert content_hash(b"image-audit").hex() == "94097f671e56bd73d1830c1a72100464"
    assert pixel_hash(small, "RGB").hex() == "1883b8554a486f67f2c6fe326b4c9a6c"
    assert pixel_hash(large, "RGB").hex() == "031d19c7f959982efd2f412ecef6db7c"


def test_equal_bytes_give_equal_numbers() -> None:
    def plain(one: Measured) -> list[object]:
        return [value.tobytes() if isinstance(value, np.ndarray) else value for value in one]

    data = DEMO[1].read_bytes()
    assert plain(measure(data, PARAMS)) == plain(measure(bytes(bytearray(data)), PARAMS))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_pixels": 0},
        {"min_width": 0},
        {"min_height": 0},
        {"input_size": -1},
        {"input_width": 5},
        {"input_height": -1},
    ],
)
def test_wrong_parameters(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        MeasureParams(**wrong)
