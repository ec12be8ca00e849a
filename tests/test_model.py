"""Models of a user: what is inferred, what is asked for, what is refused, and that the numbers are the graph's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ModelError, UsageError
from pipeline.kernels.embed import (
    ModelInput,
    canary_embeddings,
    canary_images,
    check_canary,
    compare_canary,
    embed_for_storage,
    load_embedder,
    prepare,
)
from pipeline.kernels.external_data import external_tensors

IMAGENET = {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "channel_order": "RGB"}
SIDE = 12
CANARY_SHA256 = "fff0ade94d236148277bae68a4540e2bf9e8ee44fb393df153c2b3cce06ae15e"


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[object],
    outputs: Sequence[str] = ("out",),
    kind: int = TensorProto.FLOAT,
    weights: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """A model with one input `x` and outputs whose shapes the graph does not say."""
    entry = helper.make_tensor_value_info("x", kind, list(shape))
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", [entry], made, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def small_net(shape: Sequence[object] = ("n", 3, SIDE, SIDE), seed: int = 0) -> onnx.ModelProto:
    """A float NCHW convolution and mean pooling: (n, 5)."""
    weight = np.random.default_rng(seed).normal(size=(5, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["out"]),
    ]
    return graph_of(nodes, shape, weights=[numpy_helper.from_array(weight, "w")])


def photos(count: int, side: int = SIDE, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def by_hand(model: onnx.ModelProto, images: np.ndarray, is_bgr: bool) -> np.ndarray:
    """Normalise as torchvision's documentation says, in float64, and run the graph on all images at once."""
    unit = images.astype(np.float64) / 255
    x = (unit[..., ::-1] if is_bgr else unit) - np.array(IMAGENET["mean"])
    x = (x / np.array(IMAGENET["std"])).transpose(0, 3, 1, 2).astype(np.float32)
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_float_nchw_model_is_normalised_for(order: str) -> None:
    model, images = small_net(), photos(21)
    embedder = load_embedder(model.SerializeToString(), {**IMAGENET, "channel_order": order})
    assert (embedder.input.layout, embedder.input.dtype, embedder.input.width) == ("NCHW", "float32", SIDE)
    assert embedder.dimension == 5
    np.testing.assert_allclose(embedder.embed(images), by_hand(model, images, order == "BGR"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fixed", ["n", 1, 4])
def test_an_embedding_does_not_depend_on_its_neighbours(fixed: object) -> None:
    embedder = load_embedder(small_net((fixed, 3, SIDE, SIDE)).SerializeToString(), IMAGENET)
    images = photos(19)
    alone = np.concatenate([embedder.embed(images[i : i + 1]) for i in range(len(images))])
    assert np.array_equal(embedder.embed(images), alone)
    assert embedder.embed(images[:0]).shape == (0, 5)


def test_missing_fields_are_named() -> None:
    with pytest.raises(ModelError, match=r"scale, mean, std, channel_order.*--model-input"):
        load_embedder(small_net().SerializeToString())
    with pytest.raises(ModelError, match="width, height"):
        load_embedder(small_net(("n", 3, "h", "w")).SerializeToString(), IMAGENET)
    loaded = load_embedder(small_net(("n", 3, "h", "w")).SerializeToString(), {**IMAGENET, "width": 20, "height": 16})
    assert loaded.embed(np.zeros((2, 16, 20, 3), np.uint8)).shape == (2, 5)
    anything = graph_of([helper.make_node("Flatten", ["x"], ["out"])], ("n", "a", "b", "c"))
    with pytest.raises(ModelError, match="width, height, layout"):
        load_embedder(anything.SerializeToString(), IMAGENET)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"width": 64}, "64x12"),
        ({"layout": "NHWC"}, "NHWC"),
        ({"dtype": "uint8", "scale": 1, "mean": [0, 0, 0], "std": [1, 1, 1]}, "uint8"),
    ],
)
def test_a_description_against_the_graph_is_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load_embedder(small_net().SerializeToString(), {**IMAGENET, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"std": [0.2, 0, 0.2]},
        {"mean": [1, 2]},
        {"scale": 0},
        {"layout": "CHW"},
        {"channel_order": "GRB"},
        {"width": 0},
        {"colour": 1},
        {"mean": "0.5"},
        {"mean": ["a", "b", "c"]},
        {"std": 1.0},
        {"scale": "1/255"},
    ],
)
def test_a_senseless_description_is_a_usage_error(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        load_embedder(small_net().SerializeToString(), {**IMAGENET, **wrong})


def test_external_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(
        small_net(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )  # the other file lies in the working directory, where ONNX Runtime would find it
    monkeypatch.chdir(tmp_path)
    data = (tmp_path / "m.onnx").read_bytes()
    assert external_tensors(data) == ["w"]
    with pytest.raises(ModelError, match="another file"):
        load_embedder(data, IMAGENET)


def test_external_data_inside_a_subgraph_is_found() -> None:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "deep")
    tensor.data_location = TensorProto.EXTERNAL
    inner = helper.make_graph([helper.make_node("Constant", [], ["o"], value=tensor)], "i", [], [])
    node = helper.make_node("If", ["x"], ["out"], then_branch=inner, else_branch=inner)
    assert external_tensors(graph_of([node], ("n",)).SerializeToString()) == ["deep", "deep"]


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not a model", b"\xff" * 300, small_net().SerializeToString()[:-40]])
def test_unreadable_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        load_embedder(data, IMAGENET)


def test_a_feature_map_is_refused_and_its_shape_told() -> None:
    model = graph_of([helper.make_node("Relu", ["x"], ["out"])], ("n", 3, SIDE, SIDE))
    with pytest.raises(ModelError, match=re.escape("out tensor(float) (2, 3, 12, 12)")):
        load_embedder(model.SerializeToString(), IMAGENET)


def test_one_number_for_the_whole_batch_is_refused() -> None:
    model = graph_of([helper.make_node("ReduceMean", ["x"], ["out"], keepdims=0)], ("n", 3, SIDE, SIDE))
    with pytest.raises(ModelError, match="one float vector an image"):
        load_embedder(model.SerializeToString(), IMAGENET)


def test_of_several_outputs_the_first_vector_is_taken() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["map"]), helper.make_node("GlobalAveragePool", ["x"], ["pooled"])]
    model = graph_of(nodes, ("n", 3, SIDE, SIDE), outputs=("map", "pooled"))
    embedder = load_embedder(model.SerializeToString(), IMAGENET)  # (n, 3, 1, 1) counts as a vector
    assert embedder.dimension == 3
    assert embedder.embed(photos(9)).shape == (9, 3)


def test_two_inputs_are_refused() -> None:
    model = small_net()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n"]))
    model.graph.node.append(helper.make_node("Identity", ["mask"], ["m"]))
    model.graph.output.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, ["n"]))
    with pytest.raises(ModelError, match="mask"):
        load_embedder(model.SerializeToString(), IMAGENET)


def test_ort_format_is_accepted(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(small_net().SerializeToString(), options)
    embedder = load_embedder((tmp_path / "m.ort").read_bytes(), IMAGENET)
    np.testing.assert_allclose(embedder.embed(photos(3)), by_hand(small_net(), photos(3), False), rtol=1e-4, atol=1e-5)


def raw_uint8_model(node: str, times: float) -> bytes:
    """A uint8 NHWC model whose embedding is a function of the mean of each channel."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Mul", ["mean", "t"], ["m"]),
        helper.make_node(node, ["m"], ["out"]),
    ]
    weights = [numpy_helper.from_array(np.float32(times), "t")]
    return graph_of(nodes, ("n", SIDE, SIDE, 3), kind=TensorProto.UINT8, weights=weights).SerializeToString()


def test_bad_rows_are_marked_and_the_others_kept() -> None:
    embedder = load_embedder(raw_uint8_model("Log", 1.0))  # the logarithm of a black image is minus infinity
    images = photos(6)
    images[2] = 0
    found = embed_for_storage(embedder, images)
    assert found.vectors.dtype == np.float16
    assert found.is_finite.tolist() == [True, True, False, True, True, True]
    assert not found.vectors[2].any()
    assert found.vectors[found.is_finite].all()


def test_a_value_beyond_float16_is_a_bad_row() -> None:
    embedder = load_embedder(raw_uint8_model("Identity", 1000.0))
    images = np.stack([np.full((SIDE, SIDE, 3), level, np.uint8) for level in (10, 200)])
    assert np.isfinite(embedder.embed(images)).all()
    assert embed_for_storage(embedder, images).is_finite.tolist() == [True, False]
    with pytest.raises(ModelError, match="test images"):
        canary_embeddings(embedder)


@pytest.mark.parametrize(
    "images", [np.zeros((2, SIDE, SIDE + 1, 3), np.uint8), np.zeros((2, SIDE, SIDE, 3), np.float32)]
)
def test_other_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ModelError, match=str(SIDE)):
        load_embedder(raw_uint8_model("Identity", 1.0)).embed(images)


def test_a_canary_tells_models_apart() -> None:
    one, other = (load_embedder(small_net(seed=seed).SerializeToString(), IMAGENET) for seed in (0, 1))
    check_canary(one, canary_embeddings(one))
    with pytest.raises(ModelError, match="canary"):
        check_canary(other, canary_embeddings(one))
    with pytest.raises(ModelError, match="shape"):
        compare_canary(canary_embeddings(one), canary_embeddings(one)[:, :4])


def test_canary_tolerance_is_a_cosine() -> None:
    expected = np.zeros((4, 8), np.float16)
    expected[:, 0] = 1
    near, far = expected.copy(), expected.copy()
    near[3, 1], far[3, 1] = 0.03, 0.06  # cosines 0.99955 and 0.9982
    compare_canary(expected, near * np.float16(2))
    with pytest.raises(ModelError, match="canary 3"):
        compare_canary(expected, far)


def test_canary_images_are_of_every_size_and_never_change() -> None:
    images = canary_images(ModelInput(160, 160))
    assert images.shape == (4, 160, 160, 3)
    assert hashlib.sha256(images.tobytes()).hexdigest() == CANARY_SHA256
    wide = canary_images(ModelInput(31, 7))
    assert wide.shape == (4, 7, 31, 3)
    assert len({image.tobytes() for image in wide}) == 4


def test_prepare_leaves_the_bytes_of_a_uint8_model_alone() -> None:
    images = photos(2)
    assert np.array_equal(prepare(images, ModelInput(SIDE, SIDE)), images)
    planes = prepare(images, ModelInput(SIDE, SIDE, layout="NCHW", channel_order="BGR"))
    assert np.array_equal(planes[:, 0], images[..., 2])
