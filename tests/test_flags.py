"""Flags that are given twice, that are fastdup's, or that would do nothing: taken as meant, or refused with the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from audited import noise_jpeg, rows, write_files

import pipeline
from pipeline.cli import build_parser, main
from pipeline.errors import UsageError
from pipeline.flags import byte_count

CALL = ["--runner", "local", "--quiet"]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command says that ends with 2."""
    capsys.readouterr()
    try:
        code: object = main(words)
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--labels", ("a.csv", "b.csv")),
        ("--find-regex", ("cat", "dog")),
        ("--root", ("a", "b")),
        ("--num-images", ("1", "2")),
        ("--runner", ("local", "local")),
        ("--workers", ("1", "2")),
        ("--model", ("x", "y")),
    ],
)
def test_a_second_value_is_refused(
    flag: str, values: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for value in values for word in (flag, value)]
    said = refused(capsys, "run", str(tmp_path), *words)
    assert f"argument {flag}: given twice" in said
    assert "takes one value" in said


def test_the_other_commands_refuse_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert "argument --columns: given twice" in refused(capsys, "show", "leaks", "--columns", "a", "--columns", "b")


def test_several_test_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is a source whose split is test; the help says which flags may be repeated."""
    write_files(tmp_path, {f"{place}/{at}.jpg": noise_jpeg(at) for at, place in enumerate("abc")})
    a, b, c, root = (str(tmp_path / name) for name in ("a", "b", "c", "root"))
    assert main(["run", a, "--test", b, "--test", c, "--root", root, *CALL]) == 0
    audit = pipeline.open(root)
    assert {row["uri"]: row["split"] for row in rows(audit, "images")} == {
        "0.jpg": "train", "1.jpg": "test", "2.jpg": "test",
    }  # fmt: skip
    again = pipeline.run(a, test=[b, c], root=root)
    assert again is not None
    assert again.audit_id == audit.audit_id
    assert "is named twice" in refused(capsys, "run", a, "--test", b, "--test", b, "--root", root, *CALL)
    with pytest.raises(SystemExit):
        build_parser().parse_args(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "whose split is test; may be repeated" in text
    assert text.count("may be repeated") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num-threads", "4"], "--num-threads is not a flag here: workers of pipeline.api.Where, --workers"),
        (["--d", "576"], "the dimension follows from the model"),
        (["--run-cc=1"], "groups are made by every audit"),
        (["--resume"], "every run resumes"),
        (["--overwrite"], "nothing is overwritten"),
        (["--cc_threshold", "0.9"], "neighbours.threshold"),
        (["--bogus"], "unrecognized arguments: --bogus"),
    ],
)
def test_flags_of_fastdup_are_answered(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "run", str(tmp_path), *words)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("anotations", "unknown key anotations (did you mean annotations?"),
        ("semantic_k", "unknown key semantic_k (did you mean neighbours.semantic_k?"),
        ("overwrite", "unknown key overwrite (nothing is overwritten"),
        ("turi_param", "unknown key turi_param (it spoke to fastdup's own search"),
        ("lower_threshold", "no percentile is to be set"),
        ("batch_size", "(shard_size"),
        ("foo", "unknown key foo (docs/config.toml has every key)"),
        ("bar", "unknown key bar (docs/config.toml has every key)"),
        ("labels", "unknown key labels (docs/config.toml has every key)"),
        ("treshold", "unknown key treshold (did you mean threshold?"),
        ("shardsize", "unknown key shardsize (did you mean shard_size?"),
        ("xyzzy", "unknown key xyzzy (docs/config.toml has every key)"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        pipeline.run(tmp_path, root=tmp_path / "root", **{key: 1})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["photos", "--sync-budget", "1000"], "sync_budget is what copies may take: it goes with"),
        (["photos", "--delete-tar"], "they go with storage.sync_to_local"),
        (["photos", "--model-cache", "models"], "model.cache is where named models are, and none is named"),
        (["photos", "--box-model", "yolo.onnx"], "it goes with bounding_box 'object'"),
        (["photos", "--box-model", "yolo.onnx", "--bounding-box", "face"], "it goes with bounding_box 'object'"),
        (["--from", "features", "--find-regex", "cat"], "that the root has: drop select"),
        (["--from", "features", "--fps", "1", "--bounding-box", "face"], "that the root has: drop video, bounding_box"),
    ],
)
def test_what_would_do_nothing_is_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "run", *words, "--root", str(tmp_path / "root"), *CALL)
    assert not any(tmp_path.iterdir())


def test_a_model_that_is_no_file_names_those_that_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_files(tmp_path / "photos", {"a.jpg": noise_jpeg(1)})
    said = refused(capsys, "run", str(photos), "--model", "dinov2x", "--root", str(tmp_path / "root"), *CALL)
    assert "no model is named 'dinov2x'; known: dinov2s" in said
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1000", 1000),
        ("10kB", 10_000),
        ("10 KB", 10_000),
        ("1.5GB", 1_500_000_000),
        ("2GiB", 2 * 2**30),
        ("7t", 7 * 10**12),
        ("3b", 3),
    ],
)
def test_bytes_may_have_a_unit(text: str, count: int) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "-1", "10 apples", "1e3", "kB", "1..5"])
def test_what_is_no_number_of_bytes_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "photos", f"--min-file-size={text}"])
    assert ended.value.code == 2
    assert "wanted one such as 1000, 10kB or 1.5GB" in capsys.readouterr().err
