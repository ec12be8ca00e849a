"""Object boxes from YOLO-style ONNX models of every layout, compared with suppression by brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ModelError, UsageError
from pipeline.kernels.boxes import BoxesFrom, UprightBox
from pipeline.kernels.detect import DetectParams, Frame, detect_in, fit
from pipeline.kernels.detect_object import Layout, load_object
from pipeline.kernels.header import Header
from pipeline.kernels.pillow_decode import Decoded
from pipeline.models.detectors import describe_detector, load_detector, require_detector

NAMES = {0: "cat", 1: "dog", 2: "it's"}


def model(output: NDArray[Any], names: object = None, sides: tuple[Any, Any] = (640, 640), **metadata: str) -> bytes:
    """A graph that takes (1, 3, *sides) and always gives `output`."""
    kind = helper.np_dtype_to_tensor_dtype(output.dtype)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["table"], ["output0"])],
        "fixed",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, *sides])],
        [helper.make_tensor_value_info("output0", kind, output.shape)],
        [numpy_helper.from_array(output, "table")],
    )
    return finished(graph, {"names": names if isinstance(names, str) else repr(names)} if names else {}, **metadata)


def finished(graph: onnx.GraphProto, *metadata: dict[str, str], **more: str) -> bytes:
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for properties in (*metadata, more):
        for key, value in properties.items():
            made.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def candidates(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Crowded boxes (n, 4) as centre and sides, confidences without ties, and classes."""
    random = np.random.default_rng(seed)
    spots = random.uniform(100, 540, (12, 2))
    centres = spots[random.integers(0, 12, count)] + random.normal(0, 12, (count, 2))
    boxes = np.hstack([centres, random.uniform(30, 120, (count, 2))]).astype(np.float32)
    return boxes, random.permutation(count).astype(np.float32) / count, random.integers(0, 3, count)


def as_layout(
    layout: Layout, boxes: NDArray[np.float32], confidences: NDArray[np.float32], classes: NDArray[np.int64]
) -> NDArray[np.float32]:
    scores = np.zeros((len(boxes), 3), np.float32)
    if layout == Layout.COLUMNS:
        scores[np.arange(len(boxes)), classes] = confidences
        return np.ascontiguousarray(np.hstack([boxes, scores]).T[None])
    if layout == Layout.ROWS:
        scores[np.arange(len(boxes)), classes] = 0.5
        return np.hstack([boxes, 2 * confidences[:, None], scores])[None].astype(np.float32)
    corners = np.hstack([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2])
    return np.hstack([corners, confidences[:, None], classes[:, None]])[None].astype(np.float32)


def brute_force(
    boxes: NDArray[np.float32], confidences: NDArray[np.float32], classes: NDArray[np.int64], params: DetectParams
) -> list[int]:
    """Greedy suppression per class, pair by pair."""

    def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
        low = np.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2).astype(float)
        high = np.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2).astype(float)
        common = np.prod(np.maximum(high - low, 0))
        return float(common / (np.prod(a[2:].astype(float)) + np.prod(b[2:].astype(float)) - common))

    kept: list[int] = []
    for index in np.argsort(-confidences, kind="stable"):
        rivals = [other for other in kept if classes[other] == classes[index]]
        if confidences[index] >= params.confidence and all(
            overlap(boxes[index], boxes[other]) <= params.iou for other in rivals
        ):
            kept.append(int(index))
    return kept[: params.max_boxes]


def blank(width: int, height: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 60, np.uint8)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("seed", range(4))
def test_the_boxes_are_those_of_brute_force(layout: Layout, seed: int) -> None:
    """A 1280x960 image on a 640x640 canvas: half the size, 80 rows of grey above."""
    boxes, confidences, classes = candidates(400, seed)
    params = DetectParams(0.25, 0.45, max_boxes=60)
    wanted = []
    for index in brute_force(boxes, confidences, classes, params):
        cx, cy, w, h = boxes[index].astype(float)
        edges = [(cx - w / 2) * 2, (cy - h / 2 - 80) * 2, (cx + w / 2) * 2, (cy + h / 2 - 80) * 2]
        left, top, right, bottom = np.clip(edges, 0, [1280, 960, 1280, 960])
        wanted.append(((left, top, right, bottom), NAMES[int(classes[index])], float(confidences[index])))
    found = load_object(model(as_layout(layout, boxes, confidences, classes), NAMES), params)(blank(1280, 960))
    assert [label for _, label, _ in found] == [label for _, label, _ in wanted]
    assert np.allclose([confidence for *_, confidence in found], [confidence for *_, confidence in wanted], atol=6e-5)
    edges = [(box.x, box.y, box.x + box.width, box.y + box.height) for box, *_ in found if isinstance(box, UprightBox)]
    assert np.abs(np.array(edges) - [box for box, *_ in wanted]).max() <= 0.501
    assert len(found) > 20
    assert all(float(side).is_integer() for edge in edges for side in edge)


def test_the_image_is_letterboxed_as_rgb_from_0_to_1() -> None:
    """The graph gives the mean of red above y = 8, of green below, of the grey border left and right, as scores."""
    mean_of = {"red": ([0, 0, 0, 8], [1, 1, 16, 24]), "green": ([0, 1, 16, 8], [1, 2, 32, 24])}
    mean_of["left"] = ([0, 2, 0, 0], [1, 3, 32, 8])
    mean_of["right"] = ([0, 2, 0, 24], [1, 3, 32, 32])
    nodes, constants, rows = [], [], []
    for index, (name, (starts, ends)) in enumerate(mean_of.items()):
        for key, value in (("s", starts), ("e", ends)):
            constants.append(numpy_helper.from_array(np.array(value, np.int64), f"{name}_{key}"))
        box = np.array([[[8, 8 * index, 24, 8 * index + 8]]], np.float32)
        constants += [numpy_helper.from_array(box, f"{name}_box")]
        nodes += [
            helper.make_node("Slice", ["images", f"{name}_s", f"{name}_e"], [f"{name}_part"]),
            helper.make_node("ReduceMean", [f"{name}_part"], [f"{name}_mean"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Reshape", [f"{name}_mean", "one"], [f"{name}_score"]),
            helper.make_node("Concat", [f"{name}_box", f"{name}_score", "class"], [f"{name}_row"], axis=2),
        ]
        rows.append(f"{name}_row")
    constants.append(numpy_helper.from_array(np.array([1, 1, 1], np.int64), "one"))
    constants.append(numpy_helper.from_array(np.zeros((1, 1, 1), np.float32), "class"))
    graph = helper.make_graph(
        [*nodes, helper.make_node("Concat", rows, ["output0"], axis=1)],
        "means",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 4, 6])],
        constants,
    )
    image = np.zeros((64, 32, 3), np.uint8)  # half as wide as high: 16 x 32 in the middle of 32 x 32
    image[:32, :, 0], image[32:, :, 1], image[..., 2] = 255, 204, 9
    detect = load_object(finished(graph, imgsz="[32, 32]"), DetectParams(0.01))
    found = {box.y: (box, confidence) for box, _, confidence in detect(image) if isinstance(box, UprightBox)}
    assert [found[place][1] for place in (0, 16, 32, 48)] == [1, 0.8, 0.4471, 0.4471]
    assert found[16][0] == UprightBox(0, 16, 32, 16)


def test_an_image_is_fitted_as_yolov5_fits_it() -> None:
    """A half of the free room that is no whole pixel: the smaller part is left and above."""
    fitted = fit(blank(17, 32), Frame(32, 32, 114, 0.5, np.inf))
    assert (fitted.scale, fitted.left, fitted.top) == (1, 7, 0)
    assert (fitted.canvas[:, 7:24] == 60).all()
    assert (np.delete(fitted.canvas, np.s_[7:24], axis=1) == 114).all()
    assert fit(blank(3000, 1), Frame(64, 32, 0, 0.0, 2.0)).canvas[0].all()


@pytest.mark.parametrize(
    ("shape", "names", "wanted"),
    [
        ((1, 300, 6), None, Layout.FINAL),
        ((1, 300, 6), ["one"], Layout.FINAL),
        ((1, 100, 6), NAMES, Layout.FINAL),
        ((1, 25200, 6), ["one"], Layout.ROWS),
        ((1, 25200, 85), None, Layout.ROWS),
        ((1, 84, 8400), None, Layout.COLUMNS),
        ((1, 5, 8400), ["one"], Layout.COLUMNS),
        ((1, 7, 2100), NAMES, Layout.COLUMNS),
        ((1, 7, 6), NAMES, Layout.COLUMNS),
        ((1, 5, 6), ["one"], Layout.FINAL),
    ],
)
def test_the_layout_is_told_from_the_shape(shape: tuple[int, ...], names: Any, wanted: Layout) -> None:
    """One candidate of layout `wanted` in zeros is found only where that is how the output is read."""
    output = np.zeros(shape, np.float32)
    if wanted == Layout.FINAL:
        output[0, 1] = [100, 200, 150, 260, 0.75, 0]
    elif wanted == Layout.ROWS:
        output[0, 1, :6] = [125, 230, 50, 60, 1, 0.75]
    else:
        output[0, :5, 1] = [125, 230, 50, 60, 0.75]
    (found,) = load_object(model(output, names))(blank(640, 640))
    label = "0" if names is None else names[0]
    assert found == (UprightBox(100, 200, 50, 60), label, 0.75)


def test_a_layout_that_can_be_two_is_decided_by_the_user() -> None:
    output = np.zeros((1, 63, 6), np.float32)
    output[0, 7] = [16, 16, 8, 8, 1, 0.5]
    data = model(output, ["one"], (32, 32))
    assert load_object(data)(blank(32, 32)) == []  # read as corners, it has no area
    assert load_object(data, layout=Layout.ROWS)(blank(32, 32)) == [(UprightBox(12, 12, 8, 8), "one", 0.5)]


@pytest.mark.parametrize("said", [{"names": '["a", "b"]'}, {"names": '{"0": "a", "1": "b"}'}])
def test_names_may_be_json(said: dict[str, str]) -> None:
    output = np.array([[[10, 10, 30, 30, 0.9, 1]]], np.float32)
    assert load_object(model(output, **said))(blank(640, 640))[0].label == "b"


def test_metadata_that_is_no_literal_is_not_run() -> None:
    output = np.array([[[10, 10, 30, 30, 0.9, 1]]], np.float32)
    data = model(output, "__import__('os').abort()", ("h", "w"), imgsz="exit()")
    assert load_object(data)(blank(640, 640))[0].label == "1"


def test_broken_candidates_are_dropped() -> None:
    wrong = [[np.nan, 0, 50, 50, 0.9, 0], [0, 0, 50, 50, np.nan, 0], [0, 0, np.inf, 50, 0.9, 0], [50, 50, 0, 0, 0.9, 0]]
    wrong += [
        [0, 0, 50, 50, 0.9, np.nan],
        [0, 0, 50, 50, 0.9, np.inf],
        [700, 0, 800, 50, 0.9, 0],
        [0, 0, 0.2, 50, 0.9, 0],
        [0, 0, 50, 50, 0.2, 0],
    ]
    output = np.array([[*wrong, [5, 5, 50, 50, 0.5, 0]]], np.float32)
    assert load_object(model(output))(blank(640, 640)) == [(UprightBox(5, 5, 45, 45), "0", 0.5)]


def test_one_box_has_one_label() -> None:
    rows = [[5, 5, 50, 50, 0.5, 0], [5.1, 5, 50, 50, 0.75, 1], [9, 9, 20, 20, 0.625, 1], [5, 5, 50, 50.2, 0.6, 2]]
    found = load_object(model(np.array([rows], np.float32), NAMES))(blank(640, 640))
    assert found == [(UprightBox(5, 5, 45, 45), "dog", 0.75), (UprightBox(9, 9, 11, 11), "dog", 0.625)]


def test_half_floats_are_read() -> None:
    output = np.array([[[5, 5, 50, 50, 0.5, 0]]], np.float16)
    assert load_object(model(output))(blank(640, 640)) == [(UprightBox(5, 5, 45, 45), "0", 0.5)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 bytes"),
        (b"not a graph", "not an ONNX file"),
        (model(np.zeros((1, 10), np.float32)), r"gives output0 float32 \(1, 10\)"),
        (model(np.zeros((1, 9, 300), np.float32), NAMES), "for its 3 classes"),
        (model(np.zeros((2, 300, 6), np.float32)), r"\(2, 300, 6\)"),
        (model(np.zeros((1, 300, 6), np.int64)), "int64"),
        (model(np.zeros((1, 300, 6), np.float32), task="segment"), "made for 'segment'"),
        (model(np.zeros((1, 300, 6), np.float32), sides=(9000, 640)), "640x9000"),
    ],
)
def test_other_models_are_refused(data: bytes, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_object(data)


@pytest.mark.parametrize("wrong", [{"confidence": 0}, {"confidence": 1.5}, {"iou": float("nan")}, {"max_boxes": 0}])
def test_wrong_thresholds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        DetectParams(**{"confidence": 0.5, **wrong})


@pytest.mark.parametrize(
    ("native", "space"),
    [
        (np.full((40, 50), 7, np.uint8), "L"),
        (np.full((40, 50, 2), 7, np.uint8), "LA"),
        (np.full((40, 50, 4), 7, np.uint8), "CMYK"),
        (np.full((40, 50), 700, np.uint16), "L"),
        (np.full((40, 50, 3), 700, np.uint16), "RGB"),
    ],
)
def test_looking_for_boxes_leaves_the_image_as_it_is(native: NDArray[Any], space: str) -> None:
    seen = []
    before = native.copy()
    decoded = Decoded(Header("png", 50, 40), native, space)
    assert detect_in(decoded, lambda rgb: seen.append((rgb.shape, rgb.dtype)) or []) == []
    assert seen == [((40, 50, 3), np.uint8)]
    assert np.array_equal(decoded.native, before)


def test_object_needs_a_model_before_any_work() -> None:
    with pytest.raises(UsageError, match="needs a model"):
        require_detector(BoxesFrom.OBJECT)
    data = model(np.zeros((1, 300, 6), np.float32))
    require_detector(BoxesFrom.OBJECT, data)
    assert load_detector(BoxesFrom.OBJECT, model=data) is load_detector(BoxesFrom.OBJECT, model=bytes(bytearray(data)))
    with pytest.raises(UsageError, match="not detected"):
        load_detector(BoxesFrom.TABLE)


def test_a_fingerprint_holds_all_that_boxes_depend_on() -> None:
    data, other = model(np.zeros((1, 300, 6), np.float32)), model(np.zeros((1, 301, 6), np.float32))
    said = [
        describe_detector(BoxesFrom.TABLE),
        describe_detector(BoxesFrom.OBJECT, None, data),
        describe_detector(BoxesFrom.OBJECT, None, other),
        describe_detector(BoxesFrom.OBJECT, None, data, Layout.ROWS),
        describe_detector(BoxesFrom.OBJECT, DetectParams(0.5), data),
    ]
    assert len({str(one) for one in said}) == len(said)
    assert said[1] == describe_detector(BoxesFrom.OBJECT, DetectParams(0.25, 0.45), bytes(bytearray(data)))
