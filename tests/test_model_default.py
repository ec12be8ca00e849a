"""The model in the package: it is what its record and its card say, and its numbers hold on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import models
from pipeline.errors import ModelError, UsageError
from pipeline.kernels.embed import Embedder, ModelInput, canary_images, check_canary, load_embedder
from pipeline.models import DEFAULT_NAME, Model, default_model, open_model, parse_description, parse_input

FOLDER = Path(models.__file__).parent


@pytest.fixture(scope="module")
def model() -> Model:
    return default_model()


@pytest.fixture(scope="module")
def embedder(model: Model) -> Embedder:
    return model.load()


@pytest.fixture
def copied_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package's files in a folder that a test may damage."""
    for name in ("onnx", "npz", "json"):
        (tmp_path / f"{DEFAULT_NAME}.{name}").write_bytes((FOLDER / f"{DEFAULT_NAME}.{name}").read_bytes())
    monkeypatch.setattr(models.resources, "files", lambda _: tmp_path)
    default_model.cache_clear()
    yield tmp_path
    default_model.cache_clear()


def test_card_and_record_name_the_shipped_files(model: Model) -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    record = json.loads((FOLDER / f"{DEFAULT_NAME}.json").read_text(encoding="utf-8"))
    said = set(re.findall(r"\b[0-9a-f]{64}\b", card))
    assert {record["sha256"], record["statistics_sha256"]} <= said
    assert model.sha256 == record["sha256"]
    assert f"{model.signature_moments.count:,}" in card
    assert f"{len(model.data):,} bytes" in card


def test_default_input_is_the_one_that_extraction_makes(model: Model) -> None:
    assert model.input == ModelInput(160, 160)
    assert parse_input(json.loads(json.dumps(model.input.__dict__))) == model.input
    assert model.dimension == 320


def test_int8_output_is_bitwise_equal_for_every_batch_size(embedder: Embedder) -> None:
    """The graph itself at batches of 1 to 16, not the batches that `embed` cuts."""
    images = np.concatenate([canary_images(embedder.input)] * 4)
    images ^= np.arange(16, dtype=np.uint8)[:, None, None, None]
    session, name = embedder._session, embedder._name
    expected = embedder.embed(images)
    assert len(np.unique(expected, axis=0)) == 16
    for size in range(1, 17):
        parts = [session.run(None, {name: images[start : start + size]})[0] for start in range(0, 16, size)]
        assert np.array_equal(np.concatenate(parts), expected), size


def test_a_damaged_canary_is_refused(model: Model, embedder: Embedder) -> None:
    assert model.canary is not None
    assert model.canary.dtype == np.float16
    check_canary(embedder, model.canary)
    with pytest.raises(ModelError, match="cosine"):
        check_canary(embedder, np.roll(model.canary, 1, axis=1))


def test_embedding_follows_the_picture(embedder: Embedder) -> None:
    """Brighter by a tenth stays nearer than any other picture, less the mean that all embeddings share."""
    images = canary_images(embedder.input)
    brighter = np.minimum(images.astype(np.float32) * 1.1, 255).astype(np.uint8)
    found = embedder.embed(np.concatenate([images, brighter]))
    found -= found.mean(axis=0)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    assert (found[:4] @ found[4:].T).argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_shipped_moments_are_those_of_unit_vectors(model: Model) -> None:
    assert model.embedding_moments is not None
    assert model.embedding_moments.mean.shape == (320,)
    assert model.signature_moments.mean.shape == (256,)
    for moments in (model.embedding_moments, model.signature_moments):
        assert moments.count >= 10_000
        assert np.array_equal(moments.cov, moments.cov.T)
        assert np.linalg.eigvalsh(moments.cov).min() > -1e-6
        # E|x|^2 = trace(cov) + |mean|^2 is 1 for unit vectors; flat signatures are zero vectors
        assert np.trace(moments.cov) + moments.mean @ moments.mean == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("suffix", ["onnx", "npz"])
def test_a_changed_package_file_is_refused(copied_package: Path, suffix: str) -> None:
    path = copied_package / f"{DEFAULT_NAME}.{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=rf"{suffix}.*sha256"):
        default_model()


def test_a_missing_package_file_is_refused(copied_package: Path) -> None:
    (copied_package / f"{DEFAULT_NAME}.npz").unlink()
    with pytest.raises(ModelError, match="install image-audit again"):
        default_model()


def test_a_users_model_has_no_shipped_statistics_of_its_own(model: Model) -> None:
    opened = open_model(model.data, "mine.onnx")
    assert (opened.input, opened.dimension, opened.sha256) == (model.input, 320, model.sha256)
    assert opened.embedding_moments is None
    assert opened.canary is None
    assert np.array_equal(opened.signature_moments.cov, model.signature_moments.cov)
    assert len(repr(opened)) < 1000  # three megabytes of weights in a log line help nobody
    opened.load()


def test_errors_name_the_users_model() -> None:
    with pytest.raises(ModelError, match=r"mine\.onnx"):
        open_model(b"nothing", "mine.onnx")
    with pytest.raises(UsageError, match=r"mine\.onnx.*colour"):
        open_model(default_model().data, "mine.onnx", {"colour": "RGB"})


def test_descriptions_are_json_objects() -> None:
    assert parse_description(b'{"width": 160}', "d.json") == {"width": 160}
    for text in (b"width=160", b"[160, 160]", b"\xff"):
        with pytest.raises(UsageError, match=r"d\.json"):
            parse_description(text, "d.json")


def test_the_model_is_one_thread_and_small(model: Model) -> None:
    options = load_embedder(model.data)._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert len(model.data) < 3.5e6
