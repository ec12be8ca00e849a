"""Looking for boxes: what detectors found in images before, and what they find in those that are new."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import AuditConfig
from pipeline.errors import ModelError
from pipeline.kernels.boxes import BoxesFrom, parse_bounding_box
from pipeline.kernels.crop import BoxParams
from pipeline.layout.detections import FOLDER, KnownDetections, image_key
from pipeline.layout.fingerprint import fingerprint
from pipeline.layout.images import ImageObject
from pipeline.layout.models import FOLDER as MODELS
from pipeline.layout.root import decoders, read_address
from pipeline.layout.snapshots import Snapshot
from pipeline.layout.tables import read_json, write_json
from pipeline.models.detectors import describe_detector, load_detector
from pipeline.plan.session import RunnerStart, Session, StageWork
from pipeline.runner import LocalRunner, Task
from pipeline.stages import detect
from pipeline.storage import Store

log = logging.getLogger(__name__)

DETECT = "detect"
MANY = 10
"""So many images without a box are worth a word."""
TASK_IMAGES = 512
PER_EXTRACTION = {BoxesFrom.FACE: 3, BoxesFrom.OCR: 60, BoxesFrom.OBJECT: 10}
"""So many times the CPU time of extracting an image is spent on looking at it (21 ms, 420 ms and more; 7.5 ms)."""


@dataclass(frozen=True)
class Detecting:
    """A detector of this audit: what it looks for, the key of its model in the root, and the folder of its packs."""

    boxes: BoxesFrom
    model: str
    folder: str


def detecting(session: Session) -> Detecting | None:
    """The detector that the configuration asks for; None for none. A user's model is copied into the root."""
    how, data = _asked_for(session.config) or (None, None)
    if how is not None and data is not None:
        session.store.put_if_absent(how.model, data)
    return how


def _asked_for(config: AuditConfig) -> tuple[Detecting, bytes | None] | None:
    """The detector that the configuration asks for, with a user's model; None for none."""
    asked = parse_bounding_box(config.bounding_box) if config.bounding_box else None
    if not isinstance(asked, BoxesFrom) or asked is BoxesFrom.TABLE:
        return None
    data = read_address(config.box_model, config.storage) if config.box_model else None
    described = describe_detector(asked, model=data)
    sizes = BoxParams(min_width=config.boxes.min_width, min_height=config.boxes.min_height)  # margins find nothing
    of = {"described": described, "measure": config.measure, "boxes": sizes, "decoders": decoders()}
    folder = f"{FOLDER}/{fingerprint('detect', detect.VERSION, **of)}"
    key = "" if data is None else f"{MODELS}/detector-{folder.rpartition('/')[2]}.onnx"
    return Detecting(asked, key, folder), data


def detections_of(session: Session, snapshot: Snapshot) -> str:
    """The folder of what was found in the images of a snapshot, "" where its boxes are of no detector.

    A call that lists nothing and asks for none takes what the latest one of that snapshot did.
    """
    key = f"{FOLDER}/snapshot-{snapshot.number:06d}.json"
    how = detecting(session)
    if how is not None:
        write_json(session.store, key, {"folder": how.folder})
        return how.folder
    if session.config.start == "sources" or not session.store.exists(key):
        return ""
    return str(read_json(session.store, key)["folder"])


def require_detecting(config: AuditConfig, known: Store | None = None) -> None:
    """Raises UsageError where what a detector needs is not installed or given, ModelError for a model that is none.

    known: a root that is there. A model that found boxes for it is not loaded.
    """
    how, data = _asked_for(config) or (None, None)
    if how is None or data is None or (known and any(True for _ in known.list(f"{how.folder}/"))):
        return
    try:
        load_detector(how.boxes, model=data)
    except ModelError as error:
        raise ModelError(f"{config.box_model.rpartition('/')[2]}: {error}") from error


class DetectedBoxes:
    """The boxes of images, block by block of a listing; who was never looked at is, in tasks."""

    def __init__(self, session: Session, start_runner: RunnerStart, how: Detecting) -> None:
        self._session, self._start, self._how = session, start_runner, how
        self._known = KnownDetections(session.store, how.folder)
        self._images = self._boxes = 0

    def __call__(self, images: Sequence[ImageObject]) -> list[list[str] | None]:
        """Names of the boxes of each image; None for one that could not be looked at."""
        keys = [*map(image_key, images)]
        found = self._known.of(keys)
        missing = [image for image, item in zip(images, found, strict=True) if item is None]
        if missing:
            self._look(missing)
            found = self._known.of(keys)
        decoded = [item for item in found if item is not None and item.is_decoded]
        self._images, self._boxes = self._images + len(decoded), self._boxes + sum(len(item.boxes) for item in decoded)
        return [item.boxes if item is not None and item.is_decoded else None for item in found]

    def warn_of_none(self) -> None:
        """Says so where many images were looked at and no box was found: a model may be another kind than it seems."""
        if self._images >= MANY and not self._boxes:
            what = f"the {self._how.boxes.value} detector found no box in any of {self._images:,} images"
            advice = "; check that the model's outputs are those of YOLO" if self._how.model else ""
            log.warning("%s%s", what, advice)

    def _look(self, images: Sequence[ImageObject]) -> None:
        session, how = self._session, self._how
        if isinstance(session.runner, LocalRunner):
            session.runner = self._start(len(images) * PER_EXTRACTION[how.boxes], session.root)
        config, tasks = session.config, []
        for at in range(0, len(images), TASK_IMAGES):
            part = tuple(images[at : at + TASK_IMAGES])
            spec = detect.DetectSpec(session.root, part, how.boxes, how.model, config.measure, config.boxes, how.folder)
            tasks.append(Task(detect.part_key(spec), detect.detect, spec, len(part), detect.halves, detect.quarantine))
        session.run(StageWork(DETECT, how.folder, tasks, len(images), len(tasks)))
        session.reporter.start("catalog", 0, 0)  # which goes on
        self._known.refresh()
