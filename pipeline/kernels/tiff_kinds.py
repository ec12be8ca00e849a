"""Which TIFFs no decoder here reads, or reads as something else, told by their tags."""

from __future__ import annotations

from collections.abc import Mapping

USED = frozenset({258, 262, 277, 284, 339})
"""Tags that are asked for: bits, what the samples stand for, channels, planes, kind of number."""

_LAB = (8, 9, 10)
_SIGNED, _REAL, _COMPLEX = 2, 3, (5, 6)


def refusal(tags: Mapping[int, tuple[int, ...]]) -> str:
    """What is wrong and the next step, "" where nothing is; tags as the TIFF 6.0 specification numbers them."""
    bits, sample = tags.get(258, (1,))[0], tags.get(339, (1,))[0]
    if tags.get(262, (1,))[0] in _LAB:
        return "tiff in Lab colours is not read; convert it to RGB of 8 or 16 bits"
    said = _wrong_numbers(bits, sample)
    if not said and bits > 8 and tags.get(277, (1,))[0] > 1 and tags.get(284, (1,))[0] == 2:
        kept = "save it with the channels of a pixel side by side (planar configuration 1), or with 8 bits"
        return f"tiff of {bits} bits with each channel in a plane of its own is not read; {kept}"
    return said


def _wrong_numbers(bits: int, sample: int) -> str:
    if sample in _COMPLEX:
        return "tiff of complex numbers is not read; convert it to 8 or 16 bits"
    if sample == _REAL:
        wanted = "convert it to those of 32 bits"
        return "" if bits in (32, 64) else f"tiff of real numbers of {bits} bits is not read; {wanted}"
    if sample != _SIGNED and bits <= 16:
        return ""
    kind = "signed whole numbers" if sample == _SIGNED else "whole numbers"
    unshown = "does not tell which number is black and which is white; convert it to 8 or 16 bits without a sign"
    return f"tiff of {kind} of {bits} bits {unshown}"


def is_negative(tags: Mapping[int, tuple[int, ...]]) -> bool:
    """Whether the samples count from white down."""
    return tags.get(262, (1,))[0] == 0
