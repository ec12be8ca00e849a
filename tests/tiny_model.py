"""A classifier of 12 pixels as providers publish them, and its row in the table of named models."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from pipeline.kernels.embed import ModelInput
from pipeline.models.named import NamedModel

SIDE, TOKENS, WIDTH, CLASSES = 12, 9, 5, 7
INPUT = ModelInput(SIDE, SIDE, "NCHW", "float32", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "RGB", 1 / 255)
NAME = "tiny"


def classifier(ir_version: int = 8) -> bytes:
    """A classifier as providers publish them: convolution, tokens, their mean, scores; (n, 7) is its only output."""
    rng = np.random.default_rng(3)
    weights = {
        "kernel": rng.normal(size=(WIDTH, 3, 4, 4)).astype(np.float32),
        "head": rng.normal(size=(WIDTH, CLASSES)).astype(np.float32),
        "shape": np.array([0, WIDTH, -1]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["map"], strides=[4, 4]),
        helper.make_node("Reshape", ["map", "shape"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["scores"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])]
    if ir_version < 4:  # then a weight is an input as well
        inputs += [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in weights.items()
        ]
    graph = helper.make_graph(
        nodes,
        "g",
        inputs,
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opset = helper.make_opsetid("", 7 if ir_version < 4 else 17)
    data: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=ir_version).SerializeToString()
    return data


DATA = classifier()


def tiny(*urls: str, data: bytes = DATA, **changes: object) -> NamedModel:
    """A row of the table for `data`; its embedding is the pooled map."""
    row = NamedModel(
        name=NAME,
        title="a test model",
        urls=urls,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        licence="a test licence",
        citation="nobody",
        dimension=WIDTH,
        input=INPUT,
        tensor="pooled",
    )
    return replace(row, **changes)  # type: ignore[arg-type]
