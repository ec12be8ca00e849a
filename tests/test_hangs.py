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
from s3_servers import moto_port, new_store, use_credentials
from test_box_audits import FOUND, OBJECTS, squares
from test_detect_object import model
from videos_made import KINDS, counting

from pipeline import pulse, runner
from pipeline.audit import Audit
from pipeline.kernels import native_decode
from pipeline.kernels.native_decode import leave_hung, overheard
from pipeline.plan import searching
from pipeline.runner import execute
from pipeline.stages import detect, prepared
from pipeline.storage.s3 import S3Store

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
import signal
import sys
from pipeline import cli, runner
signal.signal(signal.SIGINT, signal.default_int_handler)  # the background jobs of a script inherit that it is ignored
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


class Watcher:
    """Stands in for the clock: whoever waits for a task looks when the thread of that task says so, and never else."""

    def __init__(self) -> None:
        self.wanted, self.judged, self.ends = threading.Semaphore(0), threading.Semaphore(0), threading.Event()
        self.threads: list[threading.Thread] = []

    def look(self) -> bool:
        """Of the thread of a task: whether it is given up by who looks at it now."""
        own = pulse._OWN.pulse
        assert own is not None
        self.wanted.release()
        self.judged.acquire()
        if own.is_given_up:
            self.wanted.release()  # for the last look of who leaves
        return own.is_given_up

    def hang(self) -> None:
        """Hangs in the thread of a task; an error where that is not found."""
        assert self.look(), "what hangs is not found"
        self.ends.wait()

    def threading(self) -> Any:
        """What `pulse` takes from the module of that name."""
        watcher = self

        class Ended(threading.Event):
            has_looked = False

            def wait(self, timeout: float | None = None) -> bool:
                if self.has_looked:
                    watcher.judged.release()
                self.has_looked = False
                while not (self.is_set() or self.has_looked):
                    self.has_looked = watcher.wanted.acquire(timeout=0.01)
                return self.is_set()

        def thread(**given: Any) -> threading.Thread:
            self.threads.append(threading.Thread(**given))
            return self.threads[-1]

        return SimpleNamespace(Event=Ended, Thread=thread)


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    """Runs of this process have no patience with an image, nor where they go on: in another thread."""
    watcher = Watcher()

    def apart(function: Any, spec: Any, seconds: float) -> Any:
        done = pulse.watched(partial(execute, function, spec), 0.0, lambda thread: None)
        return "timeout" if done is None else done

    monkeypatch.setattr(pulse, "threading", watcher.threading())
    monkeypatch.setattr(runner, "IMAGE_SECONDS", 0.0)
    monkeypatch.setattr(runner, "execute_apart", apart)
    yield watcher
    watcher.ends.set()
    for thread in watcher.threads:
        thread.join()


@pytest.mark.parametrize("place", ["decoded", "detect_in"])
def test_image_that_hangs_a_detector_is_audited_whole(
    place: str, watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its decoder or in the model: the others have their boxes."""
    folder = write_files(tmp_path / "photos", {f"{at}.jpg": squares(at) for at in range(3)})
    finder = tmp_path / "finder.onnx"
    finder.write_bytes(model(np.array([OBJECTS], np.float32), names={0: "cat", 1: "dog"}))
    bad, real = squares(1), getattr(detect, place)
    bad_pixels = detect.decoded(bad, detect.Cutting(detect.MeasureParams(), detect.BoxParams())).native

    def look(what: Any, more: Any) -> Any:
        if what == bad if isinstance(what, bytes) else (what.native == bad_pixels).all():
            watcher.hang()
        return real(what, more)

    monkeypatch.setattr(detect, place, look)
    audit = run(folder, root=tmp_path / "audit", bounding_box="object", box_model=str(finder))

    whole = {row["uri"]: row["status"] for row in rows(audit, "images")}
    assert whole == {"1.jpg": "ok"} | {f"{at}.jpg#{box}": "ok" for at in (0, 2) for box in FOUND}


@pytest.mark.parametrize("place", ["in a bucket", "touched"])
def test_reads_of_a_video_are_no_hang(
    place: str, watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a store takes for blocks of a video, or for what was extracted of it: it has its own timeouts."""
    reads: list[bool] = []
    files = {"a.avi": counting(KINDS["avi mjpeg"], 4), "b.avi": counting(KINDS["avi mpeg4"], 4)}
    source = str(write_files(tmp_path / "videos", files))
    if place == "in a bucket":
        use_credentials(monkeypatch)
        store = new_store(moto_port(), "slow-videos")
        for name, data in files.items():
            store.put(name, data)
        source = store.uri

    def watched(read: Any) -> Any:
        def looked_at(*given: Any, **more: Any) -> Any:
            if pulse._OWN.pulse is not None:
                reads.append(watcher.look())
            return read(*given, **more)

        return looked_at

    def touched(*given: Any) -> Any:
        for name in files:
            os.utime(tmp_path / "videos" / name, ns=(1, 1))
        return verify_pairs(*given)

    verify_pairs = searching.verify_pairs
    monkeypatch.setattr(searching, "verify_pairs", touched)
    monkeypatch.setattr(S3Store, "read_range", watched(S3Store.read_range))
    monkeypatch.setattr(prepared, "extracted_hashes", watched(prepared.extracted_hashes))
    storage = {"region": "us-east-1"}
    audit = run(source, root=tmp_path / "audit", video={"fps": 10}, verify={"skip_similarity": 1.0}, storage=storage)

    assert reads
    assert {row["uri"]: row["status"] for row in rows(audit, "images")} == {
        f"{name}#t=0.{at}00": "ok" for name in files for at in range(4)
    }
    pairs = {(row["uri"], row["match_uri"]): row["is_verified"] for row in rows(audit, "duplicates")}
    assert {(f"a.avi#t=0.{at}00", f"b.avi#t=0.{at}00") for at in range(4)} <= {*pairs}
    assert not any(reads)
    assert all(pairs.values())


@pytest.mark.parametrize("is_decoder", [False, True], ids=["elsewhere", "in a decoder"])
def test_who_hangs_is_who_loses_standard_error(is_decoder: bool, watcher: Watcher) -> None:
    """A decoder of another run in this process is heard to its end; it is heard as well once another one hangs."""
    words, begun, goes_on = b"Premature end of JPEG file", threading.Event(), threading.Event()
    heard: list[str] = []

    def hangs() -> None:
        with pulse.at_image():
            overheard(watcher.hang) if is_decoder else watcher.hang()

    def speaks() -> None:
        begun.set()
        goes_on.wait()
        os.write(2, words)

    other = threading.Thread(target=lambda: heard.append(overheard(speaks)[1]))
    if not is_decoder:
        other.start()
        begun.wait()
    assert pulse.watched(hangs, 0.0, leave_hung) is None
    goes_on.set()
    if is_decoder:
        other.start()
    other.join()

    assert heard == [words.decode()]


def test_a_decoder_that_reads_all_the_time_hangs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that goes round in a file: reads between its steps are not counted, and do not begin the count anew."""
    monkeypatch.setattr(pulse, "LOOK_SECONDS", 0.01)
    deadline = time.monotonic() + 60

    def goes_round() -> str:
        with pulse.at_image():
            while time.monotonic() < deadline and not pulse._OWN.pulse.is_given_up:
                with pulse.reading():
                    pass
                time.sleep(0.005)  # its work
        return "ended by itself"

    assert pulse.watched(goes_round, 0.1, lambda thread: None) is None


def test_who_waits_for_a_decoder_that_is_left_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run's decode that came in between waits for the lock of the one that hangs: it has the next one."""
    for module in (pulse, native_decode):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    begun, goes_on, heard = threading.Event(), threading.Event(), list[str]()
    other = threading.Thread(target=lambda: heard.append(overheard(lambda: "decoded")[0]))

    def hangs() -> str:
        with pulse.at_image():
            return overheard(lambda: begun.set() or other.start() or (goes_on.wait() and ""))[0]

    assert pulse.watched(hangs, 0.0, leave_hung) is None
    other.join(60)
    assert heard == ["decoded"]
    goes_on.set()
