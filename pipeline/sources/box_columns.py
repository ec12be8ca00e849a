"""Boxes from the columns of a table: `col_x, row_y, width, height`, or the corners `x1, y1, ..., x4, y4`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.sources.listed import non_empty

XYWH = ("col_x", "row_y", "width", "height")
CORNERS = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")
KINDS = {"xywh": XYWH, "corners": CORNERS}
LEAST_AREA = 1e-9
SHOWN = 40
_EXACT = 2**53
_UNDERSCORED = re.compile("_")  # float() takes 1_000 for a thousand


@dataclass(frozen=True)
class Numbers:
    """A column of n numbers. values: float64, NaN where there is none; is_missing: bool; bad: text that is no number,
    by row.
    """

    values: NDArray[np.float64]
    is_missing: NDArray[np.bool_]
    bad: Mapping[int, str]


def numbers_of(column: pa.Array) -> Numbers:
    """The numbers of a column of numbers or of text, where null and an empty text are none."""
    if pa.types.is_null(column.type):
        return Numbers(np.full(len(column), np.nan), np.ones(len(column), np.bool_), {})
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return _parsed(column)
    values = pc.fill_null(pc.cast(column, pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False)
    return Numbers(values, pc.is_null(column).to_numpy(zero_copy_only=False), {})


def boxes_of(columns: Mapping[str, Numbers], count: int) -> tuple[pa.Array, pa.Array]:
    """Fragment and problem of `count` rows, strings with nulls, from the columns of XYWH, of CORNERS or of both.

    A row without any number is the whole image: both null. One with a bad box has both.
    """
    fragments, problems = pa.nulls(count, pa.string()), pa.nulls(count, pa.string())
    seen = np.zeros(count, np.bool_)
    for kind, names in KINDS.items():
        if names[0] not in columns:
            continue
        found = [columns[name] for name in names]
        values = np.stack([numbers.values for numbers in found], axis=1)
        given = ~np.logical_and.reduce([numbers.is_missing for numbers in found])
        problem = _problems(kind, values, found, given)
        fragments = pc.if_else(pa.array(given & ~seen), fragments_of(kind, values), fragments)
        problems = pc.if_else(pa.array(given & ~seen), problem, problems)
        problems = pc.if_else(pa.array(given & seen), "two boxes: one by sides, one by corners", problems)
        seen |= given
    return fragments, problems


def fragments_of(kind: str, values: NDArray[np.float64]) -> pa.Array:
    """`xywh=...` or `corners=...` of numbers (n, 4) or (n, 8); numbers as `repr` has them, whole ones without `.0`."""
    spelled = [_spelled(np.ascontiguousarray(column)) for column in values.T]
    joined = pc.binary_join_element_wise(*spelled, ",")
    return pc.binary_join_element_wise(pa.scalar(f"{kind}="), joined, "")


def problem_of_box(kind: str, values: Sequence[object]) -> str | None:
    """Why numbers x, y, width, height (`xywh`) or of four corners (`corners`) are no box; None where they are one.

    A value may be anything: None is a missing number.
    """
    names = KINDS[kind]
    if len(values) != len(names):
        return f"{len(values)} numbers, wanted {len(names)}"
    wrong = next(filter(None, map(problem_of_number, names, values)), None)
    if wrong is not None:
        return wrong
    numbers = np.array([[_float(value) for value in values]], np.float64)
    if not _is_flat(kind, numbers)[0]:
        return None
    if kind == "corners":
        return "corners without an area"
    at = 2 if numbers[0, 2] <= 0 else 3
    return f"{names[at]} {spell(float(numbers[0, at]))}"


def spell(value: float) -> str:
    """A number as fragments have it: `repr`, whole ones without `.0`."""
    return "0" if value == 0 else repr(value).removesuffix(".0")


def problem_of_number(name: str, value: object) -> str | None:
    """Why one value of a box is no number; None where it is one."""
    if value is None:
        return f"{name} is missing"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{name} {repr(value)[:SHOWN]} is no number"
    if not math.isfinite(_float(value)):
        return f"{name} {value if isinstance(value, float) else 'is too large'}"
    return None


def _float(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf


def _problems(kind: str, values: NDArray[np.float64], found: Sequence[Numbers], given: NDArray[np.bool_]) -> pa.Array:
    said: list[str | None] = [None] * len(values)
    wrong = given & (~np.isfinite(values).all(axis=1) | _is_flat(kind, values))
    for row in np.flatnonzero(wrong).tolist():
        seen = [
            None if numbers.is_missing[row] else numbers.bad.get(row, value)
            for numbers, value in zip(found, values[row].tolist(), strict=True)
        ]
        said[row] = problem_of_box(kind, seen)
    return pa.array(said, pa.string())


def _is_flat(kind: str, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether boxes have no area, bool (n,); of corners it is the shoelace formula's."""
    if kind == "xywh":
        flat: NDArray[np.bool_] = (values[:, 2] <= 0) | (values[:, 3] <= 0)
        return flat
    x, y = values[:, ::2], values[:, 1::2]
    with np.errstate(over="ignore", invalid="ignore"):
        area = np.abs((x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1)) / 2
    is_flat: NDArray[np.bool_] = ~(area > LEAST_AREA)
    return is_flat


def _parsed(column: pa.Array) -> Numbers:
    text = non_empty(pc.utf8_trim_whitespace(column))
    is_missing = pc.is_null(text).to_numpy(zero_copy_only=False)
    try:
        values = pc.fill_null(text.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
        return Numbers(values, is_missing, {})
    except pa.ArrowInvalid:
        pass
    parsed, bad = np.full(len(text), np.nan), {}
    for row in np.flatnonzero(~is_missing).tolist():
        value = text[row].as_py()
        number = _number(value)
        if number is None:
            bad[row] = value
        else:
            parsed[row] = number
    return Numbers(parsed, is_missing, bad)


def _number(text: str) -> float | None:
    try:
        return float(_UNDERSCORED.sub("?", text))
    except ValueError:
        return None


def _spelled(values: NDArray[np.float64]) -> pa.Array:
    """Whole numbers are spelled by Arrow, 20 times as fast as by Python."""
    with np.errstate(invalid="ignore"):
        is_whole = (np.abs(values) < _EXACT) & (values == np.trunc(values))
    if is_whole.all():
        return pa.array(values.astype(np.int64)).cast(pa.string())
    return pa.array([spell(value) for value in values.tolist()], pa.string())
