"""The YAML of a YOLO data set: where its splits are, and what its classes are called."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pipeline.errors import UsageError
from pipeline.sources.addresses import joined
from pipeline.sources.listed import Origin
from pipeline.sources.splits import canonical_split

MAX_BYTES, MAX_DEPTH = 2**21, 20
"""A file with the names of 20,000 classes has 0.4 MB and three levels."""
SPLITS = ("train", "val", "valid", "validation", "test")
LIST_SUFFIXES = (".txt", ".csv", ".parquet")
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map"))


class SplitPlace(NamedTuple):
    """A folder or, with `is_list`, a list file of one split, as a canonical uri."""

    split: str
    address: str
    is_list: bool


class YoloSet(NamedTuple):
    """What the YAML says. names: of the classes, by their number; empty where it names none."""

    places: tuple[SplitPlace, ...]
    names: tuple[str, ...]


def read_yolo_yaml(data: bytes, origin: Origin) -> YoloSet:
    """The splits and classes of a YOLOv5 data YAML; origin.base is its folder.

    `train`, `val` and `test` name a folder, a list file or several of these, relative to `path`, which is relative to
    the folder of the YAML. Every value is read as text, so a class may be called `no`. Raises UsageError for what is no
    YAML, has aliases or tags of objects, names no split, or gives another number of classes than `nc`.
    """
    value = _loaded(data, origin)
    root = _place(origin.base, _text(value.get("path", ""), "path", origin), origin)
    places = [
        SplitPlace(canonical_split(split), address, address.lower().endswith(LIST_SUFFIXES))
        for split in SPLITS
        for address in _addresses(value.get(split), split, root, origin)
    ]
    if not places:
        raise UsageError(
            f"{origin.address} has the keys {', '.join(map(str, value)) or '(none)'}; wanted train, val or test: a "
            "folder or list file for each"
        )
    names = _names(value.get("names"), origin)
    count = value.get("nc")
    if count not in (None, "") and names and count != str(len(names)):
        raise UsageError(f"{origin.address} has nc {count!r} and {len(names)} names: correct one of them")
    return YoloSet(tuple(dict.fromkeys(places)), names)


def label_address(address: str) -> str:
    """The label file of an image, as YOLO finds it: the last folder `images` becomes `labels`, the suffix `.txt`."""
    folder, slash, name = address.rpartition("/")
    folders = folder.split("/")
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        folders[last] = "labels"
    return f"{'/'.join(folders)}{slash}{posixpath.splitext(name)[0]}.txt"


def _loaded(data: bytes, origin: Origin) -> Mapping[str, Any]:
    import yaml

    if len(data) > MAX_BYTES:
        raise UsageError(f"{origin.address} has {len(data):,} bytes; wanted a data YAML of at most {MAX_BYTES:,}")
    try:
        text = data.decode("utf-8-sig")
        for line, problem in _unwanted(text):
            raise UsageError(f"{origin.at(line)} has {problem}; wanted plain keys, texts and lists")
        # texts as they are written: YAML would take a class `no` for False, and `012` for 10
        value = yaml.load(text, yaml.BaseLoader)  # noqa: S506 - it builds texts, lists and dicts alone
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{origin.address} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{origin.address} is {type(value).__name__}; wanted keys: path, train, val, test, names")
    return value


def _unwanted(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of what could build objects, or grow beyond the file; before anything is built."""
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            yield line, f"the alias *{event.anchor}"
        elif isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None) not in (None, "!", *_PLAIN_TAGS):
            yield line, f"the tag {event.tag[:80]!r}"  # type: ignore[attr-defined]
        if isinstance(event, (yaml.CollectionStartEvent, yaml.CollectionEndEvent)):
            depth += 1 if isinstance(event, yaml.CollectionStartEvent) else -1
        if depth > MAX_DEPTH:
            yield line, f"over {MAX_DEPTH} levels"


def _addresses(value: object, split: str, root: str, origin: Origin) -> list[str]:
    values = value if isinstance(value, list) else [value]
    texts = [_text(item, split, origin) for item in values if item is not None]
    return [_place(root, text, origin) for text in texts if text not in ("", "~", "null")]


def _place(root: str, address: str, origin: Origin) -> str:
    try:
        return joined(root, address)
    except UsageError as error:
        raise UsageError(f"{origin.address}: {error}") from error


def _names(value: object, origin: Origin) -> tuple[str, ...]:
    if value in (None, ""):
        return ()
    if isinstance(value, list):
        return tuple(_text(name, "names", origin) for name in value)
    if isinstance(value, dict) and all(isinstance(key, str) and key.isdecimal() for key in value):
        found = {int(key): _text(name, "names", origin) for key, name in value.items()}
        if sorted(found) == list(range(len(value))):
            return tuple(found[number] for number in range(len(found)))
    raise UsageError(
        f"{origin.address}: names is {repr(value)[:80]}; wanted a list, or numbers from 0 on with a name each"
    )


def _text(value: object, name: str, origin: Origin) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{origin.address}: {name} has {repr(value)[:80]}; wanted text")
    return value
