"""Which images are taken: against a list comprehension, in any order of sources and archives."""

from __future__ import annotations

from pathlib import Path

import pytest
from archives_made import tar_of
from audited import LOCAL, by_uri, noise_jpeg, rows, run, write_files
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.audit import Audit
from pipeline.cli import main
from pipeline.errors import UsageError
from pipeline.sources.selection import Selection, SelectParams, name_hash, sample_limit

LOOSE = {f"{'cat' if at % 3 else 'dog'}/{at:02}.jpg": noise_jpeg(at, 24 + 4 * at) for at in range(12)}
MEMBERS = [("cat/m1.jpg", noise_jpeg(50, 32)), ("dog/m#2.jpg", noise_jpeg(51, 90))]
FILES = {**LOOSE, "a.tar": tar_of(MEMBERS)}
SIZES = {name: len(data) for name, data in LOOSE.items()} | {f"a.tar#{name}": len(data) for name, data in MEMBERS}


def smallest(count: int, word: str = "") -> set[str]:
    """The names with the smallest hashes, of those that hold a word."""
    return set(sorted((name for name in SIZES if word in name), key=name_hash)[:count])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("select") / "photos", FILES)


def names(audit: Audit) -> set[str]:
    return {row["uri"].replace("%23", "#") for row in rows(audit, "images")}


@pytest.mark.parametrize(
    ("select", "wanted"),
    [
        ({"num_images": 3}, {"a.tar#cat/m1.jpg", "a.tar#dog/m#2.jpg", "cat/01.jpg"}),
        ({"find_regex": r"^cat/0|#cat"}, {n for n in SIZES if n.startswith("cat/0") or "#cat" in n}),
        ({"min_file_size": 2000}, {n for n, size in SIZES.items() if size >= 2000}),
        ({"tar_only": True}, {"a.tar#cat/m1.jpg", "a.tar#dog/m#2.jpg"}),
        ({"subset": ["./cat/01.jpg", "a.tar#dog/m#2.jpg", "x.jpg"]}, {"cat/01.jpg", "a.tar#dog/m#2.jpg"}),
        ({"num_images": 5, "order": "sample"}, smallest(5)),
        ({"num_images": 99, "order": "sample"}, set(SIZES)),
        ({"num_images": 2, "find_regex": "dog"}, {"a.tar#dog/m#2.jpg", "dog/00.jpg"}),
        ({"num_images": 2, "order": "sample", "find_regex": "dog"}, smallest(2, "dog")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_is_selected_is_what_is_audited(
    photos: Path, tmp_path: Path, select: dict[str, object], wanted: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    audit = run(photos, root=tmp_path / "audit", select=select)
    assert names(audit) == wanted
    stages = {stage["stage"]: stage["counters"] for stage in audit.published.session["stages"]}
    assert stages["catalog"]["unselected"] == len(SIZES) - len(wanted)
    assert any("1 names of the subset are no image, such as 'x.jpg'" in line for line in caplog.messages) == (
        "subset" in select
    )


def test_a_sample_stays_while_images_come(tmp_path: Path) -> None:
    """Of 5 of 12 those stay that the larger set takes too; ids stay, and what fell out is removed."""
    files = dict(list(LOOSE.items())[:10])
    select = {"num_images": 5, "order": "sample"}
    first = run(write_files(tmp_path / "photos", files), root=tmp_path / "audit", select=select)
    second = run(write_files(tmp_path / "photos", LOOSE), root=tmp_path / "audit", select=select)
    assert names(second) == set(sorted(LOOSE, key=name_hash)[:5])
    before, after = by_uri(first, "images"), by_uri(second, "images")
    kept = before.keys() & after.keys()
    assert len(kept) >= 3
    assert {uri: before[uri]["image_id"] for uri in kept} == {uri: after[uri]["image_id"] for uri in kept}


def test_a_selection_of_none_is_no_lost_source(photos: Path, tmp_path: Path) -> None:
    run(photos, root=tmp_path / "audit")
    assert names(run(photos, root=tmp_path / "audit", select={"find_regex": "nothing"})) == set()
    assert names(run(photos, root=tmp_path / "audit")) == set(SIZES)


def test_from_the_command_line(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat/01.jpg\n\ncat/02.jpg\ndog/03.jpg\n")
    command = ["run", str(photos), "--root", str(tmp_path / "audit"), "--runner", "local", "--quiet"]
    command += ["--subset", str(tmp_path / "names.txt"), "--find-regex", "cat", "--num-images", "1"]
    assert main(command) == 0
    assert names(pipeline.open(tmp_path / "audit")) == {"cat/01.jpg"}
    assert main([*command, "--tar-only"]) == 0
    assert names(pipeline.open(tmp_path / "audit")) == set()


def test_what_cannot_be_is_said_at_once(photos: Path, tmp_path: Path) -> None:
    wrong = {"num_images": -1, "order": "last", "find_regex": "(", "min_file_size": -2}
    with pytest.raises(UsageError) as error:
        pipeline.run(photos, root=tmp_path / "audit", where=LOCAL, select=wrong)
    for said in ("num_images -1", "min_file_size -2", "order 'last', want first or sample", "find_regex '('"):
        assert said in str(error.value)
    with pytest.raises(UsageError, match="order 'sample' without num_images"):
        pipeline.run(photos, root=tmp_path / "audit", where=LOCAL, select={"order": "sample"})
    assert not (tmp_path / "audit").exists()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=8), unique=True, max_size=40), st.integers(1, 45))
def test_a_sample_has_exactly_so_many(listed: list[str], count: int) -> None:
    params = SelectParams(num_images=count, order="sample")
    selection = Selection(params, sample_limit(listed, count))
    taken = [name for name in listed if selection.takes(name, 1, is_member=False)]
    assert set(taken) == set(sorted(listed, key=name_hash)[:count])
