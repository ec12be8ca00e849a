"""Images that hang their decoder or a detector: found, and set aside; the others are audited."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from audited import assert_equal_tables, rows, run, small_set, write_files
from held import ended, environment
from test_box_audits import FOUND, OBJECTS, squares
from test_detect_object import model

from pipeline import pulse, runner
from pipeline.audit import Audit
from pipeline.runner import execute
from pipeline.stages import detect

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


@pytest.mark.slow
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


class Hanging:
    """What is called where an image hangs; whoever watches looks once it hangs, and never before."""

    def __init__(self) -> None:
        self.hangs, self.ends, self.looks = threading.Event(), threading.Event(), 0
        self.threads: list[threading.Thread] = []

    def __call__(self) -> None:
        self.hangs.set()
        self.ends.wait()

    def threading(self) -> Any:
        """A `threading` whose events are waited for as said."""
        hanging = self

        class Ended(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                while not (self.is_set() or hanging.hangs.is_set()):
                    super().wait(0.01)
                hanging.looks += 1
                assert hanging.looks < 100, "what hangs is not found"
                return self.is_set()

        def thread(**given: Any) -> threading.Thread:
            self.threads.append(threading.Thread(**given))
            return self.threads[-1]

        return SimpleNamespace(Event=Ended, Thread=thread)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    """A run of this process that has no patience with an image, nor where it goes on: in another thread of it."""
    hanging = Hanging()

    def apart(function: Any, spec: Any, seconds: float) -> Any:
        hanging.hangs.clear()
        done = pulse.watched(partial(execute, function, spec), 0.0, lambda: None)
        return "timeout" if done is None else done

    monkeypatch.setattr(pulse, "threading", hanging.threading())
    monkeypatch.setattr(runner, "IMAGE_SECONDS", 0.0)
    monkeypatch.setattr(runner, "execute_apart", apart)
    yield hanging
    hanging.ends.set()
    for thread in hanging.threads:
        thread.join()


@pytest.mark.parametrize("place", ["decoded", "detect_in"])
def test_image_that_hangs_a_detector_is_audited_whole(
    place: str, hanging: Hanging, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its decoder or in the model: the others have their boxes."""
    folder = write_files(tmp_path / "photos", {f"{at}.jpg": squares(at) for at in range(3)})
    finder = tmp_path / "finder.onnx"
    finder.write_bytes(model(np.array([OBJECTS], np.float32), names={0: "cat", 1: "dog"}))
    bad, real = squares(1), getattr(detect, place)
    bad_pixels = detect.decoded(bad, detect.Cutting(detect.MeasureParams(), detect.BoxParams())).native

    def look(what: Any, more: Any) -> Any:
        if what == bad if isinstance(what, bytes) else (what.native == bad_pixels).all():
            hanging()
        return real(what, more)

    monkeypatch.setattr(detect, place, look)
    audit = run(folder, root=tmp_path / "audit", bounding_box="object", box_model=str(finder))

    whole = {row["uri"]: row["status"] for row in rows(audit, "images")}
    assert whole == {"1.jpg": "ok"} | {f"{at}.jpg#{box}": "ok" for at in (0, 2) for box in FOUND}
