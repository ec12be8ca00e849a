"""How a process ends in which a thread was left inside native code: at once, with the code of its script.

One that ends in order is aborted by the libraries that the thread is at work in, or by what ends the thread itself.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

RETURNS = ("RETURN_VALUE", "RETURN_CONST")


@dataclass
class _Script:
    """What tells how the main thread ends: its outermost frame (None before a thread was left); of the latest
    `sys.exit` in it the code, and the exception that had been shown last by then.
    """

    frame: FrameType | None = None
    code: int = 1
    shown: object = None


_SCRIPT = _Script()
_LEFT: list[threading.Event] = []
"""Of each thread that was left: set when it ended after all."""


def leave_thread(ended: threading.Event) -> None:
    """Lets this process end without a thread that is at work until `ended`."""
    _SCRIPT.frame, _SCRIPT.shown = _outermost_frame(), _shown()
    _LEFT.append(ended)


def _noted(status: Any = None, /) -> NoReturn:
    """`sys.exit`, which tells its code to nobody."""
    if threading.current_thread() is threading.main_thread():
        _SCRIPT.code, _SCRIPT.shown = _code_of(status), _shown()
    _EXIT(status)


_EXIT = sys.exit
sys.exit = _noted  # when this is imported: `sys.exit(main())` looks it up before it calls main


def _code_of(status: Any) -> int:
    """The code of a process that ends by `sys.exit(status)`."""
    if status is None:
        return 0
    return status & 255 if isinstance(status, int) else 1


def _outermost_frame() -> FrameType | None:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _shown() -> object:
    """The latest exception that nobody caught."""
    return getattr(sys, "last_value", None)


def _script_code() -> int:
    """0 where the script came to its end, 130 after Ctrl-C and 1 after another error; the code of its `sys.exit`, and 1
    where it raised SystemExit without that.
    """
    import dis

    frame, shown = _SCRIPT.frame, _shown()
    if frame is not None and dis.opname[frame.f_code.co_code[frame.f_lasti]] in RETURNS:
        return 0
    if shown is not _SCRIPT.shown:
        return 128 + signal.SIGINT if isinstance(shown, KeyboardInterrupt) else 1
    return _SCRIPT.code


@atexit.register  # likewise: what is registered later is done before
def _end() -> None:
    if all(ended.is_set() for ended in _LEFT):
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # there may be none, or nobody who reads it
            stream.flush()
    os._exit(_script_code())
