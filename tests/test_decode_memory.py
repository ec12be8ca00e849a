"""What measuring takes at its peak is known beforehand, and what would take more than is given is not decoded."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
from PIL import Image, features

import pipeline
from pipeline.kernels.measure import MeasureParams, measure
from pipeline.schemas import Status

SIDE = 2000
PIXELS = SIDE * SIDE
RAMP = np.ascontiguousarray(np.broadcast_to(np.arange(SIDE, dtype=np.uint8)[None, :, None], (SIDE, SIDE, 4)))


def encoded(mode: str, format_name: str, **options: object) -> bytes:
    channels = {"P": 1, "L": 1, "RGB": 3}.get(mode, 4)
    image = Image.frombytes(mode, (SIDE, SIDE), np.ascontiguousarray(RAMP[:, :, :channels]).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def sixteen_bits(extension: str, channels: int) -> bytes:
    return cv2.imencode(extension, RAMP[:, :, :channels].astype(np.uint16) * 257)[1].tobytes()


def deep_avif(channels: int) -> bytes:
    options = [cv2.IMWRITE_AVIF_DEPTH, 10, cv2.IMWRITE_AVIF_SPEED, 10]
    return cv2.imencode(".avif", RAMP[:, :, :channels].astype(np.uint16) * 4, options)[1].tobytes()


def real(extension: str, *options: int) -> bytes:
    return cv2.imencode(extension, RAMP[:, :, :3].astype(np.float32), options)[1].tobytes()


def heif(mode: str, **options: object) -> bytes:
    buffer, bits = io.BytesIO(), np.uint16 if mode.endswith("16") else np.uint8
    pixels = RAMP[:, :, : len(mode.partition(";")[0])].astype(bits) * (257 if bits is np.uint16 else 1)
    made = pillow_heif.from_bytes(mode, (SIDE, SIDE), pixels.tobytes())
    made.save(buffer, quality=30, enc_params={"preset": "ultrafast"}, **options)
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {
        "jpeg": encoded("RGB", "JPEG"),
        "jpeg turned": encoded("RGB", "JPEG", exif=turned),
        "jpeg grey": encoded("L", "JPEG"),
        "jpeg progressive": encoded("RGB", "JPEG", progressive=True, subsampling=0),
        "jpeg of four inks": encoded("CMYK", "JPEG"),
        "jpeg of four inks, progressive": encoded("CMYK", "JPEG", progressive=True),
        "png": encoded("RGB", "PNG", compress_level=1),
        "png with alpha": encoded("RGBA", "PNG", compress_level=1),
        "png with alpha, turned": encoded("RGBA", "PNG", compress_level=1, exif=turned),
        "png with palette and alpha": encoded("P", "PNG", transparency=bytes(range(256))),
        "png of 16 bits": sixteen_bits(".png", 4),
        "tiff of 16 bits": sixteen_bits(".tiff", 3),
        "tiff in one strip": encoded("CMYK", "TIFF", compression="tiff_lzw", tiffinfo={278: SIDE}),
        "gif": encoded("P", "GIF"),
        "bmp": encoded("RGB", "BMP"),
        "ppm": encoded("RGB", "PPM"),
        "webp": encoded("RGB", "WEBP", quality=50, method=0),
        "webp without loss": encoded("RGBA", "WEBP", lossless=True, method=0),
        "jpeg2000": encoded("RGBA", "JPEG2000", num_resolutions=3),
        "sun": cv2.imencode(".ras", RAMP[:, :, :3])[1].tobytes(),
        "pam": b"P7\nWIDTH 2000\nHEIGHT 2000\nDEPTH 4\nMAXVAL 65535\nENDHDR\n" + RAMP.astype(">u2").tobytes(),
        "pfm": real(".pfm"),
        "hdr": real(".hdr"),
        "hdr without runs": real(".hdr", cv2.IMWRITE_HDR_COMPRESSION, 0),
        "tiff of real numbers": real(".tiff"),
        "heif": heif("RGB", chroma=444),
        "heif of tiles": heif("RGB", tile_size=512),
        "heif of 10 bits": heif("RGBA;16"),
        "avif of 10 bits": deep_avif(3),
        "avif of 10 bits, grey": deep_avif(1),
        "avif of 10 bits with alpha": deep_avif(4),
    }
    if features.check("avif"):
        made["avif"] = encoded("RGBA", "AVIF", speed=10)
    return made


def claimed(data: bytes) -> int:
    """Megabytes that the refusal names where next to nothing is given."""
    refused = measure(data, MeasureParams(max_memory=1))
    assert refused.status is Status.TOO_LARGE, refused.message
    assert "raise measure.max_memory" in refused.message
    return int(refused.message.split(" take ")[1].split(" MB")[0].replace(",", ""))


def test_no_format_takes_more_than_was_reckoned(tmp_path: Path) -> None:
    """Linux tells the peak of a process, and forgets it on request."""
    made = files()
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    script = """
import pathlib, sys
import pillow_heif
from PIL import Image
from pipeline.kernels.measure import MeasureParams, measure
Image.init()
small = pathlib.Path(sys.argv[2]).read_bytes()
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    measure(small, MeasureParams())
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    status = measure(data, MeasureParams()).status.value
    print(path.name, status, len(data) + peak() - before, sep="|")
"""
    photo = sorted((Path(pipeline.__file__).parent / "demo_photos").glob("*.jpg"))[0]
    arguments = [sys.executable, "-c", script, str(tmp_path), str(photo)]
    given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # else memory of the one before is used again
    run = subprocess.run(arguments, capture_output=True, text=True, check=True, env=given_back)
    lines = run.stdout.splitlines()
    assert len(lines) == len(made)
    for line in lines:
        name, status, taken = line.split("|")
        assert status == "ok", line
        assert int(taken) / 1e6 <= claimed(made[name]) + 5, line  # 5: rounding, bands of 2^18 pixels, the shrunk copy


def test_a_large_photo_is_measured_and_one_of_16_bits_with_alpha_is_not() -> None:
    """79 million pixels: the header alone decides."""
    photo = encoded("RGB", "JPEG")
    start = photo.index(b"\xff\xc0") + 5
    large = photo[:start] + (8900).to_bytes(2, "big") * 2 + photo[start + 4 :]
    assert claimed(large) == 8900**2 * 6 // 10**6
    assert claimed(large) * 1e6 < MeasureParams().max_memory
    deep = sixteen_bits(".png", 4)
    deep = deep[:16] + (8900).to_bytes(4, "big") * 2 + deep[24:]
    refused = measure(deep, MeasureParams())
    assert (refused.status, refused.width, refused.format) == (Status.TOO_LARGE, 8900, "png")
