"""The command line: what it prints, what it writes, and with which code it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from audited import LOCAL, SEED, Audited, assert_equal_tables, planted_audit, rows, run, small_set, write_files
from outcomes import QUIET, shown

import pipeline
from pipeline.audit import Audit
from pipeline.cli import main


@pytest.fixture(scope="module")
def planted() -> Audited:
    return planted_audit(SEED)


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The one message of a command that ends with `code`; nothing was printed besides."""
    capsys.readouterr()
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("image-audit: ")
    assert "Traceback" not in printed.err
    return printed.err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """Every example of the help is a command that its own parser takes."""
    from pipeline.cli import build_parser

    for arguments in (["--help"], ["run", "--help"], ["show", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        text = capsys.readouterr().out
        examples = re.findall(r"^  image-audit (.+)$", text, re.MULTILINE)
        assert len(examples) >= 4
        for example in examples:
            build_parser().parse_args(shlex.split(example))
        assert "exit codes: 0 done, 2 wrong call or config" in text
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert capsys.readouterr().out == f"image-audit {pipeline.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["ron"], ["run", "--thershold", "1"], ["show", "leeks"], ["run", "--workers", "x"]]
)
def test_wrong_call_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What the parser does not know ends with 2 and the usage."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: image-audit" in capsys.readouterr().err


def test_all_problems_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Contradictory and impossible flags of every part are named together, before anything is made."""
    (tmp_path / "c.toml").write_text('treshold = 1\nmax_failed_share = 2\n[neighbours]\nexact_limit = "many"\n')
    (tmp_path / "input.json").write_text('{"width": 32, "height": 32}')
    message = refused(
        capsys, 2, "run", str(tmp_path), "--root", str(tmp_path / "audit"), "--config", str(tmp_path / "c.toml"),
        "--threshold", "2", "--labels", "x.csv", "--pattern", "(?P<label>.)", "--min-offset", "9", "--max-offset", "3",
        "--address", "auto", "--workers", "0", "--runner", "local", "--shard-size", "0",
        "--model-input", str(tmp_path / "input.json"),
    )  # fmt: skip
    for problem in (
        "unknown key treshold (did you mean threshold? ", "max_failed_share 2",
        "neighbours.exact_limit is 'many', want a whole number",
        "a pattern ('(?P<label>.)') and a table ('x.csv')", "offsets [9, 3)", "shard_size 0", "no model is named",
        "address 'auto' with the local runner", "workers 0",
    ):  # fmt: skip
        assert problem in message, problem
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("neighbours = 3", "neighbours is 3, want a table of keys"),
        ('sources = "photos"', "sources is 'photos', want a list of texts"),
        ("sources = [1]", "sources is (1,), want a list of texts"),
        ("shard_size = 2.5", "shard_size is 2.5, want a whole number"),
        ("shard_size = true", "shard_size is True, want a whole number"),
        ('[threshold]\nfloor = "a"', "threshold.floor is 'a', want a number"),
        ("[neighbours.copy]\nkk = 2", "unknown key neighbours.copy.kk"),
        ("[storage]\nendpoints = {lab = 3}", "storage.endpoints is {'lab': 3}"),
        ("[model]\npath = 3", "model.path is 3, want text"),
        ("a = = 3", "not TOML"),
        ("[storage.endpoints]\nlab = 'http://key:secretword@host:1'", "carries a credential"),
    ],
)
def test_wrong_config_file_is_2(text: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown key, a value of another type and broken TOML are named; a credential is not shown."""
    (tmp_path / "c.toml").write_text(text)
    message = refused(capsys, 2, "run", "--root", str(tmp_path / "audit"), "--config", str(tmp_path / "c.toml"), *QUIET)

    assert problem in message
    assert "secretword" not in message
    assert not (tmp_path / "audit").exists()


def test_config_file_and_flags_give_the_audit_of_keywords(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sources, rule and shard size from TOML, the threshold by a flag over it: the tables of the same keywords."""
    photos = write_files(tmp_path / "photos", small_set(12))
    config = f'sources = ["{photos}"]\nshard_size = 4\n[rule]\npattern = "(?P<label>[a-b])/"\n'
    (tmp_path / "c.toml").write_text(config + "[neighbours]\nthreshold = 0.9\n")
    root = str(tmp_path / "audit")
    assert main(["run", "--config", str(tmp_path / "c.toml"), "--root", root, "--threshold", "0.5", *QUIET]) == 0
    assert "from copy similarity 0.5 on, as given" in capsys.readouterr().out
    same = run(photos, root=tmp_path / "b", rule={"pattern": "(?P<label>[a-b])/"}, neighbours={"threshold": 0.5})

    assert_equal_tables(pipeline.open(root), same)


def test_places_are_checked_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Uris of no storage and paths that are no UTF-8 are named in one message; nothing is made."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    message = refused(capsys, 2, "run", "ftp://host/photos", odd, "--test", "s3://a", "--root", "minio://lab/b/c")

    for problem in (
        "ftp:// is no storage",
        "not UTF-8",
        "'a' is no bucket name",
        "'lab' is neither host:port nor a name",
    ):
        assert problem in message, problem
    assert [*tmp_path.iterdir()] == []


def test_what_cannot_be_had_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No such folder, file, root or audit: 3, with the place in the message."""
    nowhere = str(tmp_path / "nowhere")
    root = str(tmp_path / "audit")
    for arguments in (
        ["run", nowhere, "--root", root, *QUIET],
        ["run", str(tmp_path), "--labels", nowhere, "--root", root, *QUIET],
        ["run", str(tmp_path), "--model", nowhere, "--root", root, *QUIET],
        ["run", str(tmp_path), "--config", nowhere, "--root", root, *QUIET],
        ["show", "leaks", "--root", nowhere],
        ["status", "--root", nowhere],
    ):
        assert nowhere in refused(capsys, 3, *arguments), arguments


def test_run_prints_the_summary_and_where_the_tables_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As text, and as the JSON of `Audit.summary`; the command that it names shows the leaks."""
    photos, root = write_files(tmp_path / "my photos", small_set(12)), str(tmp_path / "my audit")
    with caplog.at_level("INFO"):
        assert main(["run", str(photos), "--root", root, "--runner", "local"]) == 0
    printed = capsys.readouterr()
    assert "images      15 (14 ok, 1 invalid: truncated 1)" in printed.out
    value = pipeline.open(root).summary()["threshold"]["value"]
    assert re.search(
        rf"^threshold   pairs are compared .* from copy similarity {value:.3f} on", printed.out, re.MULTILINE
    )
    assert printed.out.count(f"{value:.3f}") == 1
    assert [line for line in caplog.messages if re.fullmatch(r"catalog: \d+\.\d s", line)]
    assert pipeline.open(root).tables_uri in printed.out
    for line in ("catalog: 15 images in snapshot 1", f"rule for {photos}: ", "splits: test 3, train 9, val 3"):
        assert line in caplog.text
    command = re.search(r"image-audit (show leaks .+)", printed.out)
    assert command
    assert main(shlex.split(command[1])) == 0
    assert "train/a/a00.jpg" in capsys.readouterr().out
    assert main(["run", str(photos), "--root", root, "--json", *QUIET]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == pipeline.open(root).summary()
    assert printed.err == ""


def test_workers_of_one_process_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They were left unsaid; one worker is what the local runner has."""
    words = ["run", str(tmp_path), "--root", str(tmp_path / "audit"), "--quiet", "--runner", "local", "--workers"]
    assert "workers 2 with the local runner, which is one process" in refused(capsys, 2, *words, "2")
    assert not (tmp_path / "audit").exists()
    assert main([*words, "1"]) == 0


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "local", "http://head:8265"])
def test_addresses_that_no_cluster_has_are_refused(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any work, with what an address looks like; `ray://` with the reason."""
    message = refused(capsys, 2, "run", str(tmp_path), "--root", str(tmp_path / "audit"), "--address", address)
    assert "host:port of its head" in message
    assert ("Ray's client" in message) == address.startswith("ray://")
    assert not (tmp_path / "audit").exists()


def test_a_cluster_that_nobody_started_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An address where nobody listens ends the run: Ray tries it for minutes. The photos are there, so work is."""
    photos = write_files(tmp_path / "photos", small_set(4))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        message = refused(
            capsys, 3, "run", str(photos), "--root", str(tmp_path / "audit"), "--address", address, "--quiet"
        )
    assert f"no Ray cluster could be joined at '{address}'" in message
    assert "ray start --head" in message


def test_the_demo_leaves_other_folders_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that holds anything but a demo is refused, before a photo is written."""
    write_files(tmp_path / "nine", {"mine.jpg": b"x"})
    assert "holds 'mine.jpg', which is not of the demo" in refused(
        capsys, 2, "demo", "--into", str(tmp_path / "nine"), *QUIET
    )
    assert [path.name for path in (tmp_path / "nine").iterdir()] == ["mine.jpg"]


def test_what_is_in_the_way_is_said(planted: Audited, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A root below a file, and a folder as output: 3 with another place as the next step, not the disk."""
    (tmp_path / "file").write_bytes(b"")
    root = str(tmp_path / "file/audit")
    assert "another --root" in refused(capsys, 3, "run", str(planted.photos), "--root", root, *QUIET)
    show = ["show", "images", "--csv", "--root", str(planted.root), "--output", str(tmp_path)]
    assert "Name a file: this is a folder" in refused(capsys, 3, *show)


def test_wrong_show_is_2(planted: Audited, capsys: pytest.CaptureFixture[str]) -> None:
    """A column that is not there, no row, a summary as CSV: 2 and what there is; another audit: 3."""
    root = ["--root", str(planted.root)]
    assert "it has: image_id, uri" in refused(capsys, 2, "show", "leaks", *root, "--columns", "uri,nope")
    assert "want at least 1" in refused(capsys, 2, "show", "leaks", *root, "--top", "0")
    assert "take --json" in refused(capsys, 2, "show", "summary", *root, "--csv")
    assert planted.audit.audit_id in refused(capsys, 3, "show", "leaks", *root, "--audit", "000009-none")


def test_summary_is_shown(planted: Audited, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """As text and as JSON."""
    show = ["show", "summary", "--root", str(planted.root)]
    counts = planted.audit.summary()["images"]
    line = f"images      {counts['live']} ({counts['ok']} ok, {len(planted.truth.invalid)} invalid: "
    assert line in shown(capfdbinary, *show).decode()
    assert json.loads(shown(capfdbinary, *show, "--json")) == planted.audit.summary()


def test_status_lists_every_stage(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Stages in their order, all done, nothing missing; extraction with its rate."""
    audit = run(write_files(tmp_path / "photos", small_set(12)), root=tmp_path / "audit")
    listed = json.loads(shown(capfdbinary, "status", "--root", str(tmp_path / "audit"), "--json"))
    stages = {row["stage"]: row for row in listed}

    order = ["catalog", "annotate", "extract", "exact groups", "train", "join copy", "verify", "components", "summary"]
    assert [row["stage"] for row in listed if row["stage"] in order] == order
    assert all((row["state"], row["missing"], row["failed"]) == ("done", 0, []) for row in listed)
    assert stages["extract"]["items"] == audit.summary()["images"]["live"]
    assert stages["extract"]["items_per_second"] > 0
    text = shown(capfdbinary, "status", "--root", str(tmp_path / "audit")).decode().splitlines()
    assert text[0].split()[:4] == ["stage", "state", "parts", "missing"]
    assert len(text) == 2 + len(listed)


def test_a_range_publishes_nothing_and_names_what_finishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two overlapping ranges, then the printed command: the tables of one run, extracted once."""
    photos, root = write_files(tmp_path / "photos", small_set(12)), str(tmp_path / "audit")
    base = ["run", str(photos), "--root", root, *QUIET]
    assert main([*base, "--min-offset", "5", "--max-offset=11"]) == 0
    assert "nothing was published" in capsys.readouterr().out
    assert "no finished audit" in refused(capsys, 3, "show", "leaks", "--root", root)
    assert main([*base, "--min-offset=0", "--max-offset", "7"]) == 0
    command = re.search(r"finish with: image-audit (.+)", capsys.readouterr().out)
    assert command
    assert shlex.split(command[1]) == base
    assert main(shlex.split(command[1])) == 0
    finished = pipeline.open(root)
    (extract,) = [stage for stage in finished.published.session["stages"] if stage["stage"] == "extract"]

    assert extract["counters"]["images"] == 4  # [11, 15)
    assert_equal_tables(finished, run(photos, root=tmp_path / "whole"))


def test_the_command_runs_as_a_process(tmp_path: Path) -> None:
    """`python -m pipeline.cli`: exit codes reach the shell, the summary standard output, messages standard error."""
    photos = write_files(tmp_path / "photos", small_set(4))
    good = process("run", str(photos), "--root", str(tmp_path / "audit"), "--runner", "local", "-q", "--json")
    bad = process("run", str(tmp_path / "nowhere"), "--root", str(tmp_path / "other"), "--runner", "local")

    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["images"]["live"] == 7
    assert (bad.returncode, bad.stdout) == (3, "")
    assert bad.stderr.count("nowhere") == 1


def test_demo_finds_everything(tmp_path: Path) -> None:
    """The demo says what was planted and finds all of it; what it made can be shown."""
    ended = process("demo", "--into", str(tmp_path / "demo"), "--runner", "local", "--quiet")
    found_line = r"^(.+): planted (\d+), found (\d+)(?:, and \d+ images? not planted)?$"
    counts = re.findall(found_line, ended.stdout, re.MULTILINE)

    assert ended.returncode == 0, ended.stderr
    assert len(counts) == ended.stdout.count(": planted ") >= 10
    assert [(name, planted) for name, planted, _ in counts] == [(name, found) for name, _, found in counts]
    audit = pipeline.open(tmp_path / "demo/audit")
    assert isinstance(audit, Audit)
    assert f"{audit.table('images').num_rows} files" in ended.stdout
    assert re.search(r"image-audit show leaks --root (.+)", ended.stdout)


def test_nothing_is_written_beside_the_root(tmp_path: Path) -> None:
    """A user's home stays as it is: onnxruntime keeps events to be sent there, unless it is told not to."""
    photos, home = write_files(tmp_path / "photos", small_set(4)), tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-m", "pipeline.cli", "run", str(photos), "--root", str(tmp_path / "audit"), *QUIET]
    hidden = ("XDG_", "ORT_DISABLE_TELEMETRY", "IMAGE_AUDIT_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    ended = subprocess.run(
        command, env=environment | {"HOME": str(home)}, capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert [*home.rglob("*")] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit", "home", "photos"]


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_python_takes_what_the_command_takes(tmp_path: Path) -> None:
    """Paths as text or Path, for every argument that names one."""
    photos = write_files(tmp_path / "photos", small_set(4))
    held_out = write_files(tmp_path / "held out", {"a.jpg": small_set(4)["test/a/copy.jpg"]})
    one = pipeline.run(photos, root=tmp_path / "a", test=held_out, where=LOCAL)
    other = pipeline.run(str(photos), root=str(tmp_path / "b"), test=str(held_out), where=LOCAL)

    assert one is not None
    assert other is not None
    assert_equal_tables(one, other)
    assert {row["split"] for row in rows(one, "images") if row["path"].startswith(str(held_out))} == {"test"}
