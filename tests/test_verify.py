"""The kind of a pair is decided on pixels: planted edits of real photos, hard negatives, flat and degenerate images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from benchmarks.edits import EDITS, SAME_FRAME, decode, edited_jpeg
from pipeline.errors import UsageError
from pipeline.kernels.verify import (
    Evidence,
    PreparedImage,
    compare,
    kind_without_pixels,
    may_skip,
    prepare,
)
from pipeline.kernels.verify_params import VerifyParams
from pipeline.schemas import NEAR_DUPLICATES, Kind

PARAMS = VerifyParams()
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "retina")


def photo(name: str, side: int = 150) -> np.ndarray:
    """A photo of scikit-image as RGB, its long side `side` pixels."""
    image = np.asarray(getattr(data, name)())
    ratio = side / max(image.shape[:2])
    size = (round(image.shape[1] * ratio), round(image.shape[0] * ratio))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def ready(image: np.ndarray) -> PreparedImage:
    return prepare(image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), PARAMS)


def judge(a: np.ndarray, b: np.ndarray) -> Evidence:
    return compare(ready(a), ready(b), PARAMS)


def reencoded(image: np.ndarray) -> np.ndarray:
    return decode(cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes())


def camera(side: int = 150) -> np.ndarray:
    return cv2.resize(data.camera(), (side, side), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", PHOTOS)
def test_every_edit_of_a_photo_is_a_near_duplicate(name: str, edit: str) -> None:
    """Same-frame edits are near_identical, the others edited; `mirrored` and `scale` say what was done."""
    image = photo(name)
    copy = decode(edited_jpeg(edit, image, np.random.default_rng(3)))

    found = judge(image, copy)

    assert found.kind is (Kind.NEAR_IDENTICAL if edit in SAME_FRAME else Kind.EDITED)
    assert found.mirrored is (edit == "mirror")
    assert found.scale == pytest.approx(1.25 if edit == "crop" else 1.0, abs=0.02)
    assert abs(found.rotation) == pytest.approx(8.0 if edit == "rotate" else 0.0, abs=0.3)
    assert found.correlation > 0.6


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_edits(turns: int) -> None:
    """A copy turned by its orientation tag is found and its angle told, either way round."""
    image = photo("coffee")

    there, back = judge(image, np.rot90(image, turns)), judge(np.rot90(image, turns), image)

    assert (there.kind, back.kind) == (Kind.EDITED, Kind.EDITED)
    assert (there.rotation + back.rotation) % 360 == 0


def test_half_size_of_a_large_photo_is_near_identical() -> None:
    """Preparation brings sizes from a quarter to four times to one scale."""
    large = np.asarray(data.astronaut())
    for side in (128, 256, 512):
        found = judge(large, cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA))
        assert found.kind is Kind.NEAR_IDENTICAL


def test_an_off_centre_crop_is_an_edit_of_its_size() -> None:
    """A crop of 70% from a corner: contained, and 1 / 0.7 as large."""
    image = photo("astronaut", 300)

    found = judge(image, image[10:220, 60:270])

    assert found.kind is Kind.EDITED
    assert found.overlap == pytest.approx(1.0, abs=0.01)
    assert found.scale == pytest.approx(300 / 210, abs=0.03)


def test_unrelated_photos_are_look_alikes() -> None:
    """No two of eight different photos are near-duplicates or one scene."""
    images = [photo(name) for name in PHOTOS] + [camera(), photo("hubble_deep_field")]
    prepared = [ready(image) for image in images]
    kinds = {compare(a, b, PARAMS).kind for i, a in enumerate(prepared) for b in prepared[:i]}
    assert kinds == {Kind.LOOK_ALIKE}


def test_a_panned_view_is_another_shot_of_the_scene() -> None:
    """Two windows of one wide view, a sixth of a frame apart: same_scene, because neither contains the other."""
    wide = photo("astronaut", 320)

    found = judge(wide[:, :240], wide[:, 40:280])

    assert found.kind is Kind.SAME_SCENE
    assert found.overlap < 0.9


@pytest.mark.parametrize("name", PHOTOS)
def test_the_next_frame_of_a_still_camera_is_no_copy(name: str) -> None:
    """Moved by one of 160 pixels: nearly the same pixels, but neither frame contains the other."""
    wide = photo(name, 480)
    assert judge(wide[:, :470], reencoded(wide[:, 3:473])).kind is Kind.SAME_SCENE


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("margin", [2, 5])
def test_a_frame_trimmed_all_around_is_a_copy(name: str, margin: int) -> None:
    """A trim of 1 to 2% moves as many pixels as the next frame does, but lies inside its original."""
    image = photo(name, 480)
    assert judge(image, reencoded(image[margin:-margin, margin:-margin])).kind in NEAR_DUPLICATES


def test_two_pictures_of_a_stereo_camera_are_not_duplicates() -> None:
    """Another viewpoint moves near things more than far ones."""
    left, right, _ = data.stereo_motorcycle()
    assert judge(left, right).kind in {Kind.SAME_SCENE, Kind.LOOK_ALIKE}


def test_an_object_that_moved_is_not_an_overlay() -> None:
    """A still camera: something is here in one frame and there in the other."""
    background = photo("coffee", 240)
    thing = photo("chelsea", 240)[40:110, 60:130]
    first, second = background.copy(), background.copy()
    first[20:90, 15:85] = thing
    second[80:150, 150:220] = thing

    assert judge(first, second).kind is Kind.SAME_SCENE


def shirt(colour: int, chest: str) -> np.ndarray:
    """A symmetric thing on a plain ground, with something of its own in the middle."""
    image = np.full((160, 160), 215, np.uint8)
    outline = [
        (60, 20),
        (100, 20),
        (150, 50),
        (135, 75),
        (115, 62),
        (115, 145),
        (45, 145),
        (45, 62),
        (25, 75),
        (10, 50),
    ]
    cv2.fillPoly(image, [np.array(outline)], colour)
    cv2.putText(image, chest, (50, 85), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 225, 3)
    return cv2.GaussianBlur(image, (0, 0), 1.0)


def test_two_symmetric_things_are_not_mirror_images() -> None:
    """Outlines agree either way round, but not to the pixel."""
    first, second = shirt(60, "ABR"), np.roll(shirt(90, "SPQ"), 3, axis=1)

    assert judge(first, second).kind not in NEAR_DUPLICATES
    assert judge(first, second[:, ::-1]).kind not in NEAR_DUPLICATES
    assert judge(first, first[:, ::-1]).kind is Kind.EDITED


def sky(top: float, bottom: float, seed: int) -> np.ndarray:
    """A vertical gradient with a little noise: cloudless sky."""
    rows = np.linspace(top, bottom, 150)[:, None]
    noise = np.random.default_rng(seed).normal(0, 1.0, (150, 150))
    return np.clip(rows + noise, 0, 255).astype(np.uint8)


def test_two_skies_are_not_copies_though_they_correlate() -> None:
    """Gradients correlate near 1 and share nothing but light."""
    found = judge(sky(120, 220, 1), sky(80, 200, 2))

    assert found.correlation > 0.95
    assert found.kind is Kind.LOOK_ALIKE


def test_a_re_encoded_sky_is_found() -> None:
    """Where there is no texture, equal grey levels decide."""
    image = np.repeat(sky(120, 220, 1)[..., None], 3, axis=2)
    copy = decode(edited_jpeg("jpeg", image, np.random.default_rng(0)))
    assert judge(image, copy).kind is Kind.NEAR_IDENTICAL


@pytest.mark.parametrize("level", [0, 128, 255])
def test_constant_images_compare(level: int) -> None:
    """Equal constants are near_identical, other ones are not, and nothing fails."""
    flat = np.full((150, 150), level, np.uint8)

    assert judge(flat, flat) == Evidence(Kind.NEAR_IDENTICAL, 1.0, 1.0, False, 1.0, 0.0, 0)
    assert judge(flat, np.full((90, 150), 60, np.uint8)).kind is Kind.LOOK_ALIKE
    assert judge(flat, camera()).kind is Kind.LOOK_ALIKE


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (10, 10), (8, 3000), (3000, 8), (33, 47)])
def test_any_size_compares(shape: tuple[int, int]) -> None:
    """Tiny and extreme images are near_identical to themselves and no copy of a photo."""
    image = cv2.resize(data.camera(), shape[::-1], interpolation=cv2.INTER_AREA)

    itself = judge(image, image)

    assert (itself.kind, itself.correlation) == (Kind.NEAR_IDENTICAL, 1.0)
    assert judge(image, photo("rocket")).kind not in NEAR_DUPLICATES


@settings(max_examples=15, deadline=None)
@given(
    first=st.sampled_from(PHOTOS),
    second=st.sampled_from(PHOTOS),
    edit=st.sampled_from(list(EDITS)),
    seed=st.integers(0, 9),
)
def test_the_order_of_a_pair_does_not_matter(first: str, second: str, edit: str, seed: int) -> None:
    """Kind, correlation and inliers are equal; scale is inverted; a second call repeats the first to the bit."""
    a = ready(photo(first))
    b = ready(decode(edited_jpeg(edit, photo(second), np.random.default_rng(seed))))

    there, back, again = compare(a, b, PARAMS), compare(b, a, PARAMS), compare(a, b, PARAMS)

    assert there == again
    assert (there.kind, there.correlation, there.inliers) == (back.kind, back.correlation, back.inliers)
    assert there.scale * back.scale == pytest.approx(1.0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 80), st.integers(1, 80))
def test_noise_compares_without_failing(seed: int, height: int, width: int) -> None:
    """Random pixels of any small size: identical to themselves, evidence within its bounds."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width), dtype=np.uint8)

    itself, other = judge(noise, noise), judge(noise, camera())

    assert itself.kind is Kind.NEAR_IDENTICAL
    assert -1 <= other.correlation <= 1
    assert 0 <= other.overlap <= 1


def test_without_pixels_only_very_similar_pairs_are_duplicates() -> None:
    """Both similarities decide; without a signature the embedding alone."""
    assert may_skip(0.985, 0.99, PARAMS)
    assert not may_skip(0.985, 0.97, PARAMS)
    assert not may_skip(0.97, 0.99, PARAMS)
    assert kind_without_pixels(0.985, 0.99, PARAMS) is Kind.NEAR_IDENTICAL
    assert kind_without_pixels(0.985, 0.5, PARAMS) is Kind.LOOK_ALIKE
    assert kind_without_pixels(0.985, None, PARAMS) is Kind.NEAR_IDENTICAL


def test_wrong_parameters_and_pixels_are_usage_errors() -> None:
    """All problems in one message; colour or float pixels are refused."""
    with pytest.raises(UsageError, match=r"agreement is 2.*side is 3"):
        VerifyParams(side=3, agreement=2.0)
    with pytest.raises(UsageError, match="uint8"):
        prepare(np.zeros((4, 4), np.float32), PARAMS)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="uint8"):
        prepare(np.zeros((4, 4, 3), np.uint8), PARAMS)
