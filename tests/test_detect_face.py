"""Faces and text: how YuNet's heads are read, what RapidOCR reads, and what a missing package says."""

from __future__ import annotations

import socket
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from skimage import data

from pipeline.errors import ModelError, UsageError
from pipeline.kernels.boxes import BoxesFrom, RotatedBox, UprightBox
from pipeline.kernels.crop import BoxParams, crop
from pipeline.kernels.detect import Detection, DetectParams
from pipeline.kernels.detect_face import load_face
from pipeline.kernels.detect_ocr import text_detector
from pipeline.kernels.header import Header
from pipeline.kernels.pillow_decode import Decoded
from pipeline.models.detectors import _face_file, _installed, load_detector

SIDE = 64
Heads = dict[str, NDArray[np.float32]]


def heads_of(cells: dict[tuple[int, int, int], tuple[float, ...]]) -> Heads:
    """YuNet's outputs, zero but for cells (stride, row, column): class, objectness, x, y, log width, log height."""
    heads: Heads = {}
    for stride in (8, 16, 32):
        for name, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            heads[f"{name}_{stride}"] = np.zeros((1, (SIDE // stride) ** 2, width), np.float32)
    for (stride, row, column), (sure, there, *box) in cells.items():
        cell = row * (SIDE // stride) + column
        heads[f"cls_{stride}"][0, cell], heads[f"obj_{stride}"][0, cell] = sure, there
        heads[f"bbox_{stride}"][0, cell] = box
    return heads


def model(heads: Heads) -> bytes:
    """A graph that gives `heads`, times the largest blue of the image / 80: it is the first channel, from 0 to 255."""
    nodes = [
        helper.make_node("Slice", ["input", "first", "second", "channels"], ["blue"]),
        helper.make_node("ReduceMax", ["blue"], ["most"], keepdims=0),
        helper.make_node("Div", ["most", "eighty"], ["factor"]),
    ]
    constants = {"first": [0], "second": [1], "channels": [1]}
    graph = helper.make_graph(
        [*nodes, *(helper.make_node("Mul", [f"{name}_fixed", "factor"], [name]) for name in heads)],
        "heads",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in heads.items()],
        [
            *(numpy_helper.from_array(value, f"{name}_fixed") for name, value in heads.items()),
            *(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()),
            numpy_helper.from_array(np.array(80, np.float32), "eighty"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def blank(width: int, height: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 80, np.uint8)


def test_heads_are_read_as_faces() -> None:
    """Cell (1, 2) of stride 16: centre ((2 + .5) * 16, (1 + .25) * 16), sides 16 * e^.5 and 16 * e^.25."""
    cells = {
        (16, 1, 2): (0.9, 0.9, 0.5, 0.25, 0.5, 0.25),
        (16, 1, 3): (0.8, 0.8, -0.5, 0.25, 0.5, 0.25),  # the same face, less sure
        (8, 7, 0): (1.5, 0.64, 0.5, 0.5, 0.0, 0.7),  # over 1 counts as 1; cut off by the canvas
        (32, 0, 0): (0.6, 0.6, 0.5, 0.5, 0.0, 0.0),  # not sure enough
        (8, 3, 3): (0.9, 0.9, 0.5, 0.5, 800.0, 0.0),  # infinite
    }
    found = load_face(model(heads_of(cells)))(blank(SIDE, SIDE))
    width, height = 16 * np.exp(0.5), 16 * np.exp(0.25)
    left, top = round(40 - width / 2), round(20 - height / 2)
    first = UprightBox(left, top, round(40 + width / 2) - left, round(20 + height / 2) - top)
    cut_off = UprightBox(0, round(60 - 4 * np.exp(0.7)), 8, 64 - round(60 - 4 * np.exp(0.7)))
    assert found == [Detection(first, "face", 0.9), Detection(cut_off, "face", 0.8)]


@pytest.mark.parametrize(("size", "scale"), [((64, 64), 1), ((256, 128), 1 / 4), ((32, 20), 2), ((10, 8), 2)])
def test_faces_are_placed_in_the_image(size: tuple[int, int], scale: float) -> None:
    """Shrunk to fit, enlarged at most twice, in the top left corner."""
    (found,) = load_face(model(heads_of({(8, 1, 1): (1, 1, 0, 0, 0, 0)})))(blank(*size))
    low, high = np.floor(4 / scale + 0.5), np.minimum(np.floor(12 / scale + 0.5), size)
    assert found.box == UprightBox(low, low, high[0] - low, high[1] - low)


def test_the_model_sees_blue_first_and_values_to_255() -> None:
    detect = load_face(model(heads_of({(8, 1, 1): (0.9, 0.9, 0, 0, 0, 0)})))
    image = blank(SIDE, SIDE)
    image[..., :2] = 0
    assert len(detect(image)) == 1
    assert detect(image[..., ::-1]) == []


def test_another_model_is_refused() -> None:
    heads = heads_of({})
    del heads["obj_16"]
    with pytest.raises(ModelError, match="no outputs obj_16"):
        load_face(model(heads))


@pytest.mark.parametrize(("package", "extra"), [("no-such-package", "face"), ("numpy", "ocr")])
def test_what_is_missing_names_the_extra(package: str, extra: str) -> None:
    with pytest.raises(UsageError, match=rf"{package}.*image-audit\[{extra}\]"):
        _installed(package, "model", extra)


def test_an_installed_model_is_found_by_its_name() -> None:
    assert metadata.version("onnx")
    with pytest.raises(UsageError, match="holds 0 models"):
        _installed("onnx", "no such mark", "ocr")


# Text


def test_lines_of_text_are_rotated_boxes_with_their_text() -> None:
    """What RapidOCR answers for an image of 3000x300, which it sees at 2000x200, in BGR."""
    corners = np.array([[[10, 20], [110, 24.4], [109, 50], [9, 46]], [[0, 0], [50, 0], [50, 9], [0, 9]]], np.float32)
    seen: list[Any] = []

    def read(bgr: NDArray[np.uint8]) -> SimpleNamespace:
        seen.append(bgr)
        return SimpleNamespace(boxes=corners, txts=("slanted", "faint"), scores=(0.98765, 0.4))

    image = np.zeros((300, 3000, 3), np.uint8)
    image[..., 0] = 250
    (line,) = text_detector(read)(image)
    assert line == Detection(RotatedBox(15, 30, 165, 37, 164, 75, 14, 69), "slanted", 0.9877)
    assert seen[0].shape == (200, 2000, 3)
    assert (seen[0] == [0, 0, 250]).all()
    assert [text for _, text, _ in text_detector(read, DetectParams(0.1))(image)] == ["slanted", "faint"]
    assert text_detector(lambda _: SimpleNamespace())(image) == []
    assert text_detector(read)(blank(3000, 9)) == []


def test_text_is_read_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lines, one of them at 25 degrees; its crop is upright."""

    def refuse(*_: object) -> None:
        raise AssertionError("a detector opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    image = np.full((480, 640), 255, np.uint8)
    cv2.putText(image, "Hello world 2026", (40, 80), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 0, 2, cv2.LINE_AA)
    cv2.putText(image, "invoice 4711", (60, 200), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 0, 2, cv2.LINE_AA)
    slanted = np.full((480, 640), 255, np.uint8)
    cv2.putText(slanted, "slanted line", (200, 360), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 0, 2, cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((320, 350), 25, 1)
    image = np.minimum(image, cv2.warpAffine(slanted, turn, (640, 480), borderValue=(255,)))
    rgb = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    detect = load_detector(BoxesFrom.OCR)
    found = {text: (box, confidence) for box, text, confidence in detect(rgb)}
    assert set(found) == {"Hello world 2026", "invoice 4711", "slanted line"}
    assert min(confidence for _, confidence in found.values()) > 0.9
    assert detect is load_detector(BoxesFrom.OCR)
    parent = Decoded(Header("png", 640, 480), image, "L")
    cut = crop(parent, found["slanted line"][0], BoxParams(0, 0, margin=4)).native
    assert cut.shape[1] > 4 * cut.shape[0]
    again = detect(cv2.cvtColor(np.pad(cut, 40, constant_values=255), cv2.COLOR_GRAY2RGB))
    assert [text for _, text, _ in again] == ["slanted line"]


@pytest.mark.slow
def test_faces_are_found_where_opencv_finds_them() -> None:
    """Needs the extra `face`. One astronaut; 100 faces of 25 px, enlarged to 75, and 100 patches without one.

    OpenCV 5 takes images of the model's own size only, 640x640.
    """
    detect = load_detector(BoxesFrom.FACE)
    crowd = np.zeros((640, 640, 3), np.uint8)
    crowd[:512, :512] = data.astronaut()
    crowd[512:, 512:] = cv2.resize(data.astronaut()[:256, 100:356], (128, 128), interpolation=cv2.INTER_AREA)
    graph = np.frombuffer(_face_file().read_binary(), np.uint8)
    opencv = cv2.FaceDetectorYN.create("onnx", graph, np.empty(0, np.uint8), (640, 640), 0.7, 0.3)
    wanted = opencv.detect(np.ascontiguousarray(crowd[..., ::-1]))[1]
    wanted = wanted[np.argsort(-wanted[:, 14])]
    found = detect(crowd)
    assert [label for _, label, _ in found] == ["face", "face"]
    assert np.abs(np.array([confidence for *_, confidence in found]) - wanted[:, 14]).max() < 2e-3
    edges = np.array([[box.x, box.y, box.x + box.width, box.y + box.height] for box, *_ in found])
    assert np.abs(edges - np.hstack([wanted[:, :2], wanted[:, :2] + wanted[:, 2:4]])).max() < 0.6
    counts = []
    for patch in data.lfw_subset():
        grey = cv2.resize((patch * 255).astype(np.uint8), (75, 75), interpolation=cv2.INTER_CUBIC)
        framed = np.pad(grey, 38, constant_values=128)
        counts.append(len(detect(cv2.cvtColor(framed, cv2.COLOR_GRAY2RGB))))
    assert np.count_nonzero(counts[:100]) >= 95
    assert sum(counts[:100]) <= 101
    assert sum(counts[100:]) == 0
