"""Siblings of which one has a copy in another file: what that says of the other file does not depend on the order."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited import rows, run, write_files
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_sibling_audits import MJPEG, parent_of, photo
from videos_made import encoded

from pipeline.audit import Audit
from pipeline.kernels.siblings import NO_PARENT, families
from pipeline.layout.exact import ExactGroups

FRAMES: dict[str, Any] = {"video": {"fps": 10}}
PLAIN: dict[str, Any] = {"horizontal": 0, "vertical": 0}


@st.composite
def copies(draw: st.DrawFn) -> tuple[ExactGroups, dict[int, list[tuple[int, int]]]]:
    """Exact groups of children of up to three parents and of files; representative -> (id, parent) of its images."""
    count = draw(st.integers(1, 12))
    heads = [draw(st.integers(0, i)) for i in range(count)]
    heads = [head if heads[head] == head else i for i, head in enumerate(heads)]
    parents = [draw(st.integers(-1, 2)) for _ in range(count)]
    groups: dict[int, list[tuple[int, int]]] = {}
    for i, head in enumerate(heads):
        groups.setdefault(head, []).append((i, parents[i]))
    several = [i for i in range(count) if len(groups[heads[i]]) > 1]
    ids, head, parent = (np.array([values[i] for i in several], np.int64) for values in (range(count), heads, parents))
    codes = np.zeros(len(ids), np.int32)
    return ExactGroups(ids, head, ids, codes, codes, parent), groups


@given(copies())
def test_families_are_those_of_all_copies(made: tuple[ExactGroups, dict[int, list[tuple[int, int]]]]) -> None:
    """Two groups are of one family where their images lie in the same parents, and none of them is a file."""
    _, groups = made
    images = [(head, parent) for head, members in groups.items() for _, parent in members]
    heads, found = families(*(np.array(column, np.int64) for column in zip(*images, strict=True)))
    assert heads.tolist() == sorted(groups)
    lies_in = [{parent for _, parent in groups[head]} for head in heads.tolist()]
    for parents, family in zip(lies_in, found.tolist(), strict=True):
        assert family == (NO_PARENT if -1 in parents else family)
        assert (family >= 0) == (-1 not in parents)
        assert len(parents) > 1 or family in parents
    for one, other in itertools.product(range(len(heads)), repeat=2):
        is_same = lies_in[one] == lies_in[other] and -1 not in lies_in[one]
        assert is_same == (found[one] == found[other] >= 0)


@given(copies(), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2), st.booleans())))
def test_first_copies_are_those_of_a_loop(
    made: tuple[ExactGroups, dict[int, list[tuple[int, int]]]], asked: list[tuple[int, int, bool]]
) -> None:
    exact, groups = made
    asked = [row for row in asked if row[0] in groups]
    ids, parents, within = (np.array([row[at] for row in asked], kind) for at, kind in enumerate("qq?"))
    expected = []
    for head, wanted, is_within in asked:
        fit = [i for i, parent in groups[head] if (parent == wanted) == is_within]
        expected.append(min(fit) if fit and len(groups[head]) > 1 else -1)
    assert exact.first_copies(ids, parents, within).tolist() == expected


def said_of_files(audit: Audit) -> dict[str, Any]:
    """What an audit says of two files; nothing in it depends on ids."""
    leaks = {(row["uri"], row["match_split"], row["kind"], row["severity"]) for row in rows(audit, "leaks")}
    pairs = {
        (frozenset((row["uri"], row["match_uri"])), row["kind"])
        for row in rows(audit, "duplicates")
        if row["kind"] not in ("same_parent", "same_pixels")
    }
    groups: dict[int, set[str]] = {}
    for row in rows(audit, "groups"):
        groups.setdefault(row["group_id"], set()).add(row["uri"])
    conflicts = {(row["uri"], row["conflict_uri"]) for row in rows(audit, "label_conflicts")}
    videos = {(row["video"], row["match_video"], row["shared_frames"]) for row in rows(audit, "videos")}
    return {
        "leaks": leaks,
        "pairs": pairs,
        "groups": {frozenset(members) for members in groups.values()},
        "conflicts": conflicts,
        "videos": videos,
    }


def still_and_excerpt(count: int = 8) -> tuple[bytes, bytes]:
    """Frames of a still scene, no two equal, and a video of the first two."""
    rng = np.random.default_rng(0)
    scene = photo(3, "building")
    frames = [np.clip(scene + rng.normal(0, 4.0, scene.shape), 0, 255).astype(np.uint8) for _ in range(count)]
    return encoded(MJPEG, frames, rate=10), encoded(MJPEG, frames[:2], rate=10)


def test_an_excerpt_of_a_still_video(tmp_path: Path) -> None:
    """Every frame of the whole one leaks, whichever of the two is listed first, and whichever was audited before."""
    whole, excerpt = still_and_excerpt()
    train = write_files(tmp_path / "train", {"whole.avi": whole})
    test = write_files(tmp_path / "test", {"excerpt.avi": excerpt})
    audit = run(train, test, root=tmp_path / "audit", **FRAMES)
    found = said_of_files(audit)
    assert {(uri, severity) for uri, _, _, severity in found["leaks"]} == {
        *((f"whole.avi#t=0.{at}00", 5 if at < 2 else 4) for at in range(8)),
        *((f"excerpt.avi#t=0.{at}00", 5) for at in range(2)),
    }
    assert len(found["groups"]) == 1
    assert found["pairs"]
    for pair, _ in found["pairs"]:
        assert {parent_of(uri) for uri in pair} == {"whole.avi", "excerpt.avi"}
    assert {(row[0], row[2]) for row in found["videos"]} == {("whole.avi", 8), ("excerpt.avi", 2)}
    assert said_of_files(run(test, train, root=tmp_path / "turned", **FRAMES)) == found

    first = tmp_path / "first"
    alone = run(train, root=first, **FRAMES)
    assert {row["kind"] for row in rows(alone, "duplicates")} == {"same_parent"}
    assert said_of_files(run(train, test, root=first, **FRAMES)) == found
    (test / "excerpt.avi").unlink()
    write_files(test, {"other.avi": encoded(MJPEG, [photo(2, "fish")], rate=10)})
    assert said_of_files(run(train, test, root=first, **FRAMES))["leaks"] == set()


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_an_excerpt_in_the_same_split(tmp_path: Path, names: str) -> None:
    """More frames than are found for one: each of them is nearer to its siblings than to the two of the excerpt."""
    whole, excerpt = still_and_excerpt(24)
    one, other = (f"train/{name}/v.avi" for name in names)
    folder = write_files(tmp_path / "files", {one: whole, other: excerpt})
    found = said_of_files(run(folder, root=tmp_path / "audit", **FRAMES))
    (group,) = found["groups"]
    assert group == {*(f"{one}#t={at / 10:.3f}" for at in range(24)), *(f"{other}#t={at / 10:.3f}" for at in range(2))}
    assert {uri for pair, _ in found["pairs"] for uri in pair} >= {f"{one}#t={at / 10:.3f}" for at in range(2, 24)}
    assert found["videos"] == {(one, other, 24), (other, one, 2)}
    assert {uri for uri, _ in found["conflicts"]} == group


def test_a_video_that_is_there_twice_is_compared_with_nothing(tmp_path: Path) -> None:
    """Its frames have their copies: pairs of two frames say no more."""
    whole, _ = still_and_excerpt()
    folder = write_files(tmp_path / "files", {"train/one.avi": whole, "test/other.avi": whole})
    audit = run(folder, root=tmp_path / "audit", **FRAMES)
    found = said_of_files(audit)
    assert found["pairs"] == set()
    assert {frozenset(map(parent_of, group)) for group in found["groups"]} == {
        frozenset(("train/one.avi", "test/other.avi"))
    }
    assert len(found["groups"]) == 8
    assert {(kind, severity) for _, _, kind, severity in found["leaks"]} == {("same_pixels", 5)}


@pytest.mark.parametrize("names", ["ab", "za"])
def test_boxes_of_a_copied_image(tmp_path: Path, names: str) -> None:
    """One box of an image is in another file as well; the other box is a larger crop of it, under another label."""
    one, other = (f"{name}.png" for name in names)
    sink = io.BytesIO()
    Image.fromarray(photo(5, "building")).save(sink, "PNG")
    lines = ["filename,split,label,col_x,row_y,width,height", f"{one},test,cat,0,0,140,120"]
    lines += [f"{one},val,dog,6,6,128,108", f"{other},train,dog,6,6,128,108"]
    files = {one: sink.getvalue(), other: sink.getvalue(), "list.csv": "\n".join(lines).encode()}
    folder = write_files(tmp_path / "photos", files)
    audit = run(folder / "list.csv", root=tmp_path / "audit", boxes=PLAIN)
    first, second, copy = f"{one}#xywh=0,0,140,120", f"{one}#xywh=6,6,128,108", f"{other}#xywh=6,6,128,108"
    found = said_of_files(audit)
    ((pair, kind),) = found["pairs"]
    assert pair == {first, copy}
    severity = {"near_identical": 5, "edited": 4}[kind]
    assert found["leaks"] == {
        (first, "train", kind, severity),
        (first, "val", "same_parent", 2),
        (second, "test", "same_parent", 2),
        (second, "train", "same_pixels", 5),
        (copy, "test", kind, severity),
        (copy, "val", "same_pixels", 5),
    }
    assert found["groups"] == {frozenset((first, second, copy))}
    assert found["conflicts"] == {(first, copy), (copy, first)}
