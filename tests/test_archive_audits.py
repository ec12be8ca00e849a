"""Archives end to end: the tables of the same photographs as loose files, on disk and on an object store."""

from __future__ import annotations

import errno
import gzip
import io
import os
import random
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from archives_made import KINDS, archive, tar_entry, tar_of, zip_of
from audited import LOCAL, by_uri, noise_jpeg, rows, run, small_set, write_files
from fault_proxy import FaultProxy, Rule
from s3_servers import moto_port, new_store, use_credentials

import pipeline
from pipeline.api import status
from pipeline.audit import FINDINGS, Audit
from pipeline.layout import members
from pipeline.layout.fragments import KnownFragments, Parent
from pipeline.sources.gzip_stream import GzipStream
from pipeline.stages import expand, reads
from pipeline.storage import ObjectInfo, Store

FILES = small_set(10)
STORAGE: dict[str, Any] = {"region": "us-east-1", "backoff": 0.0, "read_timeout": 5.0}


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("loose")
    return run(write_files(folder / "photos", FILES), root=folder / "audit")


def assert_as_loose(audit: Audit, loose: Audit) -> None:
    """Every table is that of the loose files, but for the archive in front of each name."""
    for name in FINDINGS:
        table, wanted = _without_archive(audit.table(name)), audit_of_files(loose, name)
        assert table.to_pylist() == wanted.to_pylist(), name


def audit_of_files(audit: Audit, name: str) -> pa.Table:
    table = audit.table(name)
    return table.drop_columns(["path"]) if "path" in table.column_names else table


def _without_archive(table: pa.Table) -> pa.Table:
    columns = {}
    for name in table.column_names:
        column = table[name]
        if name.endswith("uri"):
            column = pc.replace_substring_regex(column, r"^set[^#]*#", "")
        if name != "path":
            columns[name] = column
    return pa.table(columns)


@pytest.mark.parametrize("ending", KINDS)
def test_an_archive_has_the_tables_of_its_files(ending: str, loose: Audit, tmp_path: Path) -> None:
    photos = write_files(tmp_path / "photos", {f"set{ending}": archive(ending, FILES.items())})
    before = {path for path in tmp_path.rglob("*") if tmp_path / "audit" not in path.parents}
    audit = run(photos, root=tmp_path / "audit", shard_size=4)
    assert_as_loose(audit, loose)
    place = {row["uri"]: row["path"] for row in rows(audit, "images")}
    assert place[f"set{ending}#train/a/a00.jpg"] == f"{photos}/set{ending}#train/a/a00.jpg"
    assert {path for path in tmp_path.rglob("*") if tmp_path / "audit" not in path.parents} - before == {
        tmp_path / "audit"
    }


@pytest.mark.parametrize("ending", [".tar", ".tgz", ".zip"])
def test_an_archive_on_an_object_store(
    ending: str, loose: Audit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a prefix and as the one object that it is, through faults; each span is asked for as it was listed."""
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "archives")
    store.put(f"set{ending}", archive(ending, FILES.items()))
    audit = run(store.uri, root=tmp_path / "one", storage=STORAGE, shard_size=5)
    assert_as_loose(audit, loose)
    with FaultProxy(moto_port()) as proxy:
        proxy.inject(
            Rule("status:503:SlowDown", "GET", r"/set", count=3),
            Rule("truncate:700", "GET", r"/set", count=3),
            Rule("reset", "GET", r"/set", count=2),
        )
        uri = f"minio://127.0.0.1:{proxy.port}/{store.uri.split('/', 3)[3]}/set{ending}"
        assert_as_loose(run(uri, root=tmp_path / "other", storage=STORAGE), loose)
        assert sum(bool(fault) for _, _, fault in proxy.log) == 8


def test_members_side_by_side_are_read_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """13 members of a tar on a store: one request for all of a shard, not one for each."""
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "spans")
    store.put("set.tar", tar_of(FILES.items()))
    with FaultProxy(moto_port()) as proxy:
        uri = f"minio://127.0.0.1:{proxy.port}/{store.uri.split('/', 3)[3]}"
        assert pipeline.run(uri, root=tmp_path / "root", where=LOCAL, storage=STORAGE, until="features") is None
        gets = [path for method, path, _ in proxy.log if method == "GET" and path.endswith("set.tar")]
    assert len(gets) == 3  # its first bytes, its headers in one piece of 8 MB, its members


def test_an_archive_is_a_source(loose: Audit, tmp_path: Path) -> None:
    """Beside others, of which nothing is listed; and a folder that has the name of one is a folder."""
    folder = write_files(tmp_path, {"set.zip": zip_of(FILES.items()), "other.zip": zip_of([("x.jpg", b"")])})
    assert_as_loose(run(folder / "set.zip", root=tmp_path / "audit"), loose)
    write_files(tmp_path / "folder.tar", {"a.jpg": noise_jpeg(1)})
    audit = run(folder / "set.zip", tmp_path / "folder.tar", root=tmp_path / "both")
    assert {row["uri"] for row in rows(audit, "images") if row["source"] == 1} == {"a.jpg"}


def ids(audit: Audit) -> dict[str, int]:
    return {row["uri"]: row["image_id"] for row in rows(audit, "images")}


def test_members_keep_their_ids_where_an_archive_is_only_touched(tmp_path: Path) -> None:
    """Touched, then with another member of the same size in the middle: what has its bytes keeps its id."""
    folder, root = tmp_path / "photos", tmp_path / "audit"
    members = list(FILES.items())
    first = ids(run(write_files(folder, {"set.tar": tar_of(members)}), root=root))
    os.utime(folder / "set.tar", ns=(1, 1))
    touched = run(folder, root=root)
    assert ids(touched) == first
    extracted = [s for s in touched.published.session["stages"] if s["stage"] == "extract"]
    assert [stage["state"] for stage in extracted] == ["done before"]
    other = noise_jpeg(4, 64)
    changed = [(name, other.ljust(len(data), b"\0") if "a01" in name else data) for name, data in members]
    after = ids(run(write_files(folder, {"set.tar": tar_of(changed)}), root=root))
    assert {uri for uri in first if after[uri] != first[uri]} == {"set.tar#train/a/a01.jpg"}


@pytest.mark.parametrize("ending", [".tar", ".tgz", ".zip"])
def test_an_archive_that_grew_can_be_read_again(ending: str, tmp_path: Path) -> None:
    """Its members are new rows: those of before ask for an archive of another size."""
    folder, root = tmp_path / "photos", tmp_path / "audit"
    data = archive(ending, FILES.items())
    first = ids(run(write_files(folder, {f"set{ending}": data}), root=root))
    more = [*FILES.items(), *((f"val/a/{number}.jpg", noise_jpeg(number)) for number in range(30, 50))]
    write_files(folder, {f"set{ending}": archive(ending, more)})
    second = run(folder, root=root)
    assert not set(ids(second).values()) & set(first.values())
    fresh = run(folder, root=tmp_path / "fresh")
    again = run(folder, root=root, measure={"max_pixels": 10**7})
    for audit in (second, again):
        assert statuses(audit) == statuses(fresh)
        assert proved(audit) == proved(fresh)
    assert len(proved(fresh)) > 2


def statuses(audit: Audit) -> dict[str, str]:
    return {row["uri"]: row["status"] for row in rows(audit, "images")}


def proved(audit: Audit) -> set[tuple[str, str, str]]:
    """Pairs that were decided on bytes or pixels."""
    listed = rows(audit, "duplicates")
    return {(row["uri"], row["match_uri"], row["kind"]) for row in listed if row["kind"] != "look_alike"}


def test_what_is_wrong_with_archives_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar = tar_of(FILES.items())
    mixed = tar_of([("a.jpg", noise_jpeg(1)), ("b.jpg", b""), ("c.tar", b""), ("d.tgz", b"")])
    broken = {"cut.tar": tar[: len(tar) // 2], "empty.zip": b"", "text.tgz": b"text" * 200, "good.tar": mixed}
    broken |= {"half.zip": zip_of(FILES.items())[:900], "nothing.tar": tar_of([]), "head.tgz": b"\x1f\x8b\x08\0"}
    audit = run(write_files(tmp_path / "photos", broken), root=tmp_path / "audit")
    invalid = {uri: row["status"] for uri, row in by_uri(audit, "invalid").items() if "#" not in uri}
    assert invalid == {
        "cut.tar": "truncated",
        "empty.zip": "empty",
        "text.tgz": "unreadable",
        "half.zip": "truncated",
        "head.tgz": "truncated",
        "nothing.tar": "empty",
    }
    images = {row["uri"]: row["status"] for row in rows(audit, "images")}
    assert {uri: images[uri] for uri in images if uri.startswith("good")} == {
        "good.tar#a.jpg": "ok",
        "good.tar#b.jpg": "empty",
    }
    assert sum(uri.startswith("cut.tar#") and images[uri] == "ok" for uri in images) >= 4
    assert any("good.tar: 2 archives inside it are not opened" in line for line in caplog.messages)
    assert audit.summary()["left_out"] == 2


def test_archives_with_nothing_in_them_have_a_row(tmp_path: Path) -> None:
    """Those that hold files and no image have none: what they hold is counted."""
    folders = io.BytesIO()
    with tarfile.open(fileobj=folders, mode="w") as file:
        file.addfile(tar_entry("./", 0, tarfile.DIRTYPE))
        file.addfile(tar_entry("cat.jpg", 0, tarfile.DIRTYPE))
    linked = io.BytesIO()
    with tarfile.open(fileobj=linked, mode="w") as file:
        file.addfile(tar_entry("x.jpg", 0, tarfile.SYMTYPE, "a.jpg"))
    nothing = {
        "e.tar": tar_of([]),
        "folders.tar": folders.getvalue(),
        "folders.zip": zip_of([("cat/", b"")]),
        "gzip.tgz": gzip.compress(b""),
        "none.tgz": tar_of([], is_packed=True),
        "none.zip": zip_of([]),
        "twice.tar": tar_of([]) * 2,
        "zeros.tar": bytes(1024),
        "junk.tar": folders.getvalue() + b"junk",
    }
    zeros = {"many.tar": bytes(2_000_000), "many.tgz": gzip.compress(bytes(2_000_000)), "few.tar": bytes(1_050_000)}
    others = {
        "hidden.tar": tar_of([(".a.jpg", b"x")]),
        "label.tar": tar_of([("a.cls", b"cat")]),
        "linked.tar": linked.getvalue(),
        "text.zip": zip_of([("a.txt", b"x")]),
    }
    behind = {"behind.tar": bytes(10_240) + b"junk" * 200, "late.tar": bytes(1_049_600) + b"junk"}
    late = {"found.tar": bytes(1_000_000 // 512 * 512) + tar_of([("b.jpg", noise_jpeg(2))])}
    files = {**nothing, **zeros, **behind, **late, **others, "a.jpg": noise_jpeg(1)}
    audit = run(write_files(tmp_path / "photos", files), root=tmp_path / "audit")
    assert {row["uri"]: row["status"] for row in rows(audit, "images")} == {
        "a.jpg": "ok",
        "found.tar#b.jpg": "ok",
        "behind.tar": "unreadable",
        **dict.fromkeys([*nothing, *zeros, "late.tar"], "empty"),
    }
    messages = {uri: row["message"] for uri, row in by_uri(audit, "invalid").items()}
    assert messages == {
        **dict.fromkeys(nothing, "no file in the archive"),
        **dict.fromkeys([*zeros, "late.tar"], "no file in the archive: its first 1,049,088 bytes are zeros"),
        "behind.tar": "no header of a member at byte 10,240, behind zero bytes alone",
        "gzip.tgz": "the archive unpacks to 0 bytes",
    }
    alone = run(write_files(tmp_path / "alone", {"e.tar": tar_of([])}), root=tmp_path / "root")
    assert {row["uri"]: row["status"] for row in rows(alone, "images")} == {"e.tar": "empty"}


def test_a_gzip_by_the_name_of_a_tar_finds_its_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else each shard would unpack it from the start."""
    indexes: list[int] = []

    def open_stream(stream: BinaryIO, size: int, index: bytes = b"") -> GzipStream:
        indexes.append(len(index))
        return GzipStream(stream, size, index)

    monkeypatch.setattr(members, "GzipStream", open_stream)
    photos = write_files(tmp_path / "photos", {"set.tar": tar_of(FILES.items(), is_packed=True)})
    assert len(ids(run(photos, root=tmp_path / "root"))) == len(FILES)
    assert len(indexes) >= 1
    assert min(indexes) > 0


def test_what_follows_the_end_of_an_archive_is_told(tmp_path: Path) -> None:
    """Another tar is read, other bytes are counted; a gzip that breaks there has a row beside its images."""
    one, other = tar_of([("a.jpg", noise_jpeg(1))]), tar_of([("b.jpg", noise_jpeg(2))])
    packed = gzip.compress(one + random.Random(5).randbytes(9_000_000), 1)
    files = {
        "cat.tar": one + other,
        "junk.tar": one + b"junk",
        "bent.tgz": packed[:-8] + bytes(8),
        "self.zip": b"#!" * 99,
    }
    files["self.zip"] += zip_of([("c.jpg", noise_jpeg(3))])
    audit = run(write_files(tmp_path / "photos", files), root=tmp_path / "audit")
    assert {row["uri"]: row["status"] for row in rows(audit, "images")} == {
        "cat.tar#a.jpg": "ok",
        "cat.tar#b.jpg": "ok",
        "junk.tar#a.jpg": "ok",
        "bent.tgz": "unreadable",
        "bent.tgz#a.jpg": "ok",
        "self.zip#c.jpg": "ok",
    }
    assert audit.summary()["left_out"] == 2


def test_an_empty_tar_in_a_bucket_is_a_source_as_it_is_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "nothing")
    store.put("e.tar", tar_of([]))
    store.put("x.jpg", noise_jpeg(9))
    audit = run(f"{store.uri}/e.tar", f"{store.uri}/x.jpg", root=tmp_path / "root", storage=STORAGE)
    assert {row["uri"]: row["status"] for row in rows(audit, "images")} == {"e.tar": "empty", "x.jpg": "ok"}


def test_names_stay_inside(tmp_path: Path) -> None:
    """Names that lead out, links and devices: rows or nothing, and not a file anywhere but in the root."""
    sink = tmp_path / "photos" / "set.tar"
    sink.parent.mkdir()
    with tarfile.open(sink, "w") as file:
        for name in ("../../x.jpg", "/tmp/x.jpg", "a/../../../y.jpg"):
            file.addfile(tar_entry(name, len(noise_jpeg(1))), io.BytesIO(noise_jpeg(1)))
        file.addfile(tar_entry("z.jpg", 0, tarfile.SYMTYPE, "/etc/passwd"))
    audit = run(sink.parent, root=tmp_path / "deep" / "down" / "audit")
    assert set(ids(audit)) == {f"set.tar#{name}" for name in ("../../x.jpg", "/tmp/x.jpg", "a/../../../y.jpg")}
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "deep"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"down"}
    assert {path.name for path in (tmp_path / "deep" / "down").iterdir()} == {"audit"}


def test_an_archive_that_is_denied_is_tried_again(
    loose: Audit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "denied")
    store.put("set.tar", tar_of(FILES.items()))
    store.put("x.jpg", noise_jpeg(9))
    with FaultProxy(moto_port()) as proxy:
        uri = f"minio://127.0.0.1:{proxy.port}/{store.uri.split('/', 3)[3]}"
        proxy.inject(Rule("status:403:AccessDenied", "GET", r"/set\.tar", count=10**6))
        for _ in range(2):
            first = run(uri, root=tmp_path / "root", storage=STORAGE, max_failed_share=0.9)
            assert {uri: row["status"] for uri, row in by_uri(first, "invalid").items()} == {"set.tar": "denied"}
        proxy.inject()
        second = run(uri, root=tmp_path / "root", storage=STORAGE)
    assert {uri for uri in ids(second) if uri != "x.jpg"} == {f"set.tar#{uri}" for uri in ids(loose)}


@pytest.mark.parametrize("ending", [".tar", ".tgz", ".zip"])
def test_a_bad_sector_holds_up_one_archive_until_the_next_run(
    ending: str, loose: Audit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = archive(ending, FILES.items())
    photos = write_files(tmp_path / "photos", {f"set{ending}": data, "x.jpg": noise_jpeg(9)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "readv", partial(_bad_from, len(data) // 2, os.readv))
        first = run(photos, root=tmp_path / "root", max_failed_share=0.9)
    told = {uri: (row["status"], row["message"]) for uri, row in by_uri(first, "invalid").items()}
    assert told[f"set{ending}"][0] == "timeout"
    assert "(errno 5). Check the disk" in told[f"set{ending}"][1]
    assert {row["uri"]: row["status"] for row in rows(first, "images")}["x.jpg"] == "ok"
    second = run(photos, root=tmp_path / "root")
    assert {uri for uri in ids(second) if uri != "x.jpg"} == {f"set{ending}#{uri}" for uri in ids(loose)}


def _bad_from(start: int, read: Any, descriptor: int, buffers: Any) -> int:
    """As the disk does it: bytes up to the bad sector, and an error at it."""
    at = os.lseek(descriptor, 0, os.SEEK_CUR)
    if at >= start:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    taken: int = read(descriptor, [memoryview(buffers[0])[: start - at]])
    return taken


def replaced(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the listing the tar becomes another one of the same length."""
    taken = pipeline.plan.take_snapshot

    def take_and_replace(*arguments: Any) -> Any:
        snapshot = taken(*arguments)
        store.put("set.tar", tar_of(sorted(FILES.items(), key=lambda item: item[0][::-1])))
        monkeypatch.setattr(pipeline.plan, "take_snapshot", taken)
        return snapshot

    monkeypatch.setattr(pipeline.plan, "take_snapshot", take_and_replace)


def test_an_archive_that_is_replaced_after_the_listing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its members are `changed`, none is taken for another; the next run lists what is there then."""
    use_credentials(monkeypatch)
    store = new_store(moto_port(), "replaced")
    store.put("set.tar", tar_of(FILES.items()))
    replaced(store, monkeypatch)
    first = run(store.uri, root=tmp_path / "root", storage=STORAGE, max_failed_share=1.0)
    assert {row["status"] for row in rows(first, "images")} == {"changed"}
    second = run(store.uri, root=tmp_path / "root", storage=STORAGE)
    invalid = {uri: row["status"] for uri, row in by_uri(second, "invalid").items()}
    assert invalid == {"set.tar#train/b/cut.jpg": "truncated"}


def test_an_archive_that_kills_the_process_has_that_status(loose: Audit, tmp_path: Path) -> None:
    """Until the next run, which looks into it again."""
    photos = write_files(tmp_path / "photos", {"set.tar": tar_of(FILES.items())})
    status = (photos / "set.tar").stat()
    parent = Parent(str(photos), ObjectInfo("set.tar", status.st_size, "", status.st_mtime_ns), "tar")
    run(write_files(tmp_path / "other", {"a.jpg": noise_jpeg(1)}), root=tmp_path / "audit")
    root = pipeline.open(tmp_path / "audit").root
    spec = expand.ExpandSpec(root, (parent, parent))
    assert expand.halves(spec) == [expand.ExpandSpec(root, (parent,))] * 2
    expand.quarantine(expand.halves(spec)[0], "crashed")
    (found,) = KnownFragments(root.open(), is_tried=True).of([parent])
    (problem,) = found
    assert problem.problem.startswith("crashed: its process died")
    known = KnownFragments(root.open(), is_tried=False)
    assert not list(known.of([parent]))
    assert known.missing == [parent]
    assert_as_loose(run(photos, root=tmp_path / "fresh"), loose)


def test_a_member_over_the_limit_is_not_read(tmp_path: Path) -> None:
    """Whatever its directory says: by the size it has, and by the bytes it takes."""
    photos = write_files(
        tmp_path / "photos", {"set.zip": zip_of([("a.jpg", bytes(9_000_000)), ("b.jpg", noise_jpeg(1))])}
    )
    audit = run(photos, root=tmp_path / "audit", measure={"max_bytes": 1_000_000})
    invalid = by_uri(audit, "invalid")
    assert {uri: row["status"] for uri, row in invalid.items()} == {"set.zip#a.jpg": "too_large"}
    assert reads.HEADER_BYTES > 2 * 65_535


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_tar_of_a_million_empty_members(tmp_path: Path) -> None:
    """Each is a row, extracted in shards; the process stays under 600 MB."""
    count = 1_000_000
    (tmp_path / "photos").mkdir()
    header = bytearray(tar_entry("0000000.jpg").tobuf(tarfile.USTAR_FORMAT))
    with (tmp_path / "photos" / "set.tar").open("wb") as sink:
        for number in range(count):
            header[:7] = b"%07d" % number
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            sink.write(header)
        sink.write(bytes(1024))
    root = tmp_path / "audit"
    words = ["run", str(tmp_path / "photos"), "--root", str(root), "--runner", "local", "--quiet"]
    call = [sys.executable, "-c", "import sys; from pipeline.cli import main; sys.exit(main())"]
    # a process of its own: this one has what other tests left in it
    subprocess.run([*call, *words, "--until", "features", "--max-failed-share", "1"], check=True, timeout=800)
    counters = {record["stage"]: record["counters"] for record in status(str(root), {})}
    assert (counters["extract"]["images"], counters["extract"]["empty"]) == (count, count)
    peaks = [record["peak_task_bytes"] for record in status(str(root), {})]
    assert max(peaks) < 600_000_000  # 395 MB by itself, 533 beside other work
