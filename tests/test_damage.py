"""Committed files that were damaged or lost: the run names the file, and what the message asks for is the way out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from audited import assert_equal_tables, run, small_set, write_files
from dying import Life, live, small_parts

import pipeline
from pipeline.audit import Audit
from pipeline.errors import ArtifactError

ORDER = ("annotations", "features", "exact", "moments", "spaces", "neighbours", "pairs", "edges", "groups", "scores")
CASES = [
    ("annotations/*/annotations-*.parquet", ("annotations/*/vocabulary.json", *ORDER[2:])),
    ("annotations/*/vocabulary.json", ORDER[2:]),
    ("features/*/rows-*.parquet", ORDER[2:]),
    ("features/*/embeddings-*.npy", ORDER[2:]),
    ("features/*/signatures-*.npy", ORDER[2:]),
    ("exact/*/members.parquet", ORDER[3:]),
    ("exact/*/summary.json", ORDER[3:]),
    ("moments/*/moments.npz", ORDER[4:]),
    ("spaces/*/copy_space.npz", ORDER[5:]),
    ("spaces/*/space.json", ORDER[5:]),
    ("neighbours/*/candidates-*.parquet", ORDER[6:]),
    ("neighbours/*/saturated-*.parquet", ("neighbours/*/clusters.parquet", *ORDER[6:])),
    ("neighbours/*/clusters.parquet", ORDER[6:]),
    ("pairs/*/pairs-*.parquet", ORDER[7:]),
    ("pairs/*/pairs.json", ORDER[7:]),
    ("edges/*/*/*/edges-*.parquet", ORDER[8:]),
    ("groups/*/forest-*.parquet", ORDER[9:]),
    ("neighbours/*/neighbours-*.parquet", ORDER[9:]),
    ("scores/*/scores-*.parquet", ()),
    ("scores/*/totals.npz", ()),
    ("audits/*/tables/quality/part-*.parquet", ()),
    ("annotations/*/names-*.arrow", ORDER[1:]),
    ("annotations/*/codes.arrow", ORDER[2:]),
    ("exact/*/sizes-*.arrow", ("exact/*/summary.json", *ORDER[3:])),
    ("exact/*/representatives-*.arrow", ORDER[3:]),
    ("scores/*/heads.arrow", ("scores/*/totals.npz",)),
    ("edges/*/*/*/ends-*.arrow", ()),
    ("edges/*/*/*/indexed-*.arrow", ()),
    ("edges/*/*/*/indexed.json", ()),
]
CUT = {
    "annotations/*/annotations-*.parquet", "features/*/rows-*.parquet", "features/*/embeddings-*.npy",
    "exact/*/members.parquet", "spaces/*/copy_space.npz", "neighbours/*/candidates-*.parquet",
    "pairs/*/pairs-*.parquet", "edges/*/*/*/edges-*.parquet", "neighbours/*/neighbours-*.parquet",
    "audits/*/tables/quality/part-*.parquet", "edges/*/*/*/indexed-*.arrow",
}  # fmt: skip
FLIPPED = {"annotations/*/annotations-*.parquet", "spaces/*/copy_space.npz", "pairs/*/pairs-*.parquet"}


def is_slow(pattern: str, how: str) -> bool:
    """Each file cut or lost in the default tier, one way or the other; all ways for all of them in the slow one."""
    chosen = {"flipped" if pattern in FLIPPED else "", "cut" if pattern in CUT else "lost"}
    return how not in chosen


PARAMETERS = [
    pytest.param(pattern, later, how, marks=[pytest.mark.slow] * is_slow(pattern, how))
    for pattern, later in CASES
    for how in ("cut", "lost", "flipped")
    if how != "flipped" or not pattern.startswith("audits/")  # the columns that a run reads of a table are few
]
assert {pattern for pattern, _ in CASES} >= CUT | FLIPPED


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """An audit in many small parts, made by a process of its own: nothing of it is in this one's memory."""
    folder = tmp_path_factory.mktemp("finished")
    photos = write_files(folder / "photos", small_set(16))
    assert live(Life(str(photos), str(folder / "audit"), str(folder / "log"))) == 0
    return pipeline.open(folder / "audit")


def copy_of(audit: Audit, folder: Path) -> Path:
    shutil.copytree(audit.root.uri, folder / "audit")
    return folder / "audit"


def photos_of(audit: Audit) -> Path:
    return Path(audit.root.uri).parent / "photos"


def make_stale(root: Path, later: tuple[str, ...], pattern: str) -> None:
    """Removes what was made after the damaged file, so that it is read again."""
    for name in later:
        for path in root.glob(name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if pattern.startswith("audits/"):
        (made,) = root.glob("audits/*/findings.json")
        made.unlink()
    else:
        shutil.rmtree(root / "audits")


def inside_a_page(path: Path) -> int:
    """The last byte of the first column's pages; statistics, a quarter of a small file, hold nothing that is read."""
    found = pq.read_metadata(path)
    if not found.num_rows:
        return path.stat().st_size // 3
    column = found.row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    return int(start + column.total_compressed_size - 1)


@pytest.mark.parametrize(("pattern", "later", "how"), PARAMETERS)
def test_damage_is_named_and_has_a_way_out(
    finished: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, later: tuple[str, ...], how: str
) -> None:
    """Damage, run: an error that names the file. Delete what it says, run: the tables as if nothing had been."""
    small_parts(monkeypatch.setattr)
    root = copy_of(finished, tmp_path)
    path = min(root.glob(pattern))
    make_stale(root, later, pattern)
    data = path.read_bytes()
    if how == "lost":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        at = inside_a_page(path) if path.suffix == ".parquet" else 2
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    if how != "lost" or path.suffix == ".npy":
        with pytest.raises(ArtifactError, match=re.escape(str(path))) as raised:
            run(photos_of(finished), root=root)
        assert raised.value.exit_code == 3
        named = re.search(r"Delete (\S+), which names it", str(raised.value))
        assert named or "Delete that file and run again" in str(raised.value)
        Path(named[1] if named else path).unlink()

    assert_equal_tables(run(photos_of(finished), root=root), finished)


@pytest.mark.parametrize("name", ["rows-*.parquet", "snapshot-000001.json"])
def test_damaged_catalog_is_never_made_anew(finished: Audit, tmp_path: Path, name: str) -> None:
    root = copy_of(finished, tmp_path)
    (path,) = (root / "catalog").glob(name)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=rf"{re.escape(str(path))}: .*restore that file from a backup"):
        run(photos_of(finished), root=root)
