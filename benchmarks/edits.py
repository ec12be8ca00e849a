"""The nine edits that a near-duplicate search owes its users, as pure functions of an image and a seeded generator.

Every edit takes an RGB uint8 array (H, W, 3) and a `numpy.random.Generator`, leaves its input alone and returns a new
RGB uint8 array. Only `text` and `rotate` draw from the generator (words and place; the direction). Equal input and an
equally seeded generator give equal output on one machine. `EDITS` holds the nine by name, `COMBINED` harder chains of
them for tests, and `edited_jpeg` what a copy looks like at rest.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from types import MappingProxyType

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
Edit = Callable[[Pixels, np.random.Generator], Pixels]

JPEG_QUALITY = 20
SAVED_QUALITY = 90
CROP_SHARE = 0.8
BLUR_SIGMA = 1.5
GAIN, OFFSET = 1.3, 20.0
ROTATION_DEGREES = 8.0
CAPTIONS = ("SAMPLE", "© photo", "For sale", "www.example.org", "DRAFT 42", "Holiday!")


def encode_jpeg(image: Pixels, quality: int = SAVED_QUALITY) -> bytes:
    """RGB uint8 (H, W, 3) as the bytes of a JPEG file of `quality` (1 to 95, Pillow's scale)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def decode(data: bytes) -> Pixels:
    """The RGB uint8 pixels (H, W, 3) of an encoded image."""
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def jpeg(image: Pixels, _rng: np.random.Generator) -> Pixels:
    """Re-encoded as a JPEG of quality 20."""
    return decode(encode_jpeg(image, JPEG_QUALITY))


def half(image: Pixels, _rng: np.random.Generator) -> Pixels:
    """Half the width and height (at least one pixel), by area."""
    height, width = image.shape[:2]
    size = (max(1, width // 2), max(1, height // 2))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def crop(image: Pixels, _rng: np.random.Generator) -> Pixels:
    """The central 80% of the width and of the height, kept at that size."""
    height, width = image.shape[:2]
    top, left = round(height * (1 - CROP_SHARE) / 2), round(width * (1 - CROP_SHARE) / 2)
    return image[top : height - top, left : width - left].copy()


def mirror(image: Pixels, _rng: np.random.Generator) -> Pixels:
    """Left and right exchanged."""
    return image[:, ::-1].copy()


def blur(image: Pixels, _rng: np.random.Generator) -> Pixels:
    """Gaussian blur, sigma 1.5 pixels."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), BLUR_SIGMA), dtype=np.uint8)


def bright(image: Pixels, _rng: np.random.Generator) -> Pixels:
    """Every value times 1.3 plus 20, clipped to 255."""
    return np.clip(np.rint(image * GAIN + OFFSET), 0, 255).astype(np.uint8)


def grey(image: Pixels, _rng: np.random.Generator) -> Pixels:
    """Three equal channels of luminance (ITU-R 601)."""
    luminance = np.rint(image @ np.array([0.299, 0.587, 0.114]))
    return np.repeat(luminance.astype(np.uint8)[..., None], 3, axis=2)


def text(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A caption as wide as 60-80% of the image in white with a dark edge, its words and place drawn from `rng`."""
    height, width = image.shape[:2]
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    words = CAPTIONS[int(rng.integers(len(CAPTIONS)))]
    wanted = width * float(rng.uniform(0.6, 0.8))
    size = max(4.0, 20.0 * wanted / draw.textlength(words, font=ImageFont.load_default(20.0)))
    font = ImageFont.load_default(size)
    left = float(rng.uniform(0, max(1.0, width - wanted)))
    top = float(rng.uniform(0, max(1.0, height - 1.5 * size)))
    draw.text((left, top), words, fill="white", font=font, stroke_width=max(1, round(size / 16)), stroke_fill="black")
    return np.asarray(canvas)


def rotate(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Turned by 8 degrees, either way, about its centre; same size, corners black."""
    degrees = ROTATION_DEGREES * float(rng.choice((-1.0, 1.0)))
    return np.asarray(Image.fromarray(image).rotate(degrees, resample=Image.Resampling.BICUBIC))


EDITS: MappingProxyType[str, Edit] = MappingProxyType(
    {
        "jpeg": jpeg,
        "half": half,
        "crop": crop,
        "mirror": mirror,
        "blur": blur,
        "bright": bright,
        "grey": grey,
        "text": text,
        "rotate": rotate,
    }
)
"""The nine edits of the copies benchmark, in the order of its table."""

SAME_FRAME = frozenset({"jpeg", "half", "blur", "bright", "grey"})
"""Edits that leave every pixel where it was: their pairs are `near_identical`, those of the others `edited`."""

COMBINED: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "crop+mirror": ("crop", "mirror"),
        "crop+bright+jpeg": ("crop", "bright", "jpeg"),
        "rotate+grey": ("rotate", "grey"),
        "mirror+blur+jpeg": ("mirror", "blur", "jpeg"),
        "text+half": ("text", "half"),
        "crop+text": ("crop", "text"),
    }
)
"""Chains of edits, applied from left to right."""


def apply_chain(names: tuple[str, ...], image: Pixels, rng: np.random.Generator) -> Pixels:
    """The edits `names` one after the other; KeyError for a name that is not in `EDITS`."""
    for name in names:
        image = EDITS[name](image, rng)
    return image


def edited_jpeg(name: str, image: Pixels, rng: np.random.Generator) -> bytes:
    """The JPEG file of the edit `name`: quality 90, except for `jpeg`, which is encoded once, at its own 20."""
    if name == "jpeg":
        return encode_jpeg(image, JPEG_QUALITY)
    return encode_jpeg(EDITS[name](image, rng), SAVED_QUALITY)
