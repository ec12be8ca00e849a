"""Models by name: found in the cache, downloaded once and checked, or one clear error that says what to do by hand."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import pytest
from audited import noise_jpeg, projection_model, rows, run, write_files
from hypothesis import given, settings
from hypothesis import strategies as st
from model_server import Served, resolve_in_child, serving
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from test_model import raw_uint8_model
from tiny_model import DATA, INPUT, NAME, SIDE, TOKENS, WIDTH, classifier, tiny

from pipeline.errors import ModelError, UsageError
from pipeline.kernels.embed import load_embedder
from pipeline.kernels.graph_output import with_output
from pipeline.kernels.moments import Moments
from pipeline.models import MOMENTS_KEY, moments_to_metadata, named, open_model
from pipeline.models.cache import CACHE_VARIABLE, HIGH_ACCURACY_FILE, cache_folder, resolve_model, say_once
from pipeline.models.download import Patience
from pipeline.models.named import NAMED, NamedModel, is_model_name

QUICK = Patience(attempts=3, backoff=0.0)
Use = Callable[[NamedModel], None]
IMAGES = np.random.default_rng(1).integers(0, 256, (11, SIDE, SIDE, 3), dtype=np.uint8)


def by_hand(tensor: str) -> np.ndarray:
    """The value of an inner tensor for IMAGES: the onnx package declares it, its reference implementation runs."""
    model = onnx.load_from_string(DATA)
    model.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None))
    x = (IMAGES / 255 - np.array(INPUT.mean)) / np.array(INPUT.std)
    run = ReferenceEvaluator(model).run(None, {"x": x.transpose(0, 3, 1, 2).astype(np.float32)})
    return np.asarray(run[-1])


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Puts one row in place of the table."""
    return lambda row: monkeypatch.setattr(named, "NAMED", MappingProxyType({row.name: row}))


@pytest.fixture
def refused_url() -> str:
    """An address on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/model.onnx"


def test_the_six_names() -> None:
    """Each row is pinned to a commit, by https, with a checksum and a licence; the docs name the same files."""
    assert list(NAMED) == ["dinov2s", "dinov2b", "clip", "clip336", "resnet50", "efficientnet"]
    docs = (Path(__file__).parents[1] / "docs/models.md").read_text(encoding="utf-8")
    for row in NAMED.values():
        assert re.fullmatch(r"[0-9a-f]{64}", row.sha256)
        assert all(re.match(r"https://.*/[0-9a-f]{40}/.*\.onnx$", url) for url in row.urls)
        assert row.licence in row.note
        assert is_model_name(row.name)
        assert row.sha256 in docs
        assert f"`{row.name}`" in docs
        assert row.urls[0].split("/resolve/")[0].removeprefix("https://huggingface.co/") in docs
    assert not is_model_name("./clip")
    assert {row.dimension for row in NAMED.values()} == {384, 768, 512, 2048, 1280}


def test_download_once(tmp_path: Path, use: Use, caplog: pytest.LogCaptureFixture) -> None:
    """The file is fetched, kept under its name and cut before its class scores; the second time nothing is asked."""
    with serving(Served(DATA)) as server, caplog.at_level("INFO"):
        use(tiny(server.url, licence="a test licence, said once"))
        first = resolve_model(NAME, str(tmp_path / "new/cache"), patience=QUICK)
        again = resolve_model(NAME, str(tmp_path / "new/cache"), patience=QUICK)
    assert server.ranges == [""]
    assert [path.name for path in (tmp_path / "new/cache").iterdir()] == ["tiny.onnx"]
    assert (tmp_path / "new/cache/tiny.onnx").read_bytes() == DATA
    assert first.model.sha256 == again.model.sha256
    assert "said once" in first.note
    assert server.url in caplog.text
    assert caplog.text.count("said once") == 1
    found = first.model.load().embed(IMAGES)
    np.testing.assert_allclose(found, by_hand("pooled").reshape(-1, WIDTH), rtol=1e-4, atol=1e-5)


def test_placed_by_hand(tmp_path: Path, use: Use, refused_url: str) -> None:
    """A machine without a network takes the file that lies in the cache."""
    use(tiny(refused_url))
    (tmp_path / "tiny.onnx").write_bytes(DATA)
    assert resolve_model(NAME, str(tmp_path), patience=QUICK).model.dimension == WIDTH


def test_no_network(tmp_path: Path, use: Use, refused_url: str) -> None:
    """One error says what to download, where to put it, and how to know that it is right."""
    use(tiny(refused_url))
    with pytest.raises(ModelError, match="Connection refused") as error:
        resolve_model(NAME, str(tmp_path / "cache"), patience=QUICK)
    for part in (refused_url, f"{tmp_path}/cache/tiny.onnx", tiny().sha256, f"{len(DATA)} bytes", CACHE_VARIABLE):
        assert part in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_root_has_is_not_looked_for(
    tmp_path: Path, use: Use, refused_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A rerun on another machine: no network, an empty cache. The licence is said, and known images stay extracted."""
    use(tiny(refused_url))
    cache, photos = write_files(tmp_path / "cache", {"tiny.onnx": DATA}), tmp_path / "photos"
    write_files(photos, {f"{seed}.jpg": noise_jpeg(seed) for seed in range(4)})
    options = {"root": tmp_path / "audit", "model": {"path": NAME, "cache": str(cache)}}
    first = run(photos, **options)
    (cache / "tiny.onnx").unlink()
    write_files(photos, {"9.jpg": noise_jpeg(9)})
    say_once.cache_clear()
    with caplog.at_level("INFO"):
        again = run(photos, **options)
    assert tiny().note in caplog.text
    assert [len(rows(audit, "images")) for audit in (first, again)] == [4, 5]
    assert {row["status"] for row in rows(again, "images")} == {"ok"}
    assert len([*(tmp_path / "audit/features").iterdir()]) == 1  # of one model: known images stay extracted
    use(tiny(refused_url, tensor="flat"))  # another embedding of the same file
    with pytest.raises(ModelError, match="Connection refused"):
        run(photos, **options)
    use(tiny(refused_url))
    (model,) = (tmp_path / "audit/models").glob("*.onnx")
    model.unlink()
    with pytest.raises(ModelError, match="Connection refused"):
        run(photos, **options)


def test_another_file_in_the_cache(tmp_path: Path, use: Use, refused_url: str) -> None:
    """Both checksums are named, and the user's file stays."""
    use(tiny(refused_url))
    (tmp_path / "tiny.onnx").write_bytes(DATA[:-1])
    with pytest.raises(ModelError, match=hashlib.sha256(DATA[:-1]).hexdigest()) as error:
        resolve_model(NAME, str(tmp_path), patience=QUICK)
    assert tiny().sha256 in str(error.value)
    assert (tmp_path / "tiny.onnx").read_bytes() == DATA[:-1]


@pytest.mark.parametrize("is_sized", [True, False])
@pytest.mark.parametrize("sent", [b"<html>sign in</html>", DATA[:-1] + b"\xff", DATA + b"more"])
def test_another_file_on_the_server(sent: bytes, is_sized: bool, tmp_path: Path, use: Use) -> None:
    """Told by its length or its checksum, it is an error that says what is wanted; no half or temporary file stays."""
    with serving(Served(sent, is_sized=is_sized)) as server:
        use(tiny(server.url))
        with pytest.raises(ModelError, match=r"nothing was kept|another file|bytes of \d+ came") as error:
            resolve_model(NAME, str(tmp_path), patience=QUICK)
    assert tiny().sha256 in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_page_in_place_of_the_file(tmp_path: Path, use: Use) -> None:
    """What a sign-in page says is not put before what the next address gives."""
    with serving(Served(b"<html>sign in</html>")) as page, serving(Served(DATA)) as there:
        use(tiny(page.url, there.url))
        resolve_model(NAME, str(tmp_path), patience=QUICK)
    assert (page.ranges, there.ranges) == ([""], [""])


@pytest.mark.parametrize("has_ranges", [True, False])
@pytest.mark.parametrize("is_sized", [True, False])
def test_a_cut_connection_is_taken_up(has_ranges: bool, is_sized: bool, tmp_path: Path, use: Use) -> None:
    """Three answers end early; the fourth brings the rest, from where it broke where the server can do that."""
    with serving(Served(DATA, cut=[100, 500, 600], has_ranges=has_ranges, is_sized=is_sized)) as server:
        use(tiny(server.url))
        resolve_model(NAME, str(tmp_path), patience=QUICK)
    assert (tmp_path / "tiny.onnx").read_bytes() == DATA
    reached = [100, 600, 1200] if has_ranges else [100, 500, 600]
    assert server.ranges == ["", *(f"bytes={at}-" for at in reached)]


def test_a_connection_that_brings_nothing(tmp_path: Path, use: Use) -> None:
    """Connections in a row that break are bounded, the one that brought something included."""
    with serving(Served(DATA, cut=[50, 0, 0, 0, 0])) as server:
        use(tiny(server.url))
        with pytest.raises(ModelError, match=r"ended \d+ bytes early"):
            resolve_model(NAME, str(tmp_path), patience=QUICK)
    assert len(server.ranges) == QUICK.attempts
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 3), (429, 3)])
def test_a_refusal(status: int, requests: int, tmp_path: Path, use: Use) -> None:
    """What will not change is asked once, what may is asked again."""
    with serving(Served(DATA, status=status)) as server:
        use(tiny(server.url))
        with pytest.raises(ModelError, match=f"HTTP {status}"):
            resolve_model(NAME, str(tmp_path), patience=QUICK)
    assert len(server.ranges) == requests


def test_the_next_address(tmp_path: Path, use: Use, refused_url: str) -> None:
    """The first is gone, the second is down, the third has it."""
    with serving(Served(b"", status=404)) as gone, serving(Served(DATA)) as there:
        use(tiny(gone.url, refused_url, there.url))
        resolve_model(NAME, str(tmp_path), patience=QUICK)
    assert (tmp_path / "tiny.onnx").read_bytes() == DATA
    assert there.ranges == [""]


@pytest.mark.parametrize("is_sized", [True, False])
def test_the_next_address_begins_anew(is_sized: bool, tmp_path: Path, use: Use) -> None:
    """The first gives the beginning of another file and breaks: nothing of it stands before what the second gives."""
    other = Served(DATA[::-1], cut=[50, 0, 0, 0, 0], is_sized=is_sized)
    with serving(other) as broken, serving(Served(DATA)) as there:
        use(tiny(broken.url, there.url))
        resolve_model(NAME, str(tmp_path), patience=QUICK)
    assert (tmp_path / "tiny.onnx").read_bytes() == DATA
    assert there.ranges == [""]


def test_a_server_that_sends_nothing(tmp_path: Path, use: Use) -> None:
    """It times out, a bounded number of times."""
    with serving(Served(DATA, is_stuck=True)) as server:
        use(tiny(server.url))
        with pytest.raises(ModelError, match="timed out"):
            resolve_model(NAME, str(tmp_path), patience=replace(QUICK, attempts=2, timeout=0.5))
    assert len(server.ranges) == 2


def test_two_processes_at_once(tmp_path: Path) -> None:
    """Both download at the same moment; both get the model, and one whole file stays."""
    with serving(Served(DATA, together=threading.Barrier(2))) as server:
        call = ({NAME: tiny(server.url)}, NAME, str(tmp_path))
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            results = [pool.apply_async(resolve_in_child, call) for _ in range(2)]
            shas = [result.get(60) for result in results]
    assert len(set(shas)) == 1
    assert server.ranges == ["", ""]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]
    assert (tmp_path / "tiny.onnx").read_bytes() == DATA


def test_a_table_that_does_not_fit_its_file(tmp_path: Path, use: Use, refused_url: str) -> None:
    """A tensor that is not there, or a vector of another length, is an error and not another embedding."""
    (tmp_path / "tiny.onnx").write_bytes(DATA)
    use(tiny(refused_url, tensor="pool5"))
    with pytest.raises(ModelError, match=r"'pool5' \(its outputs: scores\)"):
        resolve_model(NAME, str(tmp_path))
    use(tiny(refused_url, tensor=""))
    with pytest.raises(ModelError, match="7 numbers, wanted 5"):
        resolve_model(NAME, str(tmp_path))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is named, else the variable, else the user's cache folder; a relative XDG folder counts as none."""
    for name in (CACHE_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == "~/.cache/image-audit/models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == "~/.cache/image-audit/models"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me/")
    assert cache_folder() == "/var/cache/me/image-audit/models"
    monkeypatch.setenv(CACHE_VARIABLE, "/models")
    assert cache_folder() == "/models"
    assert cache_folder("here") == "here"


def test_an_unknown_name(tmp_path: Path) -> None:
    """The names that there are, are named."""
    with pytest.raises(UsageError, match=r"'dinov3'.*clip336.*high_accuracy"):
        resolve_model("dinov3", str(tmp_path))


@pytest.mark.parametrize("ir_version", [3, 8])
@pytest.mark.parametrize("token", range(0, TOKENS, 4))
def test_one_token_of_many(token: int, ir_version: int) -> None:
    """Of (n, tokens, width) the vector of one token, as CLS is token 0; in old files, whose weights are inputs, too."""
    cut = with_output(classifier(ir_version), "tokens", token)
    found = load_embedder(cut, INPUT).embed(IMAGES)
    np.testing.assert_allclose(found, by_hand("tokens")[:, token], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "tensor", "token"), [({"output": "pooled"}, "pooled", 0), ({"token": 3}, "tokens", 3)]
)
def test_an_output_of_ones_own_model(asked: dict[str, object], tensor: str, token: int) -> None:
    """A description names the tensor; the model that workers get is cut already, and needs no second cut."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(INPUT).items()}
    model = open_model(DATA, "mine", {**plain, "output": tensor, **asked})
    wanted = by_hand(tensor).reshape(len(IMAGES), -1, WIDTH)[:, token]
    np.testing.assert_allclose(model.load().embed(IMAGES), wanted, rtol=1e-4, atol=1e-5)
    again = open_model(model.data, "mine", vars(model.input))
    assert again.sha256 == model.sha256 == hashlib.sha256(model.data).hexdigest()


@pytest.mark.parametrize("wrong", [{"output": 3}, {"output": ""}, {"token": 0}, {"output": "tokens", "token": -1}])
def test_a_senseless_output(wrong: dict[str, object]) -> None:
    """Refused before the model is read."""
    with pytest.raises(UsageError, match=f"^mine: .*{list(wrong)[-1]}"):
        open_model(b"", "mine", wrong)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(DATA) - 1))
def test_a_file_that_is_cut_off(size: int) -> None:
    """Wherever it ends, it is a ModelError or lacks only what stands behind the graph; never another exception."""
    try:
        cut = with_output(DATA[:size], "pooled")
    except ModelError:
        return
    assert onnx.load_from_string(cut).graph.output[0].name == "pooled"


def test_high_accuracy_that_was_not_built(tmp_path: Path) -> None:
    """The error holds the command that builds it and the place where it goes."""
    with pytest.raises(ModelError, match="build_default_model --variant high_accuracy") as error:
        resolve_model("high_accuracy", str(tmp_path))
    assert f"--out {tmp_path}" in str(error.value)
    assert f"{tmp_path}/{HIGH_ACCURACY_FILE}" in str(error.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"none", "is not an ONNX file"), (DATA, "scale, mean, std"), (raw_uint8_model("Identity", 1.0), "no moments")],
)
def test_high_accuracy_that_is_another_file(data: bytes, said: str, tmp_path: Path) -> None:
    """What was put in its place, and how to make it; the advice for one's own model would not help."""
    (tmp_path / HIGH_ACCURACY_FILE).write_bytes(data)
    with pytest.raises(
        ModelError, match=f"{tmp_path}/{HIGH_ACCURACY_FILE} is not what the build makes.*{said}"
    ) as error:
        resolve_model("high_accuracy", str(tmp_path))
    assert "build_default_model --variant high_accuracy" in str(error.value)


def with_metadata(metadata: dict[str, str]) -> bytes:
    """A uint8 model of 48 numbers with metadata of its own."""
    model = onnx.load_from_string(projection_model())
    helper.set_model_props(model, metadata)
    data: bytes = model.SerializeToString()
    return data


PLAIN = {"scale": 1 / 255, "mean": [0.0] * 3, "std": [1.0] * 3, "channel_order": "RGB"}


def test_moments_travel_in_the_file() -> None:
    """What a build puts into a model's metadata is what the opened model leans on; most models hold none."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 48))
    moments = Moments(500, rows.mean(axis=0), np.cov(rows.T, bias=True))
    model = open_model(with_metadata(moments_to_metadata(moments)), "mine", PLAIN)
    assert model.embedding_moments is not None
    assert model.embedding_moments.count == 500
    np.testing.assert_allclose(model.embedding_moments.mean, moments.mean, atol=1e-6)
    np.testing.assert_allclose(model.embedding_moments.cov, moments.cov, atol=1e-6)
    assert open_model(projection_model(), "mine", PLAIN).embedding_moments is None


@pytest.mark.parametrize(
    "text",
    [
        "not base64!",
        "AAAA",
        moments_to_metadata(Moments(5, np.zeros(47), np.eye(47)))[MOMENTS_KEY],
        moments_to_metadata(Moments(5, np.full(48, np.nan), np.eye(48)))[MOMENTS_KEY],
    ],
)
def test_damaged_moments(text: str) -> None:
    """Moments that are none, of another length or not finite are refused."""
    with pytest.raises(ModelError, match="moments"):
        open_model(with_metadata({MOMENTS_KEY: text}), "mine", PLAIN)
