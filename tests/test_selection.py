"""Which images are taken: against a list comprehension, in any order of sources and archives."""

from __future__ import annotations

from pathlib import Path

import pytest
from archives_made import tar_of
from audited import LOCAL, by_uri, noise_jpeg, rows, run, write_files
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline
from pipeline.audit import Audit, summary_lines
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
    assert audit.summary()["unselected"] == len(SIZES) - len(wanted)
    said = f"selection   {len(SIZES) - len(wanted)} images are not selected and have no row"
    assert (said in summary_lines(audit.summary())) == (len(wanted) < len(SIZES))
    assert run(root=tmp_path / "audit", start="features").summary()["unselected"] == len(SIZES) - len(wanted)
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
    nothing = run(photos, root=tmp_path / "audit", select={"find_regex": "nothing"}, accept_empty=True)
    assert names(nothing) == set()
    assert names(run(photos, root=tmp_path / "audit")) == set(SIZES)


@pytest.mark.parametrize(
    ("select", "said"),
    [
        ({"find_regex": "nomatch"}, "(find_regex 'nomatch')"),
        ({"subset": ["x.jpg", "y.jpg"]}, "(subset of 2 names such as 'x.jpg')"),
        ({"find_regex": "cat", "subset": ["dog/00.jpg"]}, "(find_regex 'cat', subset of 1 name such as 'dog/00.jpg')"),
        ({"min_file_size": 10**9}, "(min_file_size 1000000000)"),
        ({"num_images": 3, "order": "sample", "find_regex": "nomatch"}, "find_regex 'nomatch'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_selection_of_none_is_refused(photos: Path, tmp_path: Path, select: dict[str, object], said: str) -> None:
    """It says how a name looks here, on a new root as on one whose audit it would have put an empty one over."""
    root = tmp_path / "audit"
    for _ in range(2):
        with pytest.raises(UsageError) as error:
            run(photos, root=root, select=select)
        assert f"select takes none of {len(SIZES)} images" in str(error.value)
        assert said in str(error.value)
        assert f"the first one is 'a.tar#cat/m1.jpg' ({photos}/a.tar#cat/m1.jpg)" in str(error.value)
        if not (root / "sessions").exists():
            assert not list((root / "catalog").glob("snapshot-*"))
            whole = run(photos, root=root)
    assert pipeline.open(root).audit_id == whole.audit_id
    assert len(list((root / "catalog").glob("snapshot-*"))) == 1


@pytest.mark.parametrize("subset", [[], [""]])
def test_an_empty_subset_is_not_everything(photos: Path, tmp_path: Path, subset: list[str]) -> None:
    with pytest.raises(UsageError, match="subset is empty"):
        run(photos, root=tmp_path / "audit", select={"subset": subset})
    (tmp_path / "names.txt").write_text("\n")
    words = ["run", str(photos), "--root", str(tmp_path / "audit"), "--subset", str(tmp_path / "names.txt")]
    assert main(words) == 2
    assert not (tmp_path / "audit").exists()


def test_a_subset_of_whole_paths(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As fastdup writes them, and as tables name members of archives."""
    wanted = [f"{photos}/cat/01.jpg", f"{photos}/a.tar/dog/m#2.jpg", "dog/00.jpg", f"{photos}#a.tar"]
    audit = run(photos, root=tmp_path / "audit", select={"subset": wanted})
    assert names(audit) == {"cat/01.jpg", "a.tar#dog/m#2.jpg", "dog/00.jpg"}
    assert f"1 names of the subset are no image, such as '{photos}#a.tar'" in caplog.messages


def test_from_the_command_line(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat/01.jpg\n\ncat/02.jpg\ndog/03.jpg\n")
    command = ["run", str(photos), "--root", str(tmp_path / "audit"), "--runner", "local", "--quiet"]
    command += ["--subset", str(tmp_path / "names.txt"), "--find-regex", "cat", "--num-images", "1"]
    assert main(command) == 0
    assert names(pipeline.open(tmp_path / "audit")) == {"cat/01.jpg"}
    assert main([*command, "--tar-only"]) == 2
    assert names(pipeline.open(tmp_path / "audit")) == {"cat/01.jpg"}


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


def test_rows_of_images_that_are_not_selected_are_no_mistake(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 12 rows 8 name images that are not selected; without a selection no row is unused. 2 more images later are no
    other audit, and are counted.
    """
    table = {"filename": list(LOOSE), "label": ["x"] * len(LOOSE)}
    first = run(photos, root=tmp_path / "audit", annotations=table, select={"num_images": 6})
    assert not any("match no image" in line for line in caplog.messages)
    again = run(photos, root=tmp_path / "audit", annotations=table, select={"num_images": 6})
    assert again.audit_id == first.audit_id
    run(photos, root=tmp_path / "whole", annotations={**table, "filename": ["x.jpg", *list(LOOSE)[1:]]})
    assert any("1 rows of the table" in line and "match no image" in line for line in caplog.messages)


def box_table(*unboxed: str, boxed: str = "cat/11.jpg") -> dict[str, list[object]]:
    """One image with a box, and images that are named without one."""
    sides = {name: [side, *[None] * len(unboxed)] for name, side in zip(SIDES, (4, 4, 40, 40), strict=True)}
    return {"filename": [boxed, *unboxed], **sides}


SIDES = ("col_x", "row_y", "width", "height")
BOX = "cat/11.jpg#xywh=4,4,40,40"


@pytest.mark.parametrize(
    ("unboxed", "select", "accept_empty"),
    [
        (["cat/01.jpg"], {"find_regex": "^cat/01"}, False),  # selected and named, and its box is elsewhere
        (["a.tar/cat/m1.jpg"], {"tar_only": True}, True),
        ([], {"find_regex": "dog"}, False),  # selected, of which the table has none
        ([], {"find_regex": "dog"}, True),
    ],
)
def test_selected_images_without_a_box_are_no_mistake(
    photos: Path, tmp_path: Path, unboxed: list[str], select: dict[str, object], accept_empty: bool
) -> None:
    """They are counted, on a new root and on one that has the box of another image, whose id it keeps."""
    table = box_table(*unboxed)
    chosen = {"select": select, "accept_empty": accept_empty}
    for root in (tmp_path / "new", tmp_path / "used"):
        whole = {} if root.name == "new" else by_uri(run(photos, root=root, annotations=table), "images")
        audit = run(photos, root=root, annotations=table, **chosen)
        assert rows(audit, "images") == []
        taken = [name for name in SIZES if Selection(SelectParams(**select)).takes(name, 1, "#" in name)]  # type: ignore[arg-type]
        assert audit.summary()["unselected"] == len(SIZES) - len(taken)
        again = by_uri(run(photos, root=root, annotations=table), "images")
        assert {uri: row["image_id"] for uri, row in again.items()} == {BOX: 0}
        assert not whole or {uri: row["image_id"] for uri, row in whole.items()} == {BOX: 0}


def test_images_that_a_table_has_without_a_box_alone_are_no_mistake(photos: Path, tmp_path: Path) -> None:
    """Whatever is selected: the table is of these sources. By a whole path, and by a file name that one row has."""
    for number, name in enumerate((str(photos / "dog/00.jpg"), "02.jpg", "a.tar/dog/m#2.jpg")):
        audit = run(photos, root=tmp_path / f"root-{number}", annotations=box_table(name, boxed="elsewhere.jpg"))
        assert rows(audit, "images") == []


@pytest.mark.parametrize("select", [{}, {"find_regex": "dog"}, {"num_images": 3, "order": "sample"}])
def test_a_table_of_boxes_of_other_sources_is_a_mistake(
    photos: Path, tmp_path: Path, select: dict[str, object]
) -> None:
    """Selected or not, with a box or without; a file name alone is no image of another folder."""
    table = box_table("elsewhere/02.jpg", boxed="elsewhere/11.jpg")
    said = f"the table annotations names none of the {len(SIZES)} images: the table has 'elsewhere/11.jpg', the source"
    for accept_empty in (False, True):
        with pytest.raises(UsageError, match=said):
            run(photos, root=tmp_path / "audit", annotations=table, select=select, accept_empty=accept_empty)
    assert not list((tmp_path / "audit").glob("catalog/snapshot-*"))


def test_images_without_a_split_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where others have one; they are in no leak. A quiet run says it too, and what the table does not name."""
    files = {f"{at}.jpg": noise_jpeg(at) for at in range(6)}
    write_files(tmp_path / "photos", files)
    (tmp_path / "t.csv").write_text("filename,split\n0.jpg,train\n1.jpg,test\n")
    root = str(tmp_path / "audit")
    call = ["run", str(tmp_path / "photos"), "--root", root, "--labels", str(tmp_path / "t.csv"), "--runner", "local"]
    assert main([*call, "--quiet"]) == 0
    said = "\n".join(caplog.messages)
    assert "4 of 6 images have no split" in said
    assert "4 of 6 images are not named by the table or pattern, such as '2.jpg'" in said
    assert "splits      test 1, train 1, none 4, which are in no leak" in summary_lines(pipeline.open(root).summary())
