"""A COCO dict that a Python caller gives as a source, as the bytes of a COCO file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike, fspath
from typing import Any

from pipeline.errors import UsageError
from pipeline.sources.addresses import is_absolute, resolve
from pipeline.sources.coco import coco_of_dict
from pipeline.sources.listed import Origin

_KEPT = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id", "bbox", "iscrowd"),
    "categories": ("id", "name"),
}


def coco_file(value: Mapping[str, Any], address: str, base: str) -> bytes:
    """The dict as JSON, of what is read of one; its file names lie below `base` and become whole paths or URLs.

    address: what messages call it. Raises UsageError as `coco_of_dict` does, and for a file name that is no path.
    """
    for name in _KEPT:
        if not _is_array(value.get(name, ())):
            raise UsageError(f"{address}: {name} is {type(value[name]).__name__}; wanted an array of objects")
    read = {name: _part(part if _is_array(part) else [part], _KEPT.get(name, ())) for name, part in value.items()}
    coco_of_dict(read, Origin(address, base, "annotation"))
    kept = {name: read.get(name, []) for name in _KEPT}
    for at, image in enumerate(kept["images"]):
        image["file_name"] = _whole(image["file_name"], base, f"{address}, images[{at}]")
    return json.dumps(kept, default=_plain, separators=(",", ":")).encode()


def _is_array(part: Any) -> bool:
    return isinstance(part, Iterable) and not isinstance(part, (str, Mapping))


def _part(elements: Iterable[Any], keys: Iterable[str]) -> list[Any]:
    """What is read of each element, to be read more than once; what is no element stays, to be refused."""
    return [
        {key: _again(element[key]) for key in keys if key in element} if isinstance(element, Mapping) else element
        for element in elements
    ]


def _again(value: Any) -> Any:
    """An iterator, such as `map(int, ...)`, as a list: it gives its values once."""
    return list(value) if isinstance(value, Iterator) else value


def _whole(name: str | PathLike[str], base: str, where: str) -> str:
    try:
        uri = resolve(fspath(name), base).uri
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return uri if is_absolute(uri) else f"{base.rstrip('/')}/{uri}"


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy, and other sequences, as JSON has them; anything else as text, which is no number."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, Iterable) else str(value)
