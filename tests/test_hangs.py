"""Images that hang their decoder, in audits of their own processes (slow tier)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from audited import assert_equal_tables, run, small_set, write_files
from held import ended, environment

from pipeline.audit import Audit

pytestmark = pytest.mark.slow

HANGING = """
import os, time
import cv2

decode = cv2.imdecode

def imdecode(data, *more):
    if bytes(data) == open(os.environ["HANGS_ON"], "rb").read():
        time.sleep(10**6)
    return decode(data, *more)

cv2.imdecode = imdecode
"""
IMPATIENT = """
import sys
from pipeline import cli, runner
runner.IMAGE_SECONDS = runner.APART_SECONDS = 5.0
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(write_files(folder / "photos", small_set(16)), root=folder / "audit")


@pytest.mark.parametrize("stop", [None, signal.SIGINT, signal.SIGTERM], ids=["left alone", "Ctrl-C", "SIGTERM"])
def test_image_that_hangs_its_decoder_is_set_aside_by_the_run(
    undisturbed: Audit, tmp_path: Path, stop: signal.Signals | None
) -> None:
    """Of a run of this process, without anybody's doing; one that is stopped meanwhile ends at once, and the next one
    sets the image aside. The others are audited, and with another decoder it is as if nothing had been.
    """
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(HANGING)
    photos, root = write_files(tmp_path / "photos", small_set(16)), tmp_path / "audit"
    bad = sorted((photos / "train").rglob("*.jpg"))[2]
    words = ["run", str(photos), "--root", str(root), "--runner", "local", "--shard-size", "5"]
    variables = environment(HANGS_ON=str(bad))
    variables["PYTHONPATH"] = f"{tmp_path / 'site'}:{variables['PYTHONPATH']}"

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", IMPATIENT, *words], env=variables, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    if stop is not None:
        process = started()
        while not list(root.glob("status/extract.json")):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, stop)
        assert "stopped; finished parts are kept. Resume with: " in ended(process, 128 + stop)
    said = ended(started(), 4)
    again = ended(started(), 4)
    audit = run(photos, root=root, neighbours={"space": "new"})

    assert said.count("over 5 s at one image; going on in other processes") == 1
    for text in (said, again):
        assert f"1 of {len(small_set(16))} images could not be read (1 timeout)" in text
        assert f"{bad}: timeout (its process died or hung twice while it was decoded)" in text
    assert_equal_tables(audit, undisturbed)
