"""Labels of WebDataset: shards written by its own library, audited end to end, and members in any order."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
import webdataset
from archives_made import archive, tar_of
from audited import by_uri, noise_jpeg, rows, run, write_files
from hypothesis import given
from hypothesis import strategies as st
from s3_servers import moto_port, new_store, use_credentials

from pipeline.kernels.header import ImageError
from pipeline.schemas import Status
from pipeline.sources.archives import archive_fragments
from pipeline.sources.folder import LeftOut
from pipeline.sources.fragments import Fragment
from pipeline.sources.samples import MOST_FILES, MOST_LABEL_BYTES

SAMPLES = [(f"{number:06}", number % 3) for number in range(9)]


def shard(samples: list[tuple[str, int]], path: Path) -> Path:
    """A shard as WebDataset writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for key, label in samples:
            writer.write({"__key__": key, "jpg": noise_jpeg(int(key)), "cls": label, "json": {"width": 64}})
    return path


def labels(members: list[tuple[str, bytes]], ending: str = ".tar") -> dict[str, str]:
    """Label of each image of an archive, as it is listed."""
    kind = "zip" if ending == ".zip" else "tar"
    found = archive_fragments(io.BytesIO(archive(ending, members)), kind, LeftOut())
    return {fragment.name: fragment.label for fragment in found}


def of_audit(audit: Any) -> dict[str, str | None]:
    return {uri: row["label"] for uri, row in by_uri(audit, "images").items()}


@pytest.mark.parametrize("name", ["train/set-0001.tar", "train/set-0001.tar.gz"])
def test_shards_of_webdataset_have_their_labels(name: str, tmp_path: Path) -> None:
    shard(SAMPLES, tmp_path / "photos" / name)
    audit = run(tmp_path / "photos", root=tmp_path / "audit", shard_size=4)
    assert of_audit(audit) == {f"{name}#{key}.jpg": str(label) for key, label in SAMPLES}
    assert {row["split"] for row in rows(audit, "images")} == {"train"}


def test_on_an_object_store_beside_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What has no label of its own has that of its folder, wherever shards are cut."""
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "samples")
    store.put("part.tar", shard(SAMPLES, tmp_path / "part.tar").read_bytes())
    members = [("cat/a.jpg", noise_jpeg(40)), ("cat/b.jpg", noise_jpeg(41)), ("cat/b.cls", b"dog\n")]
    store.put("mixed.tar", tar_of(members))
    wanted: dict[str, str | None] = {f"part.tar#{key}.jpg": str(label) for key, label in SAMPLES}
    wanted |= {"mixed.tar#cat/a.jpg": "cat", "mixed.tar#cat/b.jpg": "dog"}
    store.put("none.jpg", noise_jpeg(42))
    wanted["none.jpg"] = None
    for size in (1, 100):
        audit = run(store.uri, root=tmp_path / f"by{size}", storage={"region": "us-east-1"}, shard_size=size)
        assert of_audit(audit) == wanted


def test_a_rule_and_a_list_go_before_the_sample(tmp_path: Path) -> None:
    folder = write_files(tmp_path, {"set.tar": tar_of([("a.jpg", noise_jpeg(1)), ("a.cls", b"7")])})
    by_rule = run(folder / "set.tar", root=tmp_path / "by-rule", rule={"pattern": "/(?P<label>[a-z])[.]jpg"})
    assert of_audit(by_rule) == {"set.tar#a.jpg": "a"}
    (folder / "list.csv").write_text("filename,label\nset.tar,owl\n")
    assert {*of_audit(run(folder / "list.csv", root=tmp_path / "by-list")).values()} == {"owl"}
    (folder / "list.csv").write_text("filename,split\nset.tar,val\n")
    assert {*of_audit(run(folder / "list.csv", root=tmp_path / "by-split")).values()} == {"7"}


def test_another_label_is_another_row_and_the_same_bytes_are_not_lost(tmp_path: Path) -> None:
    """On a disk, where a touched archive keeps the ids of members whose bytes are the same."""
    folder = write_files(tmp_path / "photos", {"set.tar": b""})
    members = [("a.jpg", noise_jpeg(1)), ("a.cls", b"7"), ("b.jpg", noise_jpeg(2)), ("b.cls", b"7")]
    (folder / "set.tar").write_bytes(tar_of(members))
    first = by_uri(run(folder, root=tmp_path / "audit"), "images")
    members[3] = ("b.cls", b"8")
    (folder / "set.tar").write_bytes(tar_of(members))
    os.utime(folder / "set.tar", (2e9, 2e9))
    second = by_uri(run(folder, root=tmp_path / "audit"), "images")
    assert {uri: row["label"] for uri, row in second.items()} == {"set.tar#a.jpg": "7", "set.tar#b.jpg": "8"}
    kept = {uri for uri in first if first[uri]["image_id"] == second[uri]["image_id"]}
    assert kept == {"set.tar#a.jpg"}


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_the_label_is_that_of_all_images_of_its_sample(order: tuple[int, ...]) -> None:
    sample = [("x/1.left.jpg", b"l"), ("x/1.cls", b"3"), ("x/1.right.PNG", b"r")]
    members = [("x/0.jpg", b"0"), *(sample[at] for at in order), ("x/10.jpg", b"2"), ("y/1.jpg", b"3")]
    found = labels(members)
    assert found == {"x/0.jpg": "", "x/1.left.jpg": "3", "x/1.right.PNG": "3", "x/10.jpg": "", "y/1.jpg": ""}


@pytest.mark.parametrize(
    "member",
    [
        ("a.cls", b""), ("a.cls", b"1" * (MOST_LABEL_BYTES + 1)), ("a.cls", b"\xff\xfe7"), ("a.cls", b"1\n2"),
        ("a.x.cls", b"7"), ("a.CLS", b"7"), ("._a.cls", b"7"), (".cls", b"7"), ("b.cls", b"7"), ("a.cls/", b"7"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_counted(member: tuple[str, bytes]) -> None:
    left_out = LeftOut()
    found = archive_fragments(io.BytesIO(tar_of([("a.jpg", b"a"), member])), "tar", left_out)
    assert [fragment.label for fragment in found] == [""]
    if member[0] != "b.cls":  # a label, of a sample without an image
        assert left_out.hidden + left_out.suffixes.total() == 1


def test_zips_have_none() -> None:
    assert labels([("a.jpg", b"a"), ("a.cls", b"7")], ".zip") == {"a.jpg": ""}


def test_a_tar_that_ends_in_a_label() -> None:
    """The image before it is whole, and has no label."""
    data = tar_of([("a.jpg", b"a"), ("b.jpg", b"b"), ("b.cls", b"7" * 600)])
    cut = data[: data.index(b"7" * 600) + 300]
    found = list[Fragment]()
    with pytest.raises(ImageError) as error:
        found += iter(archive_fragments(io.BytesIO(cut), "tar", LeftOut()))
    assert error.value.status is Status.TRUNCATED
    assert [(fragment.name, fragment.label) for fragment in found] == [("a.jpg", ""), ("b.jpg", "")]


def test_members_of_one_name_without_end_are_not_held() -> None:
    members = [(f"a.{number}.jpg", b"") for number in range(3 * MOST_FILES)]
    assert labels(members) == {name: "" for name, _ in members}


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["jpg", "cls", "l.png", "json"])), min_size=1, max_size=12
    )
)
def test_any_order_is_that_of_its_runs(names: list[tuple[str, str]]) -> None:
    """Brute force: a run of members of one key is a sample, whose first label counts."""
    members = [(f"{key}.{ending}", str(at).encode()) for at, (key, ending) in enumerate(names)]
    runs: list[list[int]] = []
    for at, (key, _) in enumerate(names):
        if runs and names[runs[-1][0]][0] == key:
            runs[-1].append(at)
        else:
            runs.append([at])
    wanted = []
    for run_ in runs:
        label = next((str(at) for at in run_ if names[at][1] == "cls"), "")
        wanted += [label for at in run_ if names[at][1] in ("jpg", "l.png")]
    found = archive_fragments(io.BytesIO(tar_of(members)), "tar", LeftOut())
    assert [fragment.label for fragment in found] == wanted
