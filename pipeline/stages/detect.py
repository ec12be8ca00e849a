"""Detect stage: finds the boxes of images, each image once for as long as it is the same."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.kernels.boxes import BoxesFrom, RotatedBox, UprightBox, box_name
from pipeline.kernels.crop import BoxParams
from pipeline.kernels.detect import Detect, Detection, detect_in
from pipeline.kernels.header import ImageError
from pipeline.kernels.measure import Measured, MeasureParams
from pipeline.layout.detections import Found, image_key, pack_key, write_pack
from pipeline.layout.images import ImageObject
from pipeline.layout.pixels import Content, Cutting, decoded
from pipeline.layout.root import Root, kept
from pipeline.models.detectors import load_detector
from pipeline.runner import Counters
from pipeline.schemas import TRANSIENT
from pipeline.stages.reads import read_images

VERSION = 1


@dataclass(frozen=True)
class DetectSpec:
    """Images to look at with a detector, into a folder; model: key of a user's own in the root, "" for none."""

    root: Root
    images: tuple[ImageObject, ...]
    boxes: BoxesFrom
    model: str
    measure: MeasureParams
    params: BoxParams
    folder: str


def detect(spec: DetectSpec) -> Counters:
    """Commits what is found. An image that an attempt could not read is not in it: the next run looks at it."""
    store = spec.root.open()
    model = kept(store, spec.model, lambda: store.read(spec.model)) if spec.model else None
    detector = load_detector(spec.boxes, model=model)
    cutting = Cutting(spec.measure, spec.params)
    found = []
    for image, read in zip(
        spec.images, read_images(spec.root, spec.images, spec.measure.max_bytes, cutting), strict=True
    ):
        if not (isinstance(read, Measured) and read.status in TRANSIENT):
            found.append((image_key(image), _look(read, detector, cutting)))
    if found:  # the next run takes up packs by name, and would not read one of these images again
        write_pack(store, part_key(spec), found)
    return {"images": len(found), "boxes": sum(len(item.boxes) for _, item in found)}


def part_key(spec: DetectSpec) -> str:
    """Key of the pack that the spec commits."""
    return pack_key(spec.folder, [*map(image_key, spec.images)])


def halves(spec: DetectSpec) -> list[DetectSpec]:
    """The spec cut in two; itself where it has one image."""
    middle = len(spec.images) // 2
    return [replace(spec, images=images) for images in (spec.images[:middle], spec.images[middle:]) if images]


def quarantine(spec: DetectSpec, cause: str) -> Counters:  # noqa: ARG001 - as every quarantine
    """Passes over one image that killed or hung its process twice: it is audited whole, and looked at by later runs."""
    return {"images": 0, "boxes": 0}


def _look(read: Content | Measured, detector: Detect, cutting: Cutting) -> Found:
    if isinstance(read, Measured):
        return Found(False, [], [], [])
    try:
        pixels = decoded(read, cutting)
    except ImageError:
        return Found(False, [], [], [])
    best: dict[str, Detection] = {}
    for item in detect_in(pixels, detector):  # the most confident first
        if _is_large(item.box, cutting.boxes):
            best.setdefault(box_name(item.box), item)
    names = sorted(best)
    return Found(True, names, [best[name].label for name in names], [float(best[name].confidence) for name in names])


def _is_large(box: UprightBox | RotatedBox, params: BoxParams) -> bool:
    """Whether it is worth a row: a small one is a find of little value, not a bad box that somebody drew."""
    if isinstance(box, RotatedBox):
        return True
    return box.width >= params.min_width and box.height >= params.min_height
