"""Detect stage: finds the boxes of images, each image once for as long as it is the same."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import cv2

from pipeline.errors import ModelError
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
from pipeline.pulse import at_image
from pipeline.runner import Counters
from pipeline.schemas import TRANSIENT, Status
from pipeline.stages.reads import read_images

log = logging.getLogger(__name__)

VERSION = 1
FAILURES = (cv2.error, ModelError, ImageError)
"""What a detector raises on an image: OpenCV of a picture inside RapidOCR, ONNX Runtime in a graph, RapidOCR itself."""
NOTHING = Found(False, [], [], [])


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
    """Commits what is found. An image that an attempt could not read is not in it: the next run looks at it.

    One that the detector fails on is audited whole, with a warning. Raises ModelError where a model fails on all.
    """
    store = spec.root.open()
    model = kept(store, spec.model, lambda: store.read(spec.model)) if spec.model else None
    detector = load_detector(spec.boxes, model=model)
    cutting = Cutting(spec.measure, spec.params)
    found: list[tuple[bytes, Found]] = []
    failed: list[tuple[ImageObject, type[Exception], str]] = []
    for image, read in zip(
        spec.images, read_images(spec.root, spec.images, spec.measure.max_bytes, cutting), strict=True
    ):
        if isinstance(read, Measured) and read.status in TRANSIENT:
            continue
        try:
            found.append((image_key(image), _look(read, detector, cutting)))
        except FAILURES as error:
            said = next(iter(str(error).splitlines()), type(error).__name__)
            failed.append((image, type(error), said))  # an error would keep the pixels in its frames
    if any(kind is ModelError for _, kind, _ in failed) and not any(item.is_decoded for _, item in found):
        raise ModelError(failed[0][2])
    for image, _, said in failed:
        log.warning("%s: the detector fails on it (%s); it is audited whole", image.name, said)
    found += [(image_key(image), NOTHING) for image, _, _ in failed]
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


def quarantine(spec: DetectSpec, cause: str) -> Counters:
    """Sets one image aside that killed or hung its process twice: it is audited whole, and this detector does not look
    at it again. One that hung and cannot be read now is left to later runs: it may have been its store that hung.
    """
    (image,) = spec.images
    if cause == Status.TIMEOUT.value and image.whole.has_bytes:
        (read,) = read_images(spec.root, [image.whole], spec.measure.max_bytes, Cutting(spec.measure, spec.params))
        if isinstance(read, Measured) and read.status in TRANSIENT:
            return {"images": 0, "boxes": 0}
    said = "the process that looked for boxes in it died or hung twice"
    log.warning("%s: %s; it is audited whole, and not looked at again by this detector", image.name, said)
    write_pack(spec.root.open(), part_key(spec), [(image_key(image), NOTHING)])
    return {"images": 1, "boxes": 0, cause: 1}


def _look(read: Content | Measured, detector: Detect, cutting: Cutting) -> Found:
    """Raises one of FAILURES where the detector fails."""
    if isinstance(read, Measured):
        return NOTHING
    try:
        with at_image():
            pixels = decoded(read, cutting)
    except ImageError:
        return NOTHING
    with at_image():
        detections = detect_in(pixels, detector)
    best: dict[str, Detection] = {}
    for item in detections:  # the most confident first
        if _is_large(item.box, cutting.boxes):
            best.setdefault(box_name(item.box), item)
    names = sorted(best)
    return Found(True, names, [best[name].label for name in names], [float(best[name].confidence) for name in names])


def _is_large(box: UprightBox | RotatedBox, params: BoxParams) -> bool:
    """Whether it is worth a row: a small one is a find of little value, not a bad box that somebody drew."""
    if isinstance(box, RotatedBox):
        return True
    return box.width >= params.min_width and box.height >= params.min_height
