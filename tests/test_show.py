"""Tables as text: the worst first, what is left out said, as wide as the terminal; and an output that takes no more."""

from __future__ import annotations

import fcntl
import inspect
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from audited import SEED, Audited, planted_audit, projection_model, rows, run, small_set, write_files
from held import environment
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from pipeline import printing
from pipeline import show as shows
from pipeline.audit import FINDINGS, Audit, summary_lines, table_to_show
from pipeline.cli import main
from pipeline.errors import UsageError
from pipeline.models.prior import copy_prior
from pipeline.schemas import CHECKS, GROUPING_KINDS


@pytest.fixture(scope="module")
def planted() -> Audited:
    return planted_audit(SEED)


def text_of(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> list[str]:
    capfdbinary.readouterr()
    assert main(["show", *arguments]) == 0
    return capfdbinary.readouterr().out.decode().splitlines()


def in_terminal(width: int, *arguments: str) -> list[str]:
    """The lines that a command prints into a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    variables = {name: value for name, value in environment().items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen([sys.executable, "-m", "pipeline.cli", *arguments], stdout=theirs, env=variables)
    os.close(theirs)
    printed = b""
    try:
        while piece := os.read(ours, 65536):
            printed += piece
    except OSError:  # how a terminal says that its last writer is gone
        pass
    os.close(ours)
    assert process.wait() == 0
    return printed.decode().splitlines()


def test_quality_begins_with_the_worst(planted: Audited, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Flagged images by their worst score, then the others; few columns as text, the table's own in other formats."""
    root = ["--root", str(planted.root)]
    worst = {row["uri"]: max(row[f"{check}_score"] for check in CHECKS) for row in rows(planted.audit, "quality")}
    issues = {
        row["uri"]: ", ".join(check for check in CHECKS if row[f"is_{check}_issue"])
        for row in rows(planted.audit, "quality")
    }
    expected = sorted(worst, key=lambda uri: (not issues[uri], -worst[uri]))  # stable: ties keep the table's order
    found = shows._worst(planted.audit, "quality", 10_000)

    assert found.table["uri"].to_pylist() == expected
    assert found.table["issues"].to_pylist() == [issues[uri] for uri in expected]
    assert found.flagged == sum(bool(text) for text in issues.values()) > 3
    text = text_of(capfdbinary, "quality", *root, "--top", "3")
    assert text[0].split() == ["worst_score", "issues", "uri", "size", "split"]
    assert text[-1] == f"3 of {len(worst)} rows; {found.flagged} with an issue; --top N or --csv for all"
    listed = shows._worst(planted.audit, "quality", 3).table
    (part,) = [*shows._rows(planted.audit, shows.Request("quality", 3, None, "json", None), None)]
    assert part.column_names == planted.audit.quality(limit=0).column_names
    assert part["uri"].to_pylist() == listed["uri"].to_pylist()


def test_labels_begin_with_the_suspects(planted: Audited) -> None:
    flags = shows._worst(planted.audit, "labels", 10_000).table["is_label_issue"].to_pylist()
    assert flags == sorted(flags, reverse=True)
    assert sum(flags) == planted.audit.summary()["labels"]["issues"] > 0


def test_leaks_say_how_many_rows_are_leaks(planted: Audited, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The table lists look-alikes as well: the footer counts what the summary counts."""
    severities = [row["severity"] for row in rows(planted.audit, "leaks")]
    footer = text_of(capfdbinary, "leaks", "--root", str(planted.root), "--top", "2")[-1]

    assert footer == (
        f"2 of {len(severities)} rows; {sum(value >= 3 for value in severities)} at severity 3 or more, which are "
        "leaks; --top N or --csv for all"
    )


def test_made_columns_are_not_columns_of_the_table(planted: Audited, capsys: pytest.CaptureFixture[str]) -> None:
    for form in ([], ["--json", "--top", "1"], ["--csv"]):
        assert main(["show", "quality", "--root", str(planted.root), "--columns", "flag", *form]) == 2
        assert "has no column flag" in capsys.readouterr().err


@pytest.mark.parametrize(("width", "name"), [(60, "leaks"), (130, "leaks"), (70, "quality")])
def test_a_terminal_is_not_overrun(width: int, name: str, planted: Audited) -> None:
    """Every row is one line of it; what has no room is named; the end of each uri, which tells files apart, stays."""
    *lines, footer = in_terminal(width, "show", name, "--root", str(planted.root))
    shown = lines[0].split()
    missing = [column for column in shows.READABLE[name] if column not in shown]
    uris = shows._worst(planted.audit, name, 20).table["uri"].to_pylist()

    assert max(cell_len(line) for line in lines) <= width
    assert footer.endswith(f"no room for {', '.join(missing)}") if missing else "no room" not in footer
    assert bool(missing) == (width == 60)
    for uri, line in zip(uris, lines[2:], strict=True):
        assert printing._shown(uri)[-6:] in line


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=60), st.integers(3, 40))
def test_a_cut_text_keeps_both_ends_and_fits(text: str, width: int) -> None:
    shown = printing._shown(text)
    for column in ("uri", "message"):
        cut = printing._cut(shown, width, column)
        assert cell_len(cut) <= width
        if cut != shown and "…" not in shown:
            head, _, tail = cut.partition("…")
            assert shown.startswith(head)
            assert shown.endswith(tail)
        assert (cut == shown) == (cell_len(shown) <= width)


def test_a_message_has_the_room() -> None:
    """The other columns give first; then it loses its end."""
    row = {"status": "denied", "uri": "a" * 40, "message": "b" * 40 + "c" * 40}
    lines, _ = printing.aligned([row], 110)
    assert "b" * 40 + "c" * 40 in lines[2]
    lines, _ = printing.aligned([row], 80)
    assert lines[2].endswith("b" * 40 + "c" * 13 + "…")


def test_why_images_are_invalid(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """By status in the summary; the message has its whole text and not the name that stands beside it."""
    photos = write_files(tmp_path / "photos", {**small_set(4), "train/a/none.jpg": b"", "train/a/page.jpg": b"<html>"})
    audit = run(photos, root=tmp_path / "audit")
    text = text_of(capfdbinary, "invalid", "--root", str(tmp_path / "audit"))

    assert summary_lines(audit.summary())[0].endswith("(6 ok, 3 invalid: empty 1, truncated 1, unsupported 1)")
    assert text[0].split() == ["status", "uri", "message"]
    for row in rows(audit, "invalid"):
        assert any(line.rstrip().endswith(row["message"]) for line in text)
    twice = {"uri": "a/b.jpg", "message": "read /photos/a/b.jpg: Permission denied"}
    assert shows._said_once(twice)["message"] == "Permission denied"


@pytest.mark.parametrize("name", ["corrupt", "flat", "split"])
def test_the_hint_leads_to_rows(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Leaks where images leak, else a table that has rows."""
    small = small_set(4)
    photos = {
        "corrupt": {"a.jpg": b"x", "b.jpg": b"y"},
        "flat": {"a.jpg": small["train/a/a00.jpg"], "b.jpg": small["test/a/copy.jpg"]},
        "split": small,
    }[name]
    write_files(tmp_path / "photos", photos)
    assert main(["run", str(tmp_path / "photos"), "--root", str(tmp_path / "audit"), "-q", "--runner", "local"]) == 0
    found = re.search(r"show them   image-audit show (\w+) ", capsys.readouterr().out)

    assert found
    assert found[1] == {"corrupt": "invalid", "flat": "duplicates", "split": "leaks"}[name]
    assert main(["show", found[1], "--root", str(tmp_path / "audit")]) == 0
    assert "no rows" not in capsys.readouterr().out
    assert main(["show", "leaks", "--root", str(tmp_path / "audit")]) == 0
    assert ("no splits are known" in capsys.readouterr().out) == (name != "split")


def test_copies_stand_before_pictures_that_only_look_alike(
    planted: Audited, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Whatever their similarity; the footer counts them."""
    copies = {kind.value for kind in GROUPING_KINDS}
    kinds = [row["kind"] in copies for row in rows(planted.audit, "duplicates")]
    found = shows._worst(planted.audit, "duplicates", 10_000).table

    assert [kind in copies for kind in found["kind"].to_pylist()] == sorted(kinds, reverse=True)
    assert 0 < sum(kinds) < len(kinds)
    footer = text_of(capfdbinary, "duplicates", "--root", str(planted.root))[-1]
    assert f"; {sum(kinds)} duplicates and near-duplicates" in footer


def test_without_labels_there_are_no_suspects(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The reason, and how to give some."""
    photos = write_files(tmp_path / "photos", {name.rpartition("/")[2]: data for name, data in small_set(4).items()})
    run(photos, root=tmp_path / "audit")
    (line,) = text_of(capfdbinary, "labels", "--root", str(tmp_path / "audit"))
    assert line.startswith("no rows in labels: no labels are known. Name them by folders such as cat/ and dog/")


def test_nothing_found_leads_to_the_images(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    assert table_to_show(run(tmp_path / "photos", root=tmp_path / "audit").summary()) == "images"


def test_too_few_images_for_an_own_model_are_said(tmp_path: Path) -> None:
    """Nothing is known of its similarities: the summary says so and shows no number that is none."""
    (tmp_path / "own.onnx").write_bytes(projection_model())
    described = {"layout": "NCHW", "dtype": "float32", "channel_order": "RGB", "scale": 1 / 255}
    model = {"path": str(tmp_path / "own.onnx"), "input": {**described, "mean": [0.5] * 3, "std": [0.25] * 3}}
    photos = write_files(tmp_path / "photos", small_set(4))
    (line,) = [
        line
        for line in summary_lines(run(photos, root=tmp_path / "audit", model=model).summary())
        if line.startswith("threshold")
    ]
    assert line.endswith("unknown (too few images)")
    assert "nan" not in line
    assert line.count("0.350") == 1


def test_misses_are_those_of_the_threshold_in_use(tmp_path: Path) -> None:
    """A fixed threshold misses what lies below it, not what the rule would have missed."""
    photos = write_files(tmp_path / "photos", small_set(4))
    by_rule, fixed = (
        run(photos, root=tmp_path / "audit", neighbours=given).summary()["threshold"]
        for given in ({}, {"threshold": 0.9})
    )
    assert fixed["value"] == 0.9
    assert fixed["misses"] == copy_prior().curve.misses_at(0.9)
    assert fixed["misses"]["all"] > 0.1 > by_rule["misses"]["all"]


def test_an_audit_of_another_format_is_named(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Such as that of an earlier version: 3, with what to do."""
    photos = write_files(tmp_path / "photos", small_set(4))
    root = tmp_path / "audit"
    first = run(photos, root=root)
    document = root / "audits" / first.audit_id / "run.json"
    old = json.loads(document.read_text())
    document.write_text(json.dumps({name: value for name, value in old.items() if name != "format"}))

    assert main(["show", "leaks", "--root", str(root)]) == 3
    assert b"format None, wanted 3: another version of image-audit made it." in capfdbinary.readouterr().err


def piped(command: str, root: Path, *, into: str = "") -> tuple[int, str]:
    """Exit code and standard error of `image-audit command` whose output goes into a full device or a closed pipe."""
    words = [sys.executable, "-m", "pipeline.cli", *command.split(), "--root", str(root)]
    if into:
        with Path(into).open("wb") as output:
            process = subprocess.Popen(words, stdout=output, stderr=subprocess.PIPE, text=True, env=environment())
    else:
        read, write = os.pipe()
        os.close(read)  # before it starts, so that its first byte finds nobody
        process = subprocess.Popen(words, stdout=write, stderr=subprocess.PIPE, text=True, env=environment())
        os.close(write)
    said = process.communicate()[1]
    return process.returncode, said


@pytest.mark.parametrize("command", ["show leaks", "show images --csv", "status", "run"])
def test_an_output_that_takes_no_more(command: str, tmp_path: Path, planted: Audited) -> None:
    """A full disk is 3 with one line; a pipe that nobody reads any more is no error, as with `| head`."""
    root = planted.root
    if command == "run":
        photos, root = write_files(tmp_path / "photos", small_set(4)), tmp_path / "audit"
        command = f"run {photos} -q --runner local"
    code, said = piped(command, root, into="/dev/full")

    assert (code, said.count("\n")) == (3, 1), said
    assert said.startswith("image-audit: write to standard output: No space left on device")
    assert piped(command, root) == (0, "")


def test_python_refuses_what_the_command_refuses(planted: Audited) -> None:
    """A limit under 0 was an empty table."""
    assert planted.audit.images(limit=0).num_rows == 0
    assert planted.audit.images(["uri"], limit=2).num_rows == 2
    for name in FINDINGS:
        with pytest.raises(UsageError, match="limit -1, want at least 0"):
            getattr(planted.audit, name)(limit=-1)


def test_python_says_its_arguments() -> None:
    """`help` shows the options of each table, and of `run` every key of the configuration."""
    import pipeline
    from pipeline.config import AuditConfig

    for name in FINDINGS:
        assert [*inspect.signature(getattr(Audit, name)).parameters] == ["self", "columns", "filter", "limit"]
    described = inspect.getdoc(pipeline.run) or ""
    for key in set(AuditConfig.__dataclass_fields__) - {"sources", "root"}:
        assert f"`{key}`" in described, key


def test_wide_characters_stay_in_line() -> None:
    """Chinese takes two places a character: the columns behind it begin below one another."""
    lines, _ = printing.aligned([{"uri": "写真.jpg", "b": "x"}, {"uri": "photo.jpg", "b": "y"}], None)
    assert {cell_len(line) for line in lines[2:]} == {cell_len(lines[1])}
