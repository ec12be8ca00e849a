"""What a Python caller sees and keeps: progress on stderr, the threads of its own libraries."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from audited import run, small_set, write_files
from s3_servers import moto_port, new_store, use_credentials

import pipeline
from pipeline.cli import main
from pipeline.errors import NotFound, UsageError
from pipeline.layout.root import Root, claim
from pipeline.storage import StorageConfig

CALL = """
import sys
import cv2, faiss, numpy, scipy.linalg
from threadpoolctl import threadpool_info
import pipeline
from pipeline.api import Where

def threads():
    pools = dict((pool["filepath"], pool["num_threads"]) for pool in threadpool_info())  # which come in any order
    return cv2.getNumThreads(), faiss.omp_get_max_threads(), pools

{before}
cv2.setNumThreads(3)
faiss.omp_set_num_threads(2)
was = threads()
pipeline.run(*sys.argv[2:], root=sys.argv[1], where=Where("local"), progress={progress})
assert threads() == was, (threads(), was)
"""


def call(*arguments: Path, progress: bool, before: str = "") -> subprocess.CompletedProcess[str]:
    script = CALL.format(progress=progress, before=before)
    found = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300
    )
    assert found.returncode == 0, found.stderr
    return found


def test_progress_of_a_python_run_is_on_stderr(tmp_path: Path) -> None:
    """The rule, the threshold and a line per stage, where nobody set up logging; in the log where somebody did; else
    nothing. The caller's threads are as they were.
    """
    photos = write_files(tmp_path / "photos", small_set(4))
    shown = call(tmp_path / "a", photos, progress=True).stderr.splitlines()
    logged = call(
        tmp_path / "b", photos, progress=True,
        before="import logging; logging.basicConfig(level=20, format='LOG %(message)s', stream=sys.stdout)",
    )  # fmt: skip

    for start in (f"rule for {photos}: splits and labels from folder names", "threshold: ", "extract: 7 of 7 in "):
        assert [line for line in shown if line.startswith(start)], start
        assert [line for line in logged.stdout.splitlines() if line.startswith(f"LOG {start}")], start
    assert logged.stderr == ""
    assert call(tmp_path / "c", photos, progress=False).stderr == ""


def test_status_before_any_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A root that was claimed by a run that came to nothing says so."""
    root = str(tmp_path / "audit")
    claim(Root(root, StorageConfig()))

    assert main(["status", "--root", root]) == 0
    assert capsys.readouterr().out == "no stage has run yet\n"
    assert main(["status", "--root", root, "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_named_server_holds_for_every_file_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--endpoint` says where `--config` is read from and `--output` goes to, not the sources alone."""
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "files")
    place = f"minio://lab/{store.uri.partition('://')[2].partition('/')[2]}"
    server = ["--endpoint", f"lab=http://127.0.0.1:{moto_port()}"]
    photos, root = write_files(tmp_path / "photos", small_set(4)), str(tmp_path / "audit")
    store.put("audit.toml", f'sources = ["{photos}"]\nroot = "{root}"\n'.encode())

    assert main(["run", "--config", f"{place}/audit.toml", "--runner", "local", "--quiet", *server]) == 0
    assert main(["show", "images", "--root", root, "--csv", "--output", f"{place}/images.csv", *server]) == 0
    assert store.read("images.csv").count(b"\n") == 1 + 7


def test_the_command_that_shows_reaches_the_same_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copied as it is printed, with the endpoint of the flag or of a file for `--config`."""
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "roots")
    root = f"minio://lab/{store.uri.partition('://')[2].partition('/')[2]}/audit"
    photos = write_files(tmp_path / "photos", small_set(4))
    (tmp_path / "c.toml").write_text(f'[storage]\nendpoints = {{lab = "http://127.0.0.1:{moto_port()}"}}\n')
    words = ["run", str(photos), "--root", root, "--config", str(tmp_path / "c.toml"), "--runner", "local", "--quiet"]
    assert main(words) == 0
    (printed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("show them")]

    assert main(shlex.split(printed)[3:]) == 0
    assert f"--endpoint lab=http://127.0.0.1:{moto_port()}" in printed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"filter": pc.field("nope") > 3}, r"nope.*Table outliers has: image_id, uri"),
        ({"filter": pc.field("score") == "high"}, "Table outliers has"),
        ({"filter": "score > 3"}, "want an expression such as"),
        ({"filter": [("score", ">", 3)]}, "want an expression such as"),
        ({"columns": "uri"}, r"want a list of names: columns=\['uri'\]"),
    ],
)
def test_what_cannot_be_asked_of_a_table(call: dict[str, Any], message: str, tmp_path: Path) -> None:
    """One error of ours, and at the call: the parts of a large table come later."""
    audit = run(write_files(tmp_path / "photos", small_set(4)), root=tmp_path / "audit")
    for ask in (audit.table, audit.batches):
        with pytest.raises(UsageError, match=message):
            ask("outliers", **call)
    with pytest.raises(UsageError, match="no table 'outlier'"):
        audit.batches("outlier")


def test_sources_are_given_one_by_one(tmp_path: Path) -> None:
    """Two lists, and a threshold that belongs elsewhere: what to write instead; a folder of a list must be there."""
    with pytest.raises(UsageError, match=r"source \['photos'\].*run\(\*sources, root=\.\.\.\)"):
        pipeline.run(["photos"], ["more"], root=tmp_path)
    with pytest.raises(NotFound, match="photos"):
        pipeline.run([tmp_path / "photos"], root=tmp_path / "root")
    assert not any(tmp_path.iterdir())
    with pytest.raises(UsageError, match=r"threshold is 0\.5, want a table of keys .*neighbours\.threshold"):
        pipeline.run("photos", root=tmp_path, threshold=0.5)
