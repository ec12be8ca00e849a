"""From pixels to embeddings: an ONNX or ORT model on one thread, what it expects of a pixel, and its canary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from pipeline.errors import ModelError, UsageError
from pipeline.kernels.external_data import external_tensors

MAX_MODEL_BYTES = 2**31 - 1  # protobuf's own limit; beyond it weights are external
MAX_SIDE = 4096
BATCH = 8
"""Images a run. CPU per image of the default model at 1, 4, 8 and 16: 5.5, 4.8, 4.7 and 4.6 ms (busy core, no VNNI)."""
CANARIES = 4
CANARY_TOLERANCE = 1e-3
_ORT_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
_VECTOR_TYPES = frozenset({"tensor(float)", "tensor(float16)", "tensor(double)"})
_HOW_TO_DESCRIBE = "describe it in a JSON file and pass --model-input FILE"

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class ModelInput:
    """What a model wants of an image: a float one gets `(byte * scale - mean) / std` per channel, in `channel_order`.

    `layout` is NHWC or NCHW, `dtype` uint8 or float32 (a uint8 model normalises inside its graph and gets the bytes).
    UsageError for values that contradict each other.
    """

    width: int
    height: int
    layout: str = "NHWC"
    dtype: str = "uint8"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_order: str = "RGB"
    scale: float = 1.0

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value!r}, want one of {', '.join(wanted)}"
            for name, value, wanted in (
                ("layout", self.layout, ("NHWC", "NCHW")),
                ("dtype", self.dtype, ("uint8", "float32")),
                ("channel_order", self.channel_order, ("RGB", "BGR")),
            )
            if value not in wanted
        ]
        for name, side in (("width", self.width), ("height", self.height)):
            if type(side) is not int or not 1 <= side <= MAX_SIDE:
                problems.append(f"{name} is {side!r}, want a whole number from 1 to {MAX_SIDE}")
        problems += self._number_problems()
        if problems:
            raise UsageError("the description of the model's input is wrong: " + "; ".join(problems))

    def _number_problems(self) -> list[str]:
        problems = []
        for name, three in (("mean", self.mean), ("std", self.std)):
            if not isinstance(three, tuple) or len(three) != 3 or not all(map(_is_number, three)):
                problems.append(f"{name} is {three!r}, want three numbers, in the model's channel order")
        if not _is_number(self.scale) or self.scale == 0:
            problems.append(f"scale is {self.scale!r}, want a number other than 0, such as 0.00392156862745098 (1/255)")
        if problems:
            return problems
        if 0 in self.std:
            problems.append(f"std is {self.std!r}, want no 0 in it")
        is_plain = (*self.mean, *self.std, self.scale) == (0, 0, 0, 1, 1, 1, 1)
        if self.dtype == "uint8" and not is_plain:
            problems.append("mean, std and scale are given, but the model takes uint8 and normalises by itself")
        return problems


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


class Embedded(NamedTuple):
    """Embeddings as stored: `vectors` float16 (n, d), a bad row zeroed; `is_finite` bool (n,), False for a bad row."""

    vectors: NDArray[np.float16]
    is_finite: NDArray[np.bool_]


class Embedder:
    """A loaded model. Make one with `load_embedder`, in the process that uses it."""

    def __init__(self, session: ort.InferenceSession, model_input: ModelInput, output: str, dimension: int) -> None:
        self.input = model_input
        self.dimension = dimension
        self._session = session
        self._output = output
        self._name = session.get_inputs()[0].name
        fixed = session.get_inputs()[0].shape[0]
        self._batch = fixed if isinstance(fixed, int) else BATCH
        # An int8 graph gives the same bits at any batch size; a float one may not, so it always gets full batches:
        # equal rows are owed for any shard size.
        self._is_padded = isinstance(fixed, int) or model_input.dtype == "float32"

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself: the `metadata_props` of an ONNX model."""
        found: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Raw model output of uint8 RGB images (n, height, width, 3): float32 (n, dimension). May hold NaN or infinity.

        ModelError for images of another shape or dtype, and if the model fails on them.
        """
        wanted = (self.input.height, self.input.width, 3)
        if images.ndim != 4 or images.shape[1:] != wanted or images.dtype != np.uint8:
            raise ModelError(f"images are {images.dtype} {images.shape}, the model wants uint8 (n, {wanted})")
        out = np.empty((len(images), self.dimension), np.float32)
        for start in range(0, len(images), self._batch):
            block = images[start : start + self._batch]
            out[start : start + len(block)] = self._run(block)[: len(block)]
        return out

    def _run(self, block: Images) -> NDArray[np.float32]:
        if self._is_padded and len(block) < self._batch:
            block = np.concatenate([block, np.zeros((self._batch - len(block), *block.shape[1:]), np.uint8)])
        try:
            (found,) = self._session.run([self._output], {self._name: prepare(block, self.input)})
        except _ORT_ERRORS as error:
            raise ModelError(f"the model failed on a batch of {len(block)} images: {_first_line(error)}") from error
        if found.shape[:2] != (len(block), self.dimension):
            raise ModelError(f"the model gave {found.shape} for {len(block)} images, want one vector an image")
        return found.reshape(len(block), self.dimension).astype(np.float32, copy=False)  # type: ignore[no-any-return]


def prepare(images: Images, model_input: ModelInput) -> NDArray[Any]:
    """uint8 RGB (n, h, w, 3) as the model wants it: channel order, normalisation, layout, dtype."""
    pixels: NDArray[Any] = images if model_input.channel_order == "RGB" else images[..., ::-1]
    if model_input.dtype == "float32":
        factor = np.float32(model_input.scale) / np.asarray(model_input.std, np.float32)
        shift = np.asarray(model_input.mean, np.float32) / np.asarray(model_input.std, np.float32)
        pixels = pixels.astype(np.float32) * factor - shift
    if model_input.layout == "NCHW":
        pixels = pixels.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels)


def embed_for_storage(embedder: Embedder, images: Images) -> Embedded:
    """Embeddings cast to float16, with the rows that hold NaN, infinity or more than float16 can hold marked."""
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = embedder.embed(images).astype(np.float16)
    is_finite = np.asarray(np.isfinite(vectors).all(axis=1))
    vectors[~is_finite] = 0
    return Embedded(vectors, is_finite)


def load_embedder(data: bytes, description: ModelInput | Mapping[str, object] | None = None) -> Embedder:
    """Load an ONNX or ORT model from its bytes; what `description` leaves out is taken from the graph.

    ModelError if the bytes are unreadable, too many or lack weights, if the model does not give one vector an image,
    or if its input cannot be inferred (the message names the missing keys). UsageError for a wrong description.
    """
    session = _open_session(data)
    model_input = description if isinstance(description, ModelInput) else _complete(session, description or {})
    _check_against_graph(session, model_input)
    fixed = session.get_inputs()[0].shape[0]
    probe = np.zeros((fixed if isinstance(fixed, int) else 2, model_input.height, model_input.width, 3), np.uint8)
    output, dimension = _vector_output(session, prepare(probe, model_input))
    return Embedder(session, model_input, output, dimension)


def _open_session(data: bytes) -> ort.InferenceSession:
    if not data:
        raise ModelError("the model is empty (0 bytes); want an ONNX or ORT file")
    if len(data) > MAX_MODEL_BYTES:
        raise ModelError(f"the model has {len(data)} bytes, at most {MAX_MODEL_BYTES} can be loaded: use a smaller one")
    is_ort_format = data[4:8] == b"ORTM"
    outside = [] if is_ort_format else external_tensors(data)
    if outside:
        raise ModelError(
            f"{len(outside)} tensors of the model (first: {outside[0]!r}) are in another file, which workers would not "
            "have; save it as one file: onnx.save(onnx.load(path), path, save_as_external_data=False)"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _ORT_ERRORS as error:
        raise ModelError(
            f"the model ({len(data)} bytes) cannot be loaded: {_first_line(error)}; want an ONNX or ORT file that "
            f"ONNX Runtime {ort.__version__} reads"
        ) from error


def _complete(session: ort.InferenceSession, given: Mapping[str, object]) -> ModelInput:
    """The description with what the graph says filled in; ModelError names the keys that nobody said."""
    known = [field.name for field in fields(ModelInput)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UsageError(f"unknown keys in the model's description: {', '.join(unknown)}; known: {', '.join(known)}")
    said: dict[str, Any] = {**_inferred(session), **given}
    for name in ("mean", "std"):
        if isinstance(said.get(name), list):
            said[name] = tuple(said[name])
    needed = ["width", "height", "layout", "dtype"]
    if said.get("dtype") == "float32":
        needed += ["scale", "mean", "std", "channel_order"]
    missing = [name for name in needed if name not in said]
    if missing:
        raise ModelError(
            f"the model's input {session.get_inputs()[0].shape} does not say its {', '.join(missing)}; "
            f"{_HOW_TO_DESCRIBE}, such as "
            '{"width": 224, "height": 224, "layout": "NCHW", "channel_order": "RGB", "scale": 0.00392156862745098, '
            '"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
        )
    return ModelInput(**said)


def _inferred(session: ort.InferenceSession) -> dict[str, Any]:
    """What the graph says of its input: dtype, and layout and size where they are fixed."""
    (entry,) = _only_input(session)
    shape = entry.shape
    found: dict[str, Any] = {"dtype": _DTYPES[entry.type]}
    if shape[1] == 3 and shape[3] != 3:
        found["layout"] = "NCHW"
    elif shape[3] == 3 and shape[1] != 3:
        found["layout"] = "NHWC"
    else:
        return found
    sides = shape[2:4] if found["layout"] == "NCHW" else shape[1:3]
    found.update({key: side for key, side in zip(("height", "width"), sides, strict=True) if isinstance(side, int)})
    return found


def _only_input(session: ort.InferenceSession) -> list[Any]:
    entries = session.get_inputs()
    described = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in entries)
    is_usable = len(entries) == 1 and len(entries[0].shape) == 4 and entries[0].type in _DTYPES
    if not is_usable:
        raise ModelError(f"the model takes {described}; want one input of four axes, uint8 or float32, of RGB images")
    return [entries[0]]


def _check_against_graph(session: ort.InferenceSession, said: ModelInput) -> None:
    (entry,) = _only_input(session)
    nhwc = [None, said.height, said.width, 3]
    wanted = nhwc if said.layout == "NHWC" else [None, 3, said.height, said.width]
    pairs = zip(entry.shape[1:], wanted[1:], strict=True)
    if _DTYPES[entry.type] != said.dtype or any(isinstance(is_, int) and is_ != want for is_, want in pairs):
        raise ModelError(
            f"the description says {said.dtype} {said.layout} {said.width}x{said.height}, the graph takes "
            f"{entry.type} {entry.shape}; correct the description"
        )


def _vector_output(session: ort.InferenceSession, probe: NDArray[Any]) -> tuple[str, int]:
    """Name and length of the first output that is one vector an image, found by running the model once."""
    try:
        values = session.run(None, {session.get_inputs()[0].name: probe})
    except _ORT_ERRORS as error:
        raise ModelError(f"the model fails on an image of {probe.dtype} {probe.shape}: {_first_line(error)}") from error
    entries = session.get_outputs()
    for entry, value in zip(entries, values, strict=True):
        is_vector = value.ndim == 2 or (value.ndim == 4 and value.shape[2:] == (1, 1))
        if entry.type in _VECTOR_TYPES and is_vector and value.shape[0] == len(probe) and value.shape[1] > 1:
            return entry.name, int(value.shape[1])
    given = ", ".join(f"{entry.name} {entry.type} {value.shape}" for entry, value in zip(entries, values, strict=True))
    raise ModelError(
        f"for {len(probe)} images the model gives {given}; want one float vector an image, (n, d) or (n, d, 1, 1): "
        "cut the graph after its pooling, or pool its last feature map"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:300]


def canary_images(model_input: ModelInput) -> Images:
    """Four images that are the same on every machine: uint8 (4, height, width, 3), blurred colour noise with an edge.

    Made by integer arithmetic alone, since the streams of numpy's generators may change between versions.
    """
    h, w = model_input.height, model_input.width
    y, x = np.arange(h, dtype=np.int64)[:, None, None] * 7, np.arange(w, dtype=np.int64)[None, :, None] * 7
    images = np.empty((CANARIES, h, w, 3), np.uint8)
    for number in range(CANARIES):
        knots = _noise(number, 9 * 9 * 3).reshape(9, 9, 3)
        row, column = y // h, x // w  # the cell of an 8 x 8 grid that a pixel is in, and how far along it is
        down, right = (y % h) * 256 // h, (x % w) * 256 // w
        row, column = row[..., 0], column[..., 0]
        top = knots[row, column] * (256 - right) + knots[row, column + 1] * right
        bottom = knots[row + 1, column] * (256 - right) + knots[row + 1, column + 1] * right
        images[number] = (top * (256 - down) + bottom * down) // 65536
    images[:, h // 4 : h // 2, w // 4 : w // 2] ^= 0x80
    return images


def _noise(seed: int, count: int) -> NDArray[np.int64]:
    """Bytes of a splitmix64 stream (Steele, Lea and Flood 2014), as int64 (count,)."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed * count)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    top: NDArray[np.int64] = (z >> np.uint64(56)).astype(np.int64)
    return top


def canary_embeddings(embedder: Embedder) -> NDArray[np.float16]:
    """Embeddings of the canary images, float16 (4, dimension); ModelError if one is not finite."""
    found = embed_for_storage(embedder, canary_images(embedder.input))
    if not found.is_finite.all():
        raise ModelError(
            "the model gives NaN, infinity or values over 65,504 on plain test images; check mean, std and scale of "
            "its description"
        )
    return found.vectors


def compare_canary(expected: NDArray[np.float16], found: NDArray[np.float16]) -> None:
    """ModelError unless each found canary embedding is within cosine 1e-3 of the expected one."""
    if expected.shape != found.shape:
        raise ModelError(f"canary embeddings have shape {found.shape}, expected {expected.shape}: another model ran")
    a, b = expected.astype(np.float64), found.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    gap = 1 - np.einsum("ij,ij->i", a, b) / np.maximum(norms, 1e-30)
    if not (gap <= CANARY_TOLERANCE).all():
        raise ModelError(
            f"the model gives other embeddings here than where its canary was made: cosine {1 - gap.max():.6f} on "
            f"canary {int(gap.argmax())}, want at least {1 - CANARY_TOLERANCE}; use one model file and one "
            f"ONNX Runtime (here {ort.__version__}) on every machine"
        )


def check_canary(embedder: Embedder, expected: NDArray[np.float16]) -> None:
    """Embed the canary images and compare, before a worker's first image. ModelError beyond cosine 1e-3."""
    compare_canary(expected, canary_embeddings(embedder))
