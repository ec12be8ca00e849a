"""Cuts an ONNX model at a tensor: the embedding of a classifier is what enters its last layer, not its class scores."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import ModelError
from pipeline.kernels.protobuf import bytes_field, bytes_head, fields, text, varint_field

# Field numbers of onnx.proto3: of a model, a graph, a node, an attribute, a tensor, a value's description.
_GRAPH = 7
_NODE, _INITIALISER, _OUTPUT = 1, 5, 12
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_KIND, _NODE_ATTRIBUTE = 1, 2, 3, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TYPE, _INT = 1, 3, 20, 2
_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW, _INT64 = 2, 8, 9, 7
_VALUE_NAME = 1
_PICKED = "image_audit_token"


def with_output(data: bytes, tensor: str, token: int | None = None) -> bytes:
    """The ONNX model `data` with one output, `tensor`, or of its vectors (n, tokens, d) that of one token: (n, d).

    Everything else stands as it did: weights are copied as bytes. ModelError where no node gives such a tensor, or
    where the bytes are no ONNX file.
    """
    try:
        return b"".join(_cut(memoryview(data), tensor, token))
    except (IndexError, ValueError) as error:
        raise ModelError(
            f"the model ({len(data)} bytes) is not an ONNX file: its protobuf is cut off or malformed; export it again"
        ) from error


def _cut(model: memoryview, tensor: str, token: int | None) -> Iterator[bytes | memoryview]:
    graph: list[memoryview] = []
    for number, value, raw in fields(model):
        if number == _GRAPH and not isinstance(value, int):
            graph.append(value)
        else:
            yield raw
    parts: list[bytes | memoryview] = [*_without_outputs(graph, tensor), *_new_output(tensor, token)]
    yield bytes_head(_GRAPH, sum(map(len, parts)))
    yield from parts


def _without_outputs(graph: list[memoryview], tensor: str) -> list[memoryview]:
    kept, known, outputs = [], False, []
    for part in graph:
        for number, value, raw in fields(part):
            if number == _OUTPUT and not isinstance(value, int):
                outputs += [text(field.value) for field in fields(value) if field.number == _VALUE_NAME]
                continue
            if number == _NODE and not isinstance(value, int):
                known = known or tensor in _outputs_of(value)
            kept.append(raw)
    if not known:
        raise ModelError(
            f"no node of the model gives {tensor!r} (its outputs: {', '.join(outputs) or 'none'}): it is another model "
            "or another version of it than was described"
        )
    return kept


def _outputs_of(node: memoryview) -> list[str]:
    return [text(field.value) for field in fields(node) if field.number == _NODE_OUTPUT]


def _new_output(tensor: str, token: int | None) -> Iterator[bytes]:
    """The description of the output and, for a token, the node that takes it. ONNX Runtime infers type and shape."""
    if token is None:
        yield bytes_field(_OUTPUT, bytes_field(_VALUE_NAME, tensor.encode()))
        return
    place, result = f"{_PICKED}.place", f"{_PICKED}.vector"
    index = varint_field(_TENSOR_TYPE, _INT64)
    index += bytes_field(_TENSOR_NAME, place.encode()) + bytes_field(_TENSOR_RAW, token.to_bytes(8, "little"))
    axis = bytes_field(_ATTRIBUTE_NAME, b"axis") + varint_field(_ATTRIBUTE_INT, 1) + varint_field(_ATTRIBUTE_TYPE, _INT)
    node = bytes_field(_NODE_INPUT, tensor.encode()) + bytes_field(_NODE_INPUT, place.encode())
    node += bytes_field(_NODE_OUTPUT, result.encode()) + bytes_field(_NODE_NAME, _PICKED.encode())
    node += bytes_field(_NODE_KIND, b"Gather") + bytes_field(_NODE_ATTRIBUTE, axis)
    yield bytes_field(_INITIALISER, index)
    yield bytes_field(_NODE, node)
    yield bytes_field(_OUTPUT, bytes_field(_VALUE_NAME, result.encode()))
