"""Who may import whom, who may import Ray, and who may touch bytes at rest: read from the source, so lazy ones too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS: tuple[tuple[str, ...], ...] = (
    ("jobs",),
    ("pipeline.cli",),
    ("pipeline.search_commands", "pipeline.run_flags"),
    ("pipeline.flags",),
    ("pipeline",),  # what `import pipeline` offers
    ("pipeline.api", "pipeline.show"),
    ("pipeline.given",),
    ("pipeline.audit", "pipeline.demo", "pipeline.table_page", "pipeline.printing"),
    ("pipeline.plan", "pipeline.cluster"),
    ("pipeline.stages", "pipeline.report"),
    ("pipeline.attempts",),
    ("pipeline.runner", "pipeline.progress"),
    ("pipeline.layout",),
    ("pipeline.config",),
    ("pipeline.renamed",),
    ("pipeline.sources",),
    ("pipeline.models",),
    ("pipeline.storage",),
    ("pipeline.kernels",),
    ("pipeline.schemas",),
    ("pipeline.columns",),
    ("pipeline.errors",),
    ("pipeline.blas", "pipeline.pulse", "pipeline.threads"),
)
"""Top to bottom: a module imports from its own place and from lines below it, never from beside or above."""

RAY_ONLY_IN = "pipeline.cluster"
STORAGE = "pipeline.storage"
KERNELS = "pipeline.kernels"
NOT_IN_KERNELS = frozenset(
    {"boto3", "botocore", "pathlib", "ray", "shutil", "smart_open", "socket", "tempfile", "urllib"}
)

FILE_CALLS = frozenset(
    {
        "hardlink_to", "makedirs", "mkdir", "mkdtemp", "mkstemp", "read_bytes", "read_text", "removedirs", "rmdir",
        "rmtree", "symlink_to", "touch", "truncate", "unlink", "write_bytes", "write_text", "NamedTemporaryFile",
        "TemporaryDirectory", "TemporaryFile", "memmap",
    }
)  # fmt: skip
"""Methods and functions of any object that touch a file. `open`, `rename` and `replace` mean too many other things to
be told by name: they count as the bare `open(...)` and as functions of `os`, `io`, `shutil` and `Path(...)`."""
MODULE_CALLS = frozenset(
    {"open", "remove", "rename", "renames", "replace", "link", "symlink", "copy", "copyfile", "move"}
)
FILE_MODULES = frozenset({"os", "io", "shutil", "Path", "pathlib", "codecs", "gzip"})
MAY_TOUCH_BYTES = {
    (
        "pipeline.api",
        "mkdtemp",
    ): "the demo's own folder where none is named: always a new one",
    ("pipeline.demo", "read_bytes"): "the photographs inside the package, through importlib.resources",
    ("pipeline.runner", "write_bytes"): "asks the kernel to count the peak of memory anew",
    ("pipeline.runner", "read_bytes"): "and for that peak",
    ("pipeline.models", "read_bytes"): "the default model and its moments inside the package, likewise",
}
"""(place, call) that may stand outside storage, and why."""


def modules() -> dict[str, ast.Module]:
    """Every module of the package and of jobs: dotted name -> parsed source."""
    parsed = {}
    for path in sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        parsed[name] = ast.parse(path.read_text(encoding="utf-8"))
    return parsed


def imported(tree: ast.Module, known: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import; `from pipeline import x` is `pipeline.x` where that is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write the whole name"
            for alias in node.names:
                if (node.module, alias.name) == ("pipeline", "__version__"):
                    continue  # a constant of the package's own file, which every import of a module has run already
                whole = f"{node.module}.{alias.name}"
                yield node.lineno, whole if whole in known else str(node.module)


def place(name: str) -> str:
    """The entry of LAYERS that a module belongs to."""
    parts = name.split(".")
    return parts[0] if parts[0] == "jobs" or len(parts) == 1 else ".".join(parts[:2])


def layer_of(name: str) -> int:
    """The line of LAYERS of a module."""
    lines = [number for number, line in enumerate(LAYERS) if place(name) in line]
    assert lines, f"{name} has no place in LAYERS: decide who may import it and add it there"
    return lines[0]


def wrong_imports(name: str, tree: ast.Module, known: frozenset[str]) -> list[str]:
    """Imports of one module that go up, sideways, to Ray, or out of a kernel."""
    wrong = []
    for line, target in imported(tree, known):
        top = target.partition(".")[0]
        if top == "ray" and name != RAY_ONLY_IN:
            wrong.append(f"{name}:{line} imports ray, which only {RAY_ONLY_IN} may")
        if place(name) == KERNELS and top in NOT_IN_KERNELS:
            wrong.append(f"{name}:{line} imports {target}: a kernel knows bytes and arrays, no path and no network")
        if top in ("pipeline", "jobs") and place(target) != place(name) and layer_of(target) <= layer_of(name):
            wrong.append(f"{name}:{line} imports {target}, which is not below it")
    return wrong


def byte_calls(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every call that touches bytes at rest."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "open":
            yield node.lineno, "open"
        elif isinstance(node.func, ast.Attribute):
            call, owner = node.func.attr, node.func.value
            owner = owner.func if isinstance(owner, ast.Call) else owner
            from_module = isinstance(owner, ast.Name) and owner.id in FILE_MODULES and call in MODULE_CALLS
            if call in FILE_CALLS or from_module:
                yield node.lineno, call


def test_imports_go_one_way() -> None:
    """jobs, cli -> plan | cluster -> stages | report -> runner -> layout -> config -> ... -> errors."""
    parsed = modules()
    known = frozenset(parsed)

    assert [line for name, tree in parsed.items() for line in wrong_imports(name, tree, known)] == []
    assert {"pipeline.errors", "pipeline.storage.interface", "pipeline.kernels.space"} <= known


def test_only_storage_touches_bytes() -> None:
    """Reading and writing go through pipeline.storage, which knows every store; each exception is still needed."""
    used = set()
    wrong = []
    for name, tree in modules().items():
        if place(name) in (STORAGE, "jobs"):
            continue
        for line, call in byte_calls(tree):
            if (place(name), call) in MAY_TOUCH_BYTES:
                used.add((place(name), call))
            else:
                wrong.append(f"{name}:{line} calls {call}; only {STORAGE} touches bytes at rest")

    assert wrong == []
    assert used == set(MAY_TOUCH_BYTES)


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("pipeline.kernels.x", "from pipeline.storage import open_store", "not below it"),
        ("pipeline.storage.x", "def f():\n    from pipeline.config import AuditConfig", "x:2 imports pipeline.config"),
        ("pipeline.stages.x", "import pipeline.plan.session", "not below it"),
        ("pipeline.stages.x", "from pipeline import report", "not below it"),
        ("pipeline.plan.x", "from pipeline.cluster import start_ray", "not below it"),
        ("pipeline.layout.x", "from pipeline import run", "imports pipeline, which is not below it"),
        ("pipeline.stages.x", "if True:\n    import ray.util", "imports ray"),
        ("jobs.x", "from ray import remote", "imports ray"),
        ("pipeline.kernels.x", "from pathlib import Path", "no path"),
    ],
)
def test_a_wrong_import_is_seen(name: str, source: str, said: str) -> None:
    """The check is no rubber stamp."""
    known = frozenset({"pipeline", "pipeline.report", "pipeline.plan.session", "pipeline.cluster"})

    wrong = wrong_imports(name, ast.parse(source), known)

    assert len(wrong) == 1
    assert said in wrong[0]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("jobs.audit", "from pipeline import cli"),
        ("pipeline.cluster", "import ray"),
        ("pipeline.plan.x", "from pipeline import __version__"),
        ("pipeline.stages.x", "from pipeline.sources.labels import assign\nfrom pipeline.stages.y import z"),
        ("pipeline.kernels.x", "from pipeline.kernels.y import z\nfrom pipeline import errors"),
    ],
)
def test_a_right_import_passes(name: str, source: str) -> None:
    """What the order allows is not reported."""
    known = frozenset({"pipeline", "pipeline.cli", "pipeline.errors"})

    assert wrong_imports(name, ast.parse(source), known) == []


@pytest.mark.parametrize(
    ("source", "calls"),
    [
        ("open('a')", ["open"]),
        ("Path('a').open('wb')", ["open"]),
        ("os.replace(a, b)", ["replace"]),
        ("path.write_bytes(b'')", ["write_bytes"]),
        ("with tempfile.TemporaryDirectory() as d: pass", ["TemporaryDirectory"]),
        ("text.replace('a', 'b'); store.open('key'); Image.open(buffer); table.rename_columns([])", []),
    ],
)
def test_a_byte_call_is_seen(source: str, calls: list[str]) -> None:
    """Calls that touch files are told from those that share their names."""
    assert [call for _, call in byte_calls(ast.parse(source))] == calls
