"""How a run may end: refused with one message and a code, or with tables that agree with each other."""

from __future__ import annotations

import pytest

from pipeline.audit import FINDINGS, Audit
from pipeline.cli import main

QUIET = ["--runner", "local", "--quiet"]


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The one message of a run that ends with `code`."""
    capsys.readouterr()
    assert main(["run", *arguments, *QUIET]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("image-audit: ")
    assert "Traceback" not in printed.err
    return printed.err


def shown(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> bytes:
    """What a command that succeeds prints."""
    capfdbinary.readouterr()
    assert main(arguments) == 0
    output: bytes = capfdbinary.readouterr().out
    return output


def assert_consistent(audit: Audit, live: int, ok: int) -> None:
    """Counts that hold for any set; every table can be read and shown."""
    facts = audit.summary()
    assert (facts["images"]["live"], facts["images"]["ok"]) == (live, ok)
    sizes = {name: audit.table(name).num_rows for name in FINDINGS}
    assert sizes["images"] == live
    assert sizes["outliers"] == sizes["quality"] == ok
    assert sizes["invalid"] == live - ok
    assert "images  " in repr(audit)
    for name in FINDINGS:
        assert main(["show", name, "--root", audit.root.uri]) == 0
