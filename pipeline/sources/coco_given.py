"""A COCO dict that a Python caller gives as a source, as the bytes of a COCO file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
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
    whole = {name: list(part) if _is_array(part) else part for name, part in value.items()}
    coco_of_dict(whole, Origin(address, base, "annotation"))
    kept = {name: [_part(element, keys) for element in whole.get(name, ())] for name, keys in _KEPT.items()}
    for at, image in enumerate(kept["images"]):
        image["file_name"] = _whole(image["file_name"], base, f"{address}, images[{at}]")
    return json.dumps(kept, default=_plain, separators=(",", ":")).encode()


def _is_array(part: Any) -> bool:
    return isinstance(part, Iterable) and not isinstance(part, (str, Mapping))


def _part(element: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: element[key] for key in keys if key in element}


def _whole(name: str, base: str, where: str) -> str:
    try:
        uri = resolve(name, base).uri
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return uri if is_absolute(uri) else f"{base.rstrip('/')}/{uri}"


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy, and other sequences, as JSON has them; anything else as text, which is no number."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, Iterable) else str(value)
