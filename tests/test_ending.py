"""Scripts in whose process a thread was left inside native code: they end as if there were none."""

from __future__ import annotations

import subprocess
import sys

import pytest
from held import environment

SCRIPT = """
import atexit, sys, threading
import cv2
import numpy as np
from pipeline import pulse

pulse.LOOK_SECONDS = 0.01
goes_on, ended = threading.Event(), threading.Event()

def hang():
    pixels = np.zeros((1000, 1000), np.uint8)
    try:
        with pulse.at_image():
            while not goes_on.is_set():
                cv2.GaussianBlur(pixels, (0, 0), 15)
    finally:
        ended.set()

def main(code=0):
    assert pulse.watched(hang, 0.0, lambda thread: None) is None
    atexit.register(sys.stdout.write, "closed")
    sys.stdout.write("done, ")
    return code

"""
CAUGHT = "main()\ntry: sys.exit(5)\nexcept SystemExit: pass\n"
LATE = "main(); goes_on.set(); ended.wait(); [thread.join() for thread in threading.enumerate() if thread.daemon]\n"


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ("main()", 0),
        ("sys.exit(main())", 0),
        ("sys.exit(main(4))", 4),
        ("sys.exit(main(None))", 0),
        ("sys.exit(main('no more'))", 1),
        ("raise SystemExit(main(3))", 1),
        ("main(); sys.exit(0)", 0),
        ("main(); sys.exit(3)", 3),
        ("main(); raise ValueError('wrong')", 1),
        ("main(); raise KeyboardInterrupt", 130),
        (CAUGHT, 0),
        (f"{CAUGHT}raise ValueError('wrong')", 1),
        ("main(); threading.Thread(target=sys.exit, args=[7]).start()", 0),
        (f"{LATE}raise SystemExit(3)", 3),
    ],
)
def test_a_script_ends_with_its_own_code(last: str, code: int) -> None:
    """Under a thread that decodes still, after what it registered was called; nothing aborts it."""
    command = [sys.executable, "-c", SCRIPT + last]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (code, "done, closed"), ended.stderr
    assert ("wrong" in ended.stderr, "no more" in ended.stderr) == ("wrong" in last, "no more" in last)
    assert "terminate" not in ended.stderr
