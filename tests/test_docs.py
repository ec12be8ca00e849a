"""The pages for users are in step with the project: links, commands, lists, and what CI runs."""

from __future__ import annotations

import re
import shlex
from html import unescape
from pathlib import Path

import pytest

from pipeline.cli import build_parser
from pipeline.config import config_from
from pipeline.errors import UsageError
from pipeline.renamed import RENAMED
from pipeline.schemas import TABLES
from pipeline.sources.folder import IMAGE_SUFFIXES
from pipeline.sources.splits import SPLIT_NAMES

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "infra/README.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))),
]  # fmt: skip


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    """The contents of the fenced blocks of a page."""
    return re.findall(r"^```\w*\n(.*?)^```", text(page), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The two commands at the top of the README: the first blocks that make an environment."""
    return [block for block in blocks("README.md") if block.startswith("python -m venv")][:2]


def calls() -> list[str]:
    """Every image-audit command line of the pages, without its comment."""
    lines = [line for page in PAGES for block in blocks(page) for line in block.splitlines()]
    return [line for line in lines if line.startswith("image-audit ")]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Each relative link names a file of the project."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", text(page))
    local = [target for target in targets if "://" not in target]

    assert [target for target in local if not ((ROOT / page).parent / target).exists()] == []


@pytest.mark.parametrize("call", calls())
def test_commands_parse(call: str) -> None:
    """Each command of the pages is one that the command line takes."""
    words = shlex.split(call, comments=True)

    assert callable(build_parser().parse_args(words[1:]).command)


def test_readme_is_short_and_begins_with_two_commands() -> None:
    """At most 150 lines; the first blocks install and run the demo, and install and pass the tests."""
    demo, tests = commands()

    assert len(text("README.md").splitlines()) <= 150
    assert len(demo.splitlines()) == len(tests.splitlines()) == 1
    assert demo.rstrip().endswith("image-audit demo")
    assert tests.rstrip().endswith("-m pytest -n 2 --dist loadfile")


def test_ci_runs_what_the_readme_says() -> None:
    """The README's test command, and the extra that it installs, are those of .ci/run, which the workflow calls."""
    command = commands()[1]
    extra, run = re.findall(r"pip install -e (\S+) && \.venv/bin/python (-m pytest .*)", command)[0]

    assert f"pip install --quiet --editable {extra}" in text(".ci/run")
    assert f'/bin/python" {run}' in text(".ci/run")
    assert "run: bash .ci/run" in text(".github/workflows/test.yml")


def test_workflow_covers_every_supported_python() -> None:
    """The matrix has the minor versions of the classifiers."""
    classified = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text("pyproject.toml"))
    matrix = re.search(r"python: \[(.*)\]", text(".github/workflows/test.yml"))

    assert matrix is not None
    assert re.findall(r'"(3\.\d+)"', matrix[1]) == classified


def test_readme_names_every_finding_split_and_suffix() -> None:
    """The lists of the README are those of the code."""
    readme = text("README.md")
    findings = re.findall(r"^\| ([a-z_]+) \| (?!meaning|what)", readme, flags=re.MULTILINE)

    assert set(findings) <= set(TABLES)
    assert {"duplicates", "groups", "leaks", "outliers", "labels", "quality", "invalid"} <= set(findings)
    assert [name for name in SPLIT_NAMES if f"`{name}`" not in readme] == []
    suffixes = re.search(r"by their suffix \(([^)]*)\)", readme)
    assert suffixes is not None
    assert set(re.split(r",\s+", suffixes[1])) == IMAGE_SUFFIXES


def test_every_word_of_fastdup_is_explained_as_the_refusal_does() -> None:
    """Each row of the page is what a call with that word is told."""
    page = re.findall(
        r"^\| `([^`]+)` \| (.+) \|$", text("docs/fastdup.md").partition("\n| fastdup's file")[0], re.MULTILINE
    )
    assert {word: unescape(said) for word, said in page} == RENAMED
    with pytest.raises(UsageError, match=re.escape(RENAMED["run_cc"])):
        config_from({"sources": ("a",), "root": "b", "run_cc": False})


def test_changelog_keeps_its_form() -> None:
    """Versions newest first, each with known kinds of change."""
    changelog = text("CHANGELOG.md")
    kinds = re.findall(r"^### (.*)$", changelog, flags=re.MULTILINE)

    assert re.findall(r"^## (.*)$", changelog, flags=re.MULTILINE)[0].startswith("[")
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
