"""What a file says about its image before anything is decoded: format, size, orientation, frames, completeness.

Image libraries cannot be asked this without side effects: OpenCV has no header call, and Pillow's costs 20-180 us,
takes files cut off after their last pixel as good and allocates the canvas of a WebP when it opens one.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from pipeline.errors import AuditError
from pipeline.kernels import raster, tiff_kinds
from pipeline.kernels.bmff import av1_bits, brands, jpeg2000_size, largest_area, missing_bytes
from pipeline.kernels.foreign import unsupported_message
from pipeline.schemas import Status


class Header(NamedTuple):
    """Size in pixels as stored (before orientation; 0 when not read), bits per sample, what is missing at the end.

    buffered: bytes per pixel of the coefficients that a JPEG of several scans keeps until the last one is read, and of
    the tile of a TIFF. is_real: samples are floating-point numbers. whole: pixels of the largest image in a HEIF or
    AVIF file, before anything is cut off it. is_negative: the samples of a TIFF count from white down.
    """

    format: str
    width: int = 0
    height: int = 0
    channels: int = 0
    bits: int = 8
    frames: int = 1
    orientation: int = 1
    missing: str = ""
    buffered: float = 0.0
    is_real: bool = False
    whole: int = 0
    is_negative: bool = False


class ImageError(AuditError):
    """An image that cannot be measured. The kernels turn it into a status; it never reaches a user as an error.

    `header` is what was known when it was found out, where that is more than `read_header` tells.
    """

    def __init__(self, status: Status, message: str, header: Header | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.header = header


def sniff(data: bytes) -> str:
    """Format of a file by its first bytes (the keys of `_PARSERS`, or ppm), or "" for others."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        found = brands(data)
        return "avif" if found & _AVIF_BRANDS else "heif" if found & _HEIF_BRANDS else ""
    return _PNM.get(data[:2], "") if data[2:3].isspace() else ""


_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jpeg2000"),
    (b"\xff\x4f\xff\x51", "jpeg2000"),
    (b"\x59\xa6\x6a\x95", "sun"),
    (b"#?RADIANCE", "hdr"),
    (b"#?RGBE", "hdr"),
)
_PNM = {**dict.fromkeys((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), "ppm"), b"P7": "pam", b"PF": "pfm", b"Pf": "pfm"}
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"mif1", b"msf1", *(b"he" + kind for kind in (b"ic", b"ix", b"im", b"is", b"vc", b"vx"))})


def read_header(data: bytes) -> Header:
    """Header of an image file; sizes stay 0 for formats that only a library can parse.

    Raises ImageError: empty, unsupported, or unreadable and truncated where the header itself is.
    """
    if not data:
        raise ImageError(Status.EMPTY, "the file has 0 bytes")
    name = sniff(data)
    if not name:
        raise ImageError(Status.UNSUPPORTED, unsupported_message(data))
    parse = _PARSERS.get(name)
    if parse is None:
        return Header(name)
    try:
        return parse(data)
    except (struct.error, IndexError, OverflowError) as error:  # offsets of 64 bits overflow
        raise ImageError(Status.TRUNCATED, f"{name}: the file ends inside its header") from error
    except ValueError as error:
        raise ImageError(Status.UNREADABLE, f"{name}: {error}") from error


def exif_orientation(block: bytes) -> int:
    """Orientation (1-8) in an EXIF block that starts at its TIFF header; 0 where it is absent, odd or broken."""
    try:
        order = _BYTE_ORDERS[block[:2]]
        offset = struct.unpack_from(order + "I", block, 4)[0]
        entry = struct.Struct(order + "HHI")
        for index in range(struct.unpack_from(order + "H", block, offset)[0]):
            place = offset + 2 + 12 * index
            tag, kind, values = entry.unpack_from(block, place)
            if tag == 0x0112:
                value: int = 0 if values != 1 else struct.unpack_from(order + _INTEGERS[kind], block, place + 8)[0]
                return value if 1 <= value <= 8 else 0
    except (KeyError, struct.error):
        return 0
    return 0


_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_INTEGERS = {1: "B", 3: "H", 4: "I"}
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_JPEG_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment's payload, up to and with the header of the first scan."""
    position, marker = 2, 0
    while marker != 0xDA:
        position = data.find(b"\xff", position)
        if position < 0:
            raise IndexError(position)
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        if marker == 0xD9:
            raise ImageError(Status.UNREADABLE, "jpeg: no image before the end marker")
        position += 1
        if marker not in _JPEG_WITHOUT_LENGTH:
            end = position + (data[position] << 8 | data[position + 1])
            yield marker, position + 2, end
            position = end


def _read_jpeg(data: bytes) -> Header:
    """Complete when an end marker follows the first scan: inside scans a 0xFF byte is always followed by 0x00."""
    width = height = channels = bits = exif = xmp = end = 0
    frame, buffered = (0, 0), 0.0
    for marker, start, end in _jpeg_segments(data):
        if marker in _JPEG_SIZES and not width:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, start)
            frame = marker, start
        elif marker == 0xDA and width:
            buffered = _jpeg_coefficients(data, *frame, data[start])
        elif marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", start):
            exif = exif_orientation(data[start + 6 : end])
        elif marker == 0xE1 and data.startswith(b"http://ns.adobe.com/xap/1.0/\0", start):
            found = _XMP_ORIENTATION.search(data, start, end)
            xmp = int(found[1]) if found else xmp
    if not (width and height):
        raise ImageError(Status.UNREADABLE, f"jpeg: {width}x{height} pixels before the first scan")
    ended = (data.endswith(b"\xff\xd9") and len(data) >= end + 2) or data.find(b"\xff\xd9", end) >= 0
    missing = "" if ended else "the end-of-image marker"
    return Header("jpeg", width, height, channels, bits, 1, exif or xmp or 1, missing, buffered)


def _jpeg_coefficients(data: bytes, marker: int, frame: int, scanned: int) -> float:
    """Bytes per pixel of the coefficients of all components; 0 where the first scan (of `scanned`) has them all."""
    channels = data[frame + 5]
    if marker not in _JPEG_PROGRESSIVE and scanned >= channels:
        return 0.0
    factors = [(byte >> 4, byte & 15) for byte in data[frame + 7 : frame + 6 + 3 * channels : 3]]
    blocks = max(across for across, _ in factors) * max(down for _, down in factors)
    return 2 * sum(across * down for across, down in factors) / max(1, blocks)


_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}


def _read_png(data: bytes) -> Header:
    """Complete when the chunks lead to IEND."""
    width, height, bits, kind = struct.unpack_from(">IIBB", data, 16)
    frames = orientation = 1
    position, name = 8, b""
    while name != b"IEND" and position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name == b"acTL":
            frames = max(1, struct.unpack_from(">I", data, position + 8)[0])
        elif name == b"eXIf":
            orientation = exif_orientation(data[position + 8 : position + 8 + length]) or 1
        position += 12 + length
    missing = "" if name == b"IEND" and position <= len(data) else "the IEND chunk"
    return Header("png", width, height, _PNG_CHANNELS.get(kind, 0), bits, frames, orientation, missing)


def _read_gif(data: bytes) -> Header:
    """Count the image blocks; complete when they lead to the trailer. Bytes after the trailer are nobody's."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    frames, missing = 0, "the trailer"
    try:
        while data[position] != 0x3B:
            block = data[position]
            if block == 0x2C:
                frames += 1
                flags = data[position + 9]
                position += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
            elif block == 0x21:
                position += 2
            else:  # not a block: what follows cannot be told, the decoder decides
                break
            while size := data[position]:
                position += size + 1
            position += 1
        missing = ""
    except IndexError:
        pass
    return Header("gif", width, height, 3, 8, max(1, frames), 1, missing)


def _read_bmp(data: bytes) -> Header:
    """Complete when the rows fit in the file, each padded to 4 bytes; compressed ones are left to the decoder."""
    offset, size = struct.unpack_from("<II", data, 10)
    if size == 12:
        (width, height, bits), packing = struct.unpack_from("<HH2xH", data, 18), 0
    else:
        width, height, bits, packing = struct.unpack_from("<ii2xHI", data, 18)
    width, height = abs(width), abs(height)
    needed = offset + (width * bits + 31) // 32 * 4 * height if packing in (0, 3) else 0
    missing = f"{needed - len(data)} bytes of pixels" if needed > len(data) else ""
    return Header("bmp", width, height, 4 if bits == 32 else 3, 8, 1, 1, missing)


def _read_webp(data: bytes) -> Header:
    """Complete when the file is as long as its RIFF header says."""
    end = struct.unpack_from("<I", data, 4)[0] + 8
    width = height = frames = 0
    channels, orientation, position = 3, 1, 12
    while position + 8 <= min(end, len(data)):
        name, length = struct.unpack_from("<4sI", data, position)
        start = position + 8
        if name == b"VP8X":
            channels = 4 if data[start] & 0x10 else 3
            low, high, tall_low, tall_high = struct.unpack_from("<HBHB", data, start + 4)  # 24-bit sides, less 1
            width, height = 1 + low + (high << 16), 1 + tall_low + (tall_high << 16)
        elif name == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, start + 6))
        elif name == b"VP8L" and not width:
            fields = struct.unpack_from("<I", data, start + 1)[0]
            width, height, channels = 1 + (fields & 0x3FFF), 1 + (fields >> 14 & 0x3FFF), 4 if fields >> 28 & 1 else 3
        elif name == b"EXIF":
            block = data[start : start + length]
            orientation = exif_orientation(block[6:] if block.startswith(b"Exif\0\0") else block) or 1
        frames += name == b"ANMF"
        position = start + length + length % 2
    missing = f"{end - len(data)} bytes" if end > len(data) else ""
    return Header("webp", width, height, channels, 8, max(1, frames), orientation, missing)


def _read_heif(data: bytes) -> Header:
    """Size and frames come from the library; complete when the outermost boxes fit in the file."""
    return Header("heif", missing=_bytes_short(missing_bytes(data)), whole=largest_area(data))


def _read_avif(data: bytes) -> Header:
    return _read_heif(data)._replace(format="avif", bits=av1_bits(data))


def _read_jpeg2000(data: bytes) -> Header:
    """Complete when the codestream has its end marker."""
    width, height, channels, bits, ended = jpeg2000_size(data)
    if min(width, height) < 1:
        raise ValueError(f"{width}x{height} pixels")
    return Header("jpeg2000", width, height, channels, bits, missing="" if ended else "the end-of-codestream marker")


def _read_raster(name: str, parse: Callable[[bytes], raster.Raster], data: bytes) -> Header:
    """Complete when the rows fit in the file; packed ones are left to the decoder."""
    found = parse(data)
    if not found.width * found.height:
        raise ValueError(f"{found.width}x{found.height} pixels")
    missing = _bytes_short(found.start + found.size - len(data))
    is_real = name != "pam"
    return Header(name, found.width, found.height, found.channels, 8 * found.depth, missing=missing, is_real=is_real)


def _read_sun(data: bytes) -> Header:
    """Complete when the rows fit in the file, each padded to 2 bytes, or packed ones are as long as is said."""
    width, height, bits, length, kind, _, colours = struct.unpack_from(">7I", data, 4)
    size = length if kind == 2 else (width * bits + 15) // 16 * 2 * height
    missing = _bytes_short(32 + colours + size - len(data))
    return Header("sun", width, height, 1 if bits <= 8 else 3, missing=missing)


def _bytes_short(count: int) -> str:
    return f"{count} bytes" if count > 0 else ""


_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_TIFF_VALUES = 2_000_000  # a picture of max_pixels in tiles of 16x16 has 600,000; directories may hide in each other
_TIFF_USED = tiff_kinds.USED | {256, 257, 273, 274, 279, 322, 323, 324, 325}


def _read_tiff(data: bytes) -> Header:
    """Walk every directory; complete when all values, strips and tiles lie inside the file."""
    order = _BYTE_ORDERS[data[:2]]
    is_big = data[2:4] in (b"+\0", b"\0+")
    offset = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)[0]
    seen: set[int] = set()
    first: dict[int, tuple[int, ...]] = {}
    end = values = 0
    while offset and offset not in seen:
        seen.add(offset)
        tags, last, following = _tiff_directory(data, offset, order, is_big)
        values += sum(map(len, tags.values())) + 4 * struct.unpack_from(order + "HQ"[is_big], data, offset)[0]
        if values > _TIFF_VALUES:
            raise ValueError(f"{values:,} values in {len(seen):,} directories")
        first = first or tags
        for starts, sizes in ((273, 279), (324, 325)):
            spans = zip(tags.get(starts, ()), tags.get(sizes, ()), strict=False)
            last = max(last, max((start + size for start, size in spans), default=0))
        end, offset = max(end, last), following
    width, height, bits, channels = (first.get(tag, (one,))[0] for tag, one in ((256, 0), (257, 0), (258, 1), (277, 1)))
    orientation = first.get(274, (1,))[0]
    orientation = orientation if 1 <= orientation <= 8 else 1
    missing = f"{end - len(data)} bytes" if end > len(data) else ""
    tile = first.get(322, (0,))[0] * first.get(323, (0,))[0] * channels * max(1, bits // 8)
    buffered, is_real = tile / max(1, width * height), first.get(339, (1,))[0] == 3
    header = Header("tiff", width, height, channels, bits, max(1, len(seen)), orientation, missing, buffered, is_real)
    if (refused := tiff_kinds.refusal(first)) and not missing:
        raise ImageError(Status.UNSUPPORTED, refused, header)
    return header._replace(is_negative=tiff_kinds.is_negative(first))


def _tiff_directory(data: bytes, offset: int, order: str, is_big: bool) -> tuple[dict[int, tuple[int, ...]], int, int]:
    """The used tags of one directory, the last byte that its values need, and the next directory's offset."""
    head, entry, room = ("Q", "HHQ", 8) if is_big else ("H", "HHI", 4)
    count = struct.unpack_from(order + head, data, offset)[0]
    place, step = offset + struct.calcsize(order + head), 4 + 2 * room
    tags: dict[int, tuple[int, ...]] = {}
    last = total = 0
    for start in range(place, place + step * count, step):
        tag, kind, values = struct.unpack_from(order + entry, data, start)
        size = _TIFF_SIZES.get(kind, 0) * values
        where = start + 4 + room
        if size > room:
            where = struct.unpack_from(order + ("Q" if is_big else "I"), data, where)[0]
        last, total = max(last, where + size), total + size
        if tag in _TIFF_USED - tags.keys() and kind in _TIFF_INTEGERS and 0 < size <= len(data) - where:
            tags[tag] = struct.unpack_from(f"{order}{values}{_TIFF_INTEGERS[kind]}", data, where)
    if last <= len(data) < total // 2:  # a decoder would copy each
        raise ValueError(f"values of {total:,} bytes lie on top of each other in {len(data):,}")
    following = struct.unpack_from(order + ("Q" if is_big else "I"), data, place + step * count)[0]
    return tags, last, following


_PARSERS: dict[str, Callable[[bytes], Header]] = {
    "jpeg": _read_jpeg,
    "png": _read_png,
    "gif": _read_gif,
    "bmp": _read_bmp,
    "webp": _read_webp,
    "tiff": _read_tiff,
    "avif": _read_avif,
    "heif": _read_heif,
    "jpeg2000": _read_jpeg2000,
    "hdr": partial(_read_raster, "hdr", raster.radiance_header),
    "pfm": partial(_read_raster, "pfm", raster.pfm_header),
    "sun": _read_sun,
    "pam": partial(_read_raster, "pam", raster.pam_header),
}
