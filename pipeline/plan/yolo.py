"""YOLO sets: what their YAML names, and the boxes of their label files as a table of annotations."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pyarrow as pa

from pipeline.config import AuditConfig
from pipeline.errors import NotFound, UsageError
from pipeline.kernels.boxes import BoxesFrom, parse_bounding_box
from pipeline.kernels.decode import sized_header
from pipeline.kernels.hashing import content_hash
from pipeline.kernels.header import Header, ImageError, read_header
from pipeline.kernels.yolo_labels import parse_labels
from pipeline.layout.annotations import OF_YOLO, TABLES
from pipeline.layout.fragments import Parent
from pipeline.layout.root import Root, opened
from pipeline.layout.snapshots import LIST, SourceRecord
from pipeline.layout.tables import read_json, write_json
from pipeline.schemas import Status
from pipeline.sources.addresses import located
from pipeline.sources.annotated import plain_table
from pipeline.sources.folder import is_image_key
from pipeline.sources.list_warnings import list_warnings
from pipeline.sources.listed import Origin, Tally, addresses_of
from pipeline.sources.yolo_rows import ImageSize, LabelledImage, label_rows
from pipeline.sources.yolo_yaml import SplitPlace, YoloSet, label_address, read_yolo_yaml
from pipeline.stages.prepare_list import list_batches
from pipeline.stages.source_files import source_kind, source_objects
from pipeline.storage import StorageConfig, canonical_uri, read_ahead

log = logging.getLogger(__name__)

LATEST = f"{TABLES}/yolo.json"
"""Names the table that the latest run made of label files."""
HEAD_BYTES = 65_536
"""As much of an image as nearly always tells its size."""
_IMAGES = 1024  # an image by itself takes .7 ms, so many at once .3 each


def is_yaml(uri: str, storage: StorageConfig) -> bool:
    """Whether a source is the YAML of a YOLO set."""
    folder, slash, name = uri.rpartition("/")
    return name.lower().endswith((".yaml", ".yml")) and opened(folder or slash, storage).exists(name)


def read_set(uri: str, storage: StorageConfig) -> YoloSet:
    """What a YAML says; of a folder that it names for several splits the first one counts. Raises UsageError."""
    found = _read_yaml(uri, storage)
    places: dict[str, SplitPlace] = {}
    for place in found.places:
        address = _beside(uri, place.address, storage)
        places.setdefault(address, place._replace(address=address))
    return found._replace(places=tuple(places.values()))


def require_places(uri: str, storage: StorageConfig) -> None:
    """Raises NotFound that names the key of a YAML whose folder or list is not there."""
    for place in read_set(uri, storage).places:
        if not _is_there(place.address, storage):
            raise NotFound(
                f"{uri}: its {place.split} is {place.address}, and nothing is there. Correct the path, or take "
                f"{place.split} out of the YAML"
            )


def warn_of_places(uri: str, storage: StorageConfig) -> None:
    """Says which folders a YAML names for several splits, and which are taken from beside it."""
    taken = {place.address: place.split for place in read_set(uri, storage).places}
    for split, address, _ in _read_yaml(uri, storage).places:
        found = _beside(uri, address, storage)
        if found != address:
            log.warning("%s: nothing is at %s: %s is taken, as Roboflow means it", uri, address, found)
        if split != taken[found]:
            log.warning("%s: %s is %s and %s: it is taken as %s", uri, found, taken[found], split, taken[found])


def _read_yaml(uri: str, storage: StorageConfig) -> YoloSet:
    folder, slash, name = uri.rpartition("/")
    found = read_yolo_yaml(opened(folder or slash, storage).read(name), Origin(uri, folder or slash))
    places = [place._replace(address=canonical_uri(place.address, storage)) for place in found.places]
    return found._replace(places=tuple(places))


def _beside(uri: str, address: str, storage: StorageConfig) -> str:
    """An address of a YAML; where nothing is there, that beside the YAML: Roboflow writes `../train/images` for it."""
    folder = uri.rpartition("/")[0]
    above = f"{folder.rpartition('/')[0]}/"
    beside = f"{folder}/{address.removeprefix(above)}"
    if not address.startswith(above) or address.startswith(f"{folder}/") or _is_there(address, storage):
        return address
    return beside if _is_there(beside, storage) else address


def _is_there(address: str, storage: StorageConfig) -> bool:
    try:
        record = SourceRecord(address, "", source_kind(address, storage))
        return next(iter(source_objects(record, storage)), None) is not None
    except NotFound:
        return False


def with_yolo_boxes(config: AuditConfig, root: Root) -> AuditConfig:
    """The configuration with the boxes of the label files of its YOLO sets as the rule's table, where boxes of
    annotations are asked for; where the sources are not listed, those of the latest run that read any. Raises
    UsageError where another table rules, or no image has a label file.
    """
    if not config.bounding_box or parse_bounding_box(config.bounding_box) is not BoxesFrom.TABLE:
        return config
    store = root.open()
    if config.start == "features" and not (config.rule.table or config.rule.pattern) and store.exists(LATEST):
        return _ruled_by(config, root, read_json(store, LATEST)["table"])
    uris = [canonical_uri(source, config.storage) for source in config.every_source]
    sets = [uri for uri in uris if is_yaml(uri, config.storage)]
    if not sets:
        return config
    if config.rule.table or config.rule.pattern:
        raise UsageError(f"{sets[0]} has label files with boxes: drop the other table or pattern, or bounding_box")
    tally = Tally()
    batches = (batch for uri in sets for batch in _set_rows(uri, config.storage, tally))
    data, repeats = plain_table(batches, "the label files of YOLO")
    for said in list_warnings("the label files of YOLO", tally, repeats):
        log.warning("%s", said)
    key = f"{TABLES}/{OF_YOLO}{content_hash(data).hex()[:20]}.parquet"
    store.put_if_absent(key, data)
    write_json(store, LATEST, {"table": key})
    return _ruled_by(config, root, key)


def _ruled_by(config: AuditConfig, root: Root, key: str) -> AuditConfig:
    return replace(config, rule=replace(config.rule, table=f"{root.uri}/{key}"))


def _set_rows(uri: str, storage: StorageConfig, tally: Tally) -> Iterator[pa.RecordBatch]:
    """Batches of LISTED with the boxes of a set; addresses are whole. Bad ones are counted."""
    found = read_set(uri, storage)
    for place in found.places:
        record = SourceRecord(place.address, place.split, source_kind(place.address, storage))
        read = read_ahead(_images(record, storage), lambda image: _labelled(image, storage), lambda _: HEAD_BYTES)
        labelled = (image for image in read if image is not None)
        while block := [*islice(labelled, _IMAGES)]:
            yield label_rows(block, found.names, tally)


def _images(record: SourceRecord, storage: StorageConfig) -> Iterator[str]:
    """Whole paths or URLs of the images of a source."""
    if record.kind == LIST:
        parent = Parent(record.place, opened(record.place, storage).stat(record.uri.rpartition("/")[2]), LIST)
        keys = (key for batch in list_batches(parent, storage, Tally()) for key in addresses_of(batch))
    else:
        keys = (info.key for info in source_objects(record, storage) if is_image_key(info.key))
    return ("/".join(part.rstrip("/") for part in record.located(key)) for key in keys)


def _labelled(address: str, storage: StorageConfig) -> LabelledImage | None:
    """An image with its boxes; None where it has no label file, or cannot be measured: then it has no box."""
    origin = Origin(label_address(address), "")
    try:
        data = _read(origin.address, storage)
        header = _header(address, storage) if data.strip() else Header("")
    except (NotFound, ImageError):
        return None
    size = (header.height, header.width) if header.orientation > 4 else (header.width, header.height)
    return LabelledImage(address, parse_labels(data), ImageSize(*size), origin)


def _header(address: str, storage: StorageConfig) -> Header:
    """Of the head of a file, and of all of it where that does not tell the size, or a WebP has its EXIF at its end."""
    place, key = located(address, "")
    try:
        header = read_header(opened(place, storage).read_range(key, 0, HEAD_BYTES))
        if header.width and not (header.format == "webp" and header.missing):
            return header
    except ImageError as error:
        if error.status is not Status.TRUNCATED:
            raise
    return sized_header(_read(address, storage))


def _read(address: str, storage: StorageConfig) -> bytes:
    place, key = located(address, "")
    return opened(place, storage).read(key)
