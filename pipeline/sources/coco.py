"""COCO annotations, from a file or a dict, in columns: under 200 MB per million annotations or images."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any, BinaryIO

import numpy as np

from pipeline.errors import UsageError
from pipeline.sources.box_columns import XYWH, problem_of_box, problem_of_number
from pipeline.sources.json_stream import json_elements
from pipeline.sources.line_blocks import unpacked
from pipeline.sources.listed import Origin, escape_bytes_anyway

HAS_BOX, IS_CROWD, HAS_NONE = 0, 1, 2
NO_ID = 2**62
SHOWN = 40
_NAN = float("nan")


class Ids:
    """Codes of ids: a whole number is its own; text, which some tools write, gets negative ones from -2^62 down."""

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}

    def code(self, value: object) -> int | None:
        """The code of an id; None where it is none."""
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and abs(int(value)) < NO_ID:
            return int(value)
        return self._texts.setdefault(value, -NO_ID - len(self._texts)) if isinstance(value, str) else None

    def text(self, code: int) -> str:
        """The id of a code."""
        return str(code) if code > -NO_ID else next(text for text, found in self._texts.items() if found == code)


@dataclass
class Coco:
    """What a COCO file of n images and m annotations says; ids are codes of `ids`.

    image_ids, file_names: (n,). category_names: by id; one without a name is left out. of_image, of_category: (m,),
    NO_ID for no category. boxes: (4m,) x, y, width, height, NaN where one is no number. kinds: (m,) HAS_BOX, IS_CROWD
    or HAS_NONE. problems: by annotation, what is wrong with a box beside its numbers.
    """

    ids: Ids = field(default_factory=Ids)
    image_ids: array[int] = field(default_factory=lambda: array("q"))
    file_names: list[str] = field(default_factory=list)
    category_names: dict[int, str] = field(default_factory=dict)
    of_image: array[int] = field(default_factory=lambda: array("q"))
    of_category: array[int] = field(default_factory=lambda: array("q"))
    boxes: array[float] = field(default_factory=lambda: array("d"))
    kinds: array[int] = field(default_factory=lambda: array("b"))
    problems: dict[int, str] = field(default_factory=dict)


def read_coco(stream: BinaryIO, origin: Origin) -> Coco:
    """A COCO file, read element by element; it may be gzip. Raises UsageError as `coco_of` does, and for bad JSON."""
    return coco_of(json_elements(unpacked(stream, origin), origin.address), origin)


def coco_of_dict(value: Mapping[str, Any], origin: Origin) -> Coco:
    """A COCO dict, as json.load gives it, or with numbers of numpy and paths. Raises UsageError as `coco_of` does."""
    return coco_of(_elements(value), origin)


def coco_of(elements: Iterable[tuple[str, Any]], origin: Origin) -> Coco:
    """What (name, element) pairs of the arrays `images`, `annotations` and `categories` say; others are skipped.

    Raises UsageError for a file without images, an element that is no object, an image without id or file_name, two
    images of one id, and an annotation or category without the ids that COCO wants.
    """
    coco, known = Coco(), set()
    add = {"images": _add_image, "annotations": _add_annotation, "categories": _add_category}
    counts = dict.fromkeys(add, 0)
    for name, element in elements:
        if name not in add:
            known.add(escape_bytes_anyway(name[:SHOWN]))
            continue
        where = f"{origin.address}, {name}[{counts[name]}]"
        if not isinstance(element, Mapping):
            raise UsageError(f"{where} is {_seen(element)}; wanted an object")
        add[name](coco, element, where)
        counts[name] += 1
    if not counts["images"]:
        known.update(name for name, count in counts.items() if count)
        raise UsageError(
            f"{origin.address} has {', '.join(sorted(known)[:SHOWN]) or 'nothing'} and no images; wanted a COCO file: "
            "images, annotations and categories"
        )
    _require_single(coco, origin)
    return coco


def _elements(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, elements in value.items():
        if not isinstance(elements, Iterable) or isinstance(elements, (str, Mapping)):
            yield str(name), elements
        else:
            yield from ((str(name), element) for element in elements)


def _add_image(coco: Coco, element: Mapping[str, Any], where: str) -> None:
    file_name = element.get("file_name")
    file_name = fspath(file_name) if isinstance(file_name, PathLike) else file_name
    if not isinstance(file_name, str) or not file_name:
        raise UsageError(f"{where} has the file_name {_seen(file_name)}; wanted a path")
    try:
        file_name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise UsageError(f"{where} has the file_name {_seen(file_name)}, which is no text: rename it") from None
    coco.image_ids.append(_id(coco, element, "id", where))
    coco.file_names.append(file_name)


def _add_category(coco: Coco, element: Mapping[str, Any], where: str) -> None:
    code, name = _id(coco, element, "id", where), element.get("name")
    text = "" if name is None else str(name).strip()
    if text != escape_bytes_anyway(text):
        raise UsageError(f"{where} has the name {_seen(name)}, which is not UTF-8: save the file as UTF-8")
    if text:
        coco.category_names.setdefault(code, text)


def _add_annotation(coco: Coco, element: Mapping[str, Any], where: str) -> None:
    has_category = element.get("category_id") is not None
    coco.of_image.append(_id(coco, element, "image_id", where))
    coco.of_category.append(_id(coco, element, "category_id", where) if has_category else NO_ID)
    box = element.get("bbox")
    if element.get("iscrowd"):
        coco.kinds.append(IS_CROWD)
    else:
        coco.kinds.append(HAS_NONE if _is_nothing(box) else HAS_BOX)
    numbers, problem = _numbers(box)
    if problem is not None and coco.kinds[-1] == HAS_BOX:
        coco.problems[len(coco.kinds) - 1] = problem
    coco.boxes.extend(numbers)


def _is_nothing(box: object) -> bool:
    return box is None or (
        isinstance(box, Sized) and isinstance(box, Iterable) and not isinstance(box, str) and not len(box)
    )


def _numbers(box: object) -> tuple[Iterable[float], str | None]:
    """Four numbers, NaN for what is none, and what is wrong with them beside their values."""
    if isinstance(box, (list, tuple)) and len(box) == len(XYWH) and all(type(value) is float for value in box):
        return box, None
    if not isinstance(box, Iterable) or isinstance(box, (str, Mapping)):
        return (_NAN,) * len(XYWH), f"bbox {_seen(box)}; wanted x, y, width, height"
    values = list(box)
    plain = [float(value) if problem_of_number("", value) is None else _NAN for value in values]
    return (plain + [_NAN] * len(XYWH))[: len(XYWH)], problem_of_box("xywh", values)


def _id(coco: Coco, element: Mapping[str, Any], name: str, where: str) -> int:
    value = element.get(name)
    code = coco.ids.code(value)
    if code is None:
        raise UsageError(f"{where} has the {name} {_seen(value)}; wanted a whole number or text")
    return code


def _require_single(coco: Coco, origin: Origin) -> None:
    ids = np.asarray(coco.image_ids)
    order = np.argsort(ids, kind="stable")
    for at in np.flatnonzero(ids[order[1:]] == ids[order[:-1]]).tolist():
        first, second = (coco.file_names[order[place]] for place in (at, at + 1))
        if first != second:
            raise UsageError(
                f"{origin.address} has two images of id {coco.ids.text(int(ids[order[at]]))}: "
                f"{_seen(first)} and {_seen(second)}; wanted an id for each"
            )


def _seen(value: object) -> str:
    text = repr(value)
    return escape_bytes_anyway(text if len(text) <= SHOWN else text[:SHOWN] + "...")
