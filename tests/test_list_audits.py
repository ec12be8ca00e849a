"""Lists and annotations end to end: the tables of a folder from a list of its files, and what is wrong."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from archives_made import tar_of
from audited import LOCAL, assert_equal_tables, by_uri, noise_jpeg, rows, run, write_files
from fault_proxy import FaultProxy
from hypothesis import given, settings
from hypothesis import strategies as st
from lists_made import FILES, NAMES, coco_of, csv_of, folders_of, ids, inventory_of, labels, parquet_of, states
from s3_servers import moto_port, new_store, use_credentials

import pipeline
from pipeline.audit import FINDINGS, Audit
from pipeline.cli import main
from pipeline.errors import UsageError
from pipeline.layout.images import paths_of
from pipeline.layout.snapshots import Snapshot, SourceRecord
from pipeline.sources.addresses import located, resolve

STORAGE: dict[str, Any] = {"region": "us-east-1", "backoff": 0.0, "read_timeout": 5.0}


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("loose")
    return run(write_files(folder / "photos", FILES), root=folder / "audit")


def assert_as_loose(audit: Audit, loose: Audit, prefix: str) -> None:
    """Every table is that of the loose files, but for what stands in front of names."""
    for name in FINDINGS:
        ours, theirs = (
            [{key: _without(value, prefix) for key, value in row.items() if key != "path"} for row in rows(whose, name)]
            for whose in (audit, loose)
        )
        assert ours == theirs, name


def _without(value: Any, prefix: str) -> Any:
    return value.removeprefix(prefix) if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("l.txt", "\n".join(reversed(NAMES)).encode()),
        ("l.lst.gz", gzip.compress("\n".join([*NAMES, NAMES[0], "# end"]).encode())),
        ("l.csv", csv_of(folders_of(NAMES))),
        ("l.parquet", parquet_of(folders_of(NAMES))),
        ("l.json", json.dumps(coco_of(FILES, [])).encode()),
    ],
)
def test_a_list_has_the_tables_of_its_folder(name: str, data: bytes, loose: Audit, tmp_path: Path) -> None:
    """In any order, with repeats; the files beside the listed ones are no matter."""
    write_files(tmp_path, {**FILES, "other.jpg": noise_jpeg(1), name: data})
    audit = run(tmp_path / name, root=tmp_path / "audit", shard_size=5)
    assert_equal_tables(audit, loose)
    assert {row["path"] for row in rows(audit, "images")} == {f"{tmp_path}/{uri}" for uri in NAMES}


def test_whole_paths_have_the_splits_and_labels_of_their_common_folder(loose: Audit, tmp_path: Path) -> None:
    """The list lies elsewhere: a uri is the whole path, and `path` shows it once."""
    photos = write_files(tmp_path / "set", FILES)
    listed = write_files(tmp_path / "lists", {"l.txt": "\n".join(f"{photos}/{uri}" for uri in NAMES).encode()})
    audit = run(listed / "l.txt", root=tmp_path / "audit")
    assert [row["uri"] for row in rows(audit, "images")] == [f"{photos}/{uri}" for uri in NAMES]
    assert [row["path"] for row in rows(audit, "images")] == [f"{photos}/{uri}" for uri in NAMES]
    assert_as_loose(audit, loose, f"{photos}/")


@pytest.mark.parametrize("kind", ["text", "csv", "whole", "inventory"])
def test_lists_on_an_object_store(kind: str, loose: Audit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_credentials(monkeypatch)
    store = new_store(moto_port(), f"lists-{kind}")
    for name, data in FILES.items():
        store.put(name, data)
    sizes = {"size_bytes": [len(data) for data in FILES.values()]}
    data, name = {
        "text": lambda: ("\n".join(NAMES).encode(), "l.txt"),
        "csv": lambda: (csv_of({**folders_of(NAMES), **sizes}), "l.csv"),
        "whole": lambda: ("\n".join(f"{store.uri}/{name}" for name in NAMES).encode(), "l.txt"),
        "inventory": lambda: (inventory_of(store, NAMES), "manifest.json"),
    }[kind]()
    store.put(name, data)
    on_disk = write_files(tmp_path, {name: data}) / name
    source = str(on_disk) if kind == "whole" else f"{store.uri}/{name}"
    audit = run(source, root=tmp_path / "root", storage=STORAGE)
    assert [row["path"] for row in rows(audit, "images")] == [f"{store.uri}/{uri}" for uri in NAMES]
    assert_as_loose(audit, loose, f"{store.uri}/")


def test_sizes_that_a_list_tells_are_not_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "told")
    for name, data in FILES.items():
        store.put(name, data)
    store.put("manifest.json", inventory_of(store, NAMES))
    with FaultProxy(moto_port()) as proxy:
        uri = f"minio://127.0.0.1:{proxy.port}/{store.uri.split('/', 3)[3]}/manifest.json"
        pipeline.run(uri, root=tmp_path / "root", where=LOCAL, storage=STORAGE)
        heads = [path for method, path, _ in proxy.log if method == "HEAD" and path.endswith(".jpg")]
        gets = [path for method, path, _ in proxy.log if method == "GET" and path.endswith(".jpg")]
    assert not heads
    assert len(set(gets)) == len(FILES)


def test_archives_in_a_list_are_looked_into(loose: Audit, tmp_path: Path) -> None:
    write_files(tmp_path / "tars", {"set.tar": tar_of(FILES.items()), "x.JPG": noise_jpeg(5)})
    write_files(tmp_path / "lists", {"l.txt": b"../tars/set.tar\n../tars/x.JPG\n"})
    audit = run(tmp_path / "lists" / "l.txt", root=tmp_path / "audit")
    assert set(ids(audit)) == {f"{tmp_path}/tars/set.tar#{uri}" for uri in NAMES} | {f"{tmp_path}/tars/x.JPG"}
    write_files(tmp_path / "lists", {"l.txt": b"../tars/set.tar\n"})
    assert_as_loose(run(tmp_path / "lists" / "l.txt", root=tmp_path / "other"), loose, f"{tmp_path}/tars/set.tar#")


def test_a_list_that_changes(tmp_path: Path) -> None:
    """A label alone, one image more, one less: what stays keeps its id and is not extracted again."""
    folder, root = write_files(tmp_path / "set", FILES), tmp_path / "audit"
    columns = {"filename": NAMES, "label": ["x"] * len(NAMES)}
    source = write_files(folder, {"l.csv": csv_of(columns)}) / "l.csv"
    first = run(source, root=root)
    assert set(labels(first).values()) == {"x"}
    again = run(source, root=root)
    assert states(again)["annotate"] == "done before"

    source.write_bytes(csv_of({**columns, "label": ["y", *["x"] * (len(NAMES) - 1)]}))
    other = run(source, root=root)
    assert ids(other) == ids(first)
    assert states(other)["extract"] == "done before"
    assert labels(other) == {**labels(first), NAMES[0]: "y"}
    stored = run(root=root, start="features")
    assert labels(stored) == labels(other)

    write_files(folder, {"new/n.jpg": noise_jpeg(3)})
    source.write_bytes(csv_of({"filename": [*NAMES, "new/n.jpg"], "label": ["x"] * (len(NAMES) + 1)}))
    assert ids(run(source, root=root)) == {**ids(first), "new/n.jpg": len(NAMES)}
    source.write_bytes(csv_of({"filename": [*NAMES[1:], "new/n.jpg"], "label": ["x"] * len(NAMES)}))
    fewer = run(source, root=root)
    assert ids(fewer) == {uri: number for uri, number in {**ids(first), "new/n.jpg": 13}.items() if uri != NAMES[0]}


def test_a_file_that_changes_under_its_list(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "set", {**FILES, "l.txt": "\n".join(NAMES).encode()})
    first = run(folder / "l.txt", root=tmp_path / "audit")
    write_files(folder, {NAMES[1]: noise_jpeg(77, 120)})
    after = ids(run(folder / "l.txt", root=tmp_path / "audit"))
    assert {uri for uri, number in after.items() if ids(first)[uri] != number} == {NAMES[1]}


def test_missing_files_are_rows_until_they_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_files(tmp_path / "set", {**FILES, "l.txt": "\n".join([*NAMES, "gone.jpg"]).encode()})
    audit = run(folder / "l.txt", root=tmp_path / "audit", max_failed_share=0.5)
    assert by_uri(audit, "invalid")["gone.jpg"]["status"] == "missing"
    assert any("1 of its files are not there or closed, such as 'gone.jpg'" in line for line in caplog.messages)
    write_files(folder, {"gone.jpg": noise_jpeg(4)})
    audit = run(folder / "l.txt", root=tmp_path / "audit")
    assert by_uri(audit, "images")["gone.jpg"]["status"] == "ok"


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_name_that_no_bucket_can_hold_is_missing(
    is_whole: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A line that is not UTF-8, as a URL in a list on disk and as a name in one that lies in the bucket."""
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "bytes")
    for name, data in FILES.items():
        store.put(name, data)
    lines = [*(name.encode() for name in NAMES), b"caf\xe9.jpg", b"caf\xe9.tar"]
    prefix = f"{store.uri}/" if is_whole else ""
    data = b"\n".join(prefix.encode() + line for line in lines)
    store.put("l.txt", data)
    on_disk = write_files(tmp_path, {"l.txt": data}) / "l.txt"
    source = str(on_disk) if is_whole else f"{store.uri}/l.txt"
    audit = run(source, root=tmp_path / "root", storage=STORAGE, max_failed_share=0.5)
    found = {row["uri"].removeprefix(prefix): row["status"] for row in rows(audit, "images")}
    assert {name for name, status in found.items() if status == "missing"} == {"caf%E9.jpg", "caf%E9.tar"}
    assert len(found) == len(NAMES) + 2


def test_what_a_rule_says_goes_before_the_list(tmp_path: Path) -> None:
    """And the list before folders: the table names two files, the list all but gives the first no label."""
    listed = csv_of({"filename": NAMES, "label": ["", *["list"] * (len(NAMES) - 1)]})
    table = csv_of({"filename": NAMES[:2], "label": ["table", ""]})
    folder = write_files(tmp_path / "set", {**FILES, "l.csv": listed, "t.csv": table})
    audit = run(folder / "l.csv", root=tmp_path / "audit", rule={"table": str(folder / "t.csv")})
    assert labels(audit) == {name: "table" if name == NAMES[0] else "list" for name in NAMES}
    assert {row["split"] for row in rows(audit, "images")} == {"train", "val", "test"}


def test_names_of_any_bytes(tmp_path: Path) -> None:
    odd = [b"caf\xe9.jpg", "ü #1%41.jpg".encode(), b" blank .jpg"]
    for number, name in enumerate(odd):
        (tmp_path / os.fsdecode(name)).write_bytes(noise_jpeg(number))
    (tmp_path / "l.txt").write_bytes(b"\n".join(odd))
    by_list, by_folder = run(tmp_path / "l.txt", root=tmp_path / "a"), run(tmp_path, root=tmp_path / "b")
    assert_equal_tables(by_list, by_folder)
    assert {row["status"] for row in rows(by_list, "images")} == {"ok"}


addresses = st.text("ab./#%: ü", max_size=12)


starts = st.sampled_from(["", "/", "/d/", "s3://bkt/", "minio://h:1/bkt/", "s3://bkt/p/"])


@given(st.sampled_from(["/d", "/", "/d/e", "s3://bkt", "s3://bkt/p", "minio://h:1/bkt/p"]), starts, addresses)
@settings(max_examples=300)
def test_the_key_of_an_image_leads_back_to_its_store(base: str, start: str, address: str) -> None:
    try:
        found = resolve(start + address, base)
    except UsageError:
        return
    assert located(found.uri, base) == (found.place, found.key)
    (path,) = paths_of(
        pa.table({"source": pa.array([0], pa.int16()), "uri": [found.uri], "raw_key": pa.nulls(1, pa.binary()),
                  "fragment": pa.nulls(1, pa.string())}),
        Snapshot(1, 1, (SourceRecord(f"{base.rstrip('/')}/l.txt", "", "list"),), (), "", 0, ""),
    ).to_pylist()  # fmt: skip
    assert path == f"{found.place.rstrip('/')}/{found.key}"


def test_a_python_list_of_files_and_folders(tmp_path: Path) -> None:
    """The files are one source of the root, whatever they are the next time; a file of a named folder is in it once."""
    photos = write_files(tmp_path / "photos", FILES)
    single = write_files(tmp_path / "more", {"x.jpg": noise_jpeg(1), "y.jpg": noise_jpeg(2), "z.jpg": noise_jpeg(3)})
    sources = [single / "x.jpg", str(single / "y.jpg"), photos, photos / NAMES[0]]
    audit = run(sources, root=tmp_path / "audit")
    paths = {row["path"]: row["image_id"] for row in rows(audit, "images")}
    assert set(paths) == {f"{single}/x.jpg", f"{single}/y.jpg", *(f"{photos}/{name}" for name in NAMES)}
    again = run([single / "y.jpg", single / "z.jpg", photos], root=tmp_path / "audit")
    later = {row["path"]: row["image_id"] for row in rows(again, "images")}
    assert set(later) - set(paths) == {f"{single}/z.jpg"}
    assert all(paths[path] == number for path, number in later.items() if path in paths)


def test_one_image_is_a_source(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": noise_jpeg(1), "b.jpg": noise_jpeg(2)})
    assert list(ids(run(str(tmp_path / "a.jpg"), root=tmp_path / "r"))) == ["a.jpg"]


def test_labels_of_a_data_frame(loose: Audit, tmp_path: Path) -> None:
    photos = write_files(tmp_path / "photos", FILES)
    audit = run(photos, root=tmp_path / "audit", annotations=pd.DataFrame(folders_of(NAMES)))
    assert_equal_tables(audit, loose)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("l.csv", b"name,label\na.jpg,x\n", "wanted one of filename"),
        ("l.csv", b'filename,label\n"a.jpg,x\n', "line 2"),
        ("l.csv", b"filename,col_x,row_y\na.jpg,1,2\n", "width"),
        ("l.txt", b"https://example.org/a.jpg\n", "line 1"),
        ("l.txt", b"\x00\x01\x02", "neither text nor Parquet"),
        ("l.json", b'{"images": [', "l.json"),
        ("l.parquet", parquet_of({"label": ["x"]}), "wanted one of filename"),
        ("l.yaml", b"train: !!python/object/apply:os.system ['true']\n", "tag"),
        ("l.yaml", b"nc: 3\n", "wanted train, val or test"),
    ],
)
def test_what_is_no_list_is_refused(
    name: str, data: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path / "in", {name: data, "a.jpg": noise_jpeg(1)})
    call = ["run", str(tmp_path / "in" / name), "--root", str(tmp_path / "root"), "--runner", "local", "--quiet"]
    assert main(call) == 2
    error = capsys.readouterr().err
    assert said in error
    assert name in error
    assert not (tmp_path / "root").exists()


def test_a_folder_in_a_list_is_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "set", {**FILES, "l.txt": b"train/a/a00.jpg\nval\n"})
    with pytest.raises(UsageError, match="names the folder 'val'"):
        run(folder / "l.txt", root=tmp_path / "audit")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"annotations": [1, 2]}, "wanted a DataFrame"),
        ({"annotations": {"name": ["a.jpg"]}}, "wanted one of filename"),
        ({"annotations": {"filename": ["a.jpg"]}}, "no image a label, a split or a box"),
        ({"annotations": {"filename": ["a.jpg"], "label": ["x"]}, "rule": {"pattern": "(?P<label>.)"}}, "only one"),
        ({"bounding_box": "xywh_bbox"}, "there are none"),
    ],
)
def test_what_is_no_annotation_is_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"a.jpg": noise_jpeg(1)})
    with pytest.raises(UsageError, match=said):
        run(tmp_path / "in", root=tmp_path / "root", **config)
    assert not (tmp_path / "root").exists()
