"""Audits that several tests read, each made once per process, and small sets of photographs."""

from __future__ import annotations

import atexit
import functools
import io
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from planted import Truth, build

import pipeline
from pipeline.api import Where
from pipeline.audit import FINDINGS, Audit
from pipeline.demo import SUBJECTS, demo_photos

LOCAL = Where("local")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Audited:
    """A folder of photographs, its root, what was planted, and the audit."""

    photos: Path
    root: Path
    truth: Truth
    audit: Audit


@functools.cache
def scratch() -> Path:
    """A folder of this process, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="image-audit-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


SEED = 7


@functools.cache
def planted_audit(seed: int) -> Audited:
    """The planted set, audited in this process at the defaults. Read it, never change it."""
    folder = scratch() / f"planted-{seed}"
    truth = build(folder / "photos", seed)
    return Audited(folder / "photos", folder / "audit", truth, run(folder / "photos", root=folder / "audit"))


def run(*sources: str | Path, root: str | Path, **config: Any) -> Audit:
    """Audit in this process; the audit was published."""
    audit = pipeline.run(*sources, root=root, where=LOCAL, **config)
    assert audit is not None
    return audit


def rows(audit: Audit, name: str) -> Rows:
    """All rows of a table."""
    found: Rows = audit.table(name).to_pylist()
    return found


def by_uri(audit: Audit, name: str) -> dict[str, dict[str, Any]]:
    """The rows of a table with one row per image."""
    listed = rows(audit, name)
    found = {row["uri"]: row for row in listed}
    assert len(found) == len(listed)
    return found


def assert_equal_tables(one: Audit, other: Audit, names: Iterable[str] = FINDINGS) -> None:
    """Every value of every row is equal, in the same order, but for where two copies of the photographs lie."""
    for name in names:
        ours, theirs = (_without_place(audit.table(name)) for audit in (one, other))
        assert ours.schema.equals(theirs.schema), name
        if not ours.equals(theirs):
            assert ours.to_pylist() == theirs.to_pylist(), name
            assert _as_bytes(ours) == _as_bytes(theirs), name


def _without_place(table: pa.Table) -> pa.Table:
    return table.drop_columns(["path"]) if "path" in table.column_names else table


def _as_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def small_set(count: int = 24) -> dict[str, bytes]:
    """Uri -> bytes of `count` photographs of two classes in three splits, and of three planted faults.

    `train/a/a00.jpg` has an exact copy in test, `train/b/b00.jpg` one at half size in val; `train/b/cut.jpg` is
    truncated.
    """
    photos = demo_photos()
    files = {}
    for label, sources in zip("ab", list(SUBJECTS.values())[:2], strict=True):
        names = [name for name in photos if name.rpartition("_")[0] in sources][: count // 2]
        assert len(names) == count // 2
        for position, name in enumerate(names):
            split = ("train", "train", "train", "val", "test")[position % 5]
            files[f"{split}/{label}/{label}{position:02}.jpg"] = photos[name]
    files["test/a/copy.jpg"] = files["train/a/a00.jpg"]
    files["val/b/half.jpg"] = half_size(files["train/b/b00.jpg"])
    files["train/b/cut.jpg"] = files["train/b/b00.jpg"][: len(files["train/b/b00.jpg"]) // 2]
    return dict(sorted(files.items()))


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write the files of a set; returns the folder."""
    for uri, data in files.items():
        (folder / uri).parent.mkdir(parents=True, exist_ok=True)
        (folder / uri).write_bytes(data)
    return folder


def half_size(data: bytes) -> bytes:
    """The JPEG file at half its width and height."""
    with Image.open(io.BytesIO(data)) as image:
        small = image.convert("RGB").resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return jpeg(small)


def jpeg(image: Image.Image) -> bytes:
    """A JPEG file of quality 92."""
    sink = io.BytesIO()
    image.save(sink, format="JPEG", quality=92)
    return sink.getvalue()


def noise_jpeg(seed: int, side: int = 96) -> bytes:
    """A picture of coloured blobs that resembles no other seed's."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return jpeg(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def projection_model(head: Iterable[onnx.NodeProto] = (), dimension: int = 48) -> bytes:
    """An fp32 ONNX model, NCHW float (n, 3, 32, 32): average pooling to 4 x 4, then a fixed random projection.

    `head` are nodes from `vector` to `output`; without any the projection itself is the output.
    """
    weights = np.random.default_rng(5).normal(size=(48, dimension)).astype(np.float32) / 7
    nodes = [
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["vector"]),
    ]
    last = [*head] or [helper.make_node("Identity", ["vector"], ["output"])]
    return onnx_bytes([*nodes, *last], {"weights": weights}, ("n", dimension))


def onnx_bytes(
    nodes: list[onnx.NodeProto], constants: Mapping[str, np.ndarray[Any, Any]], output: tuple[str | int, ...]
) -> bytes:
    """A model from float `image` (n, 3, 32, 32) to float `output`."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [*output])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
