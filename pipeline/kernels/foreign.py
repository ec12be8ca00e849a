"""Names of formats that are not read here, by their first bytes: so that a message can say what a file is."""

from __future__ import annotations

_MAGIC = (
    (0, b"%PDF", "pdf", "export its pages as images"),
    (128, b"DICM", "dicom", "export it as 16-bit png or tiff"),
    (0, b"v/1\x01", "exr", "convert it to hdr, pfm or float tiff"),
    (0, b"\0\0\0\x0cJXL ", "jpeg xl", "convert it to png or jpeg"),
    (0, b"\xff\x0a", "jpeg xl", "convert it to png or jpeg"),
    (0, b"8BPS", "psd", "export it as png or tiff"),
    (0, b"<svg", "svg", "export it as png"),
    (0, b"%!PS", "postscript", "export it as png"),
    (0, b"\0\0\x01\0", "ico", "convert it to png"),
    (0, b"PK\3\4", "zip", ""),
    (0, b"\x1f\x8b", "gzip", ""),
    (257, b"ustar", "tar", ""),
    (4, b"ftyp", "a video or another ISO media file", ""),
    (8, b"AVI ", "an avi video", ""),
    (0, b"\x1aE\xdf\xa3", "a mkv or webm video", ""),
    (0, b"<!DOCTYPE", "html", ""),
    (0, b"<html", "html", ""),
)


def unsupported_message(data: bytes) -> str:
    """What a file of no format that is read here is, where its first bytes tell, and what can be done about it."""
    for place, magic, name, advice in _MAGIC:
        if data.startswith(magic, place):
            return f"{name} is not read here as an image{'; ' * bool(advice)}{advice}"
    return f"not an image format that is read here (first bytes {data[:12].hex()})"
