"""Copies of remote objects on a disk: within the budget whoever writes, of the right version, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Rule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3_servers import moto_port, new_store, quick, use_credentials

from pipeline.errors import NotFound, ObjectChanged, StorageError, UsageError
from pipeline.storage import TEMPORARY_PREFIX, ObjectInfo, Store, open_store, request_counts
from pipeline.storage.copies import bytes_held, copy_names, keep_copy, remove_copies
from pipeline.storage.copy_folder import ARCHIVES, FILES, SyncParams, begin_run, require_usable
from pipeline.storage.synced import SyncedStore

SIZE = 1000
SUMMED = SIZE + 4
"""Bytes of a copy without an MD5, of one block and its checksum."""


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(monkeypatch)


@pytest.fixture
def remote() -> Store:
    store = new_store(moto_port(), "photos")
    for number in range(6):
        store.put(f"../{number}.jpg", bytes([number]) * SIZE)
    store.put("a.tar", bytes(range(250)) * 40)
    return store


@pytest.fixture
def params(tmp_path: Path) -> SyncParams:
    return SyncParams(str(tmp_path / "copies"), 100_000)


def listed(store: Store) -> dict[str, ObjectInfo]:
    return {info.key: info for info in store.list()}


def requests() -> dict[str, int]:
    return dict(request_counts().requests)


def since(before: dict[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in requests().items() if count > before.get(name, 0)}


def test_the_second_read_is_local(remote: Store, params: SyncParams) -> None:
    store, infos = SyncedStore(remote, params), listed(remote)
    for _ in range(2):
        before = requests()
        for key, info in infos.items():
            assert store.read(key, expect=info) == remote.read(key)
    spent = since(before)
    assert (spent["sync.hit"], spent["s3.get"]) == (7, 7)  # those are the remote's own
    assert bytes_held(params) == 6 * SIZE + 10_000
    names = {path.name for path in Path(params.folder).rglob("*.*")}
    assert len(names) == 7
    assert all(len(name) == 68 and name.endswith(".md5") for name in names)


def test_ranges_and_streams_come_from_one_copy(
    remote: Store, params: SyncParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.synced.PIECE", 3000)
    store, info = SyncedStore(remote, params), listed(remote)["a.tar"]
    data = remote.read("a.tar")
    before = requests()
    assert store.read_range("a.tar", 500, 700, expect=info) == data[500:1200]
    assert store.read_range("a.tar", 9_990, 700, expect=info) == data[9_990:]
    with store.open("a.tar") as stream:
        stream.seek(123)
        assert stream.read(10) == data[123:133]
    assert since(before) == {"s3.get": 4, "sync.write": 1, "sync.hit": 2, "s3.head": 1}
    assert store.read("a.tar", expect=info) == data
    assert since(before)["s3.get"] == 4


def test_what_cannot_be_pinned_is_not_copied(remote: Store, params: SyncParams) -> None:
    store = SyncedStore(remote, params)
    key = "../1.jpg"
    assert store.read(key) == store.read(key, expect=ObjectInfo(key, SIZE, "", 0)) == b"\x01" * SIZE
    assert store.read_range(key, 0, 5) == b"\x01" * 5
    assert bytes_held(params) == 0
    assert not Path(params.folder).exists()


def test_a_replaced_object_is_read_anew(remote: Store, params: SyncParams) -> None:
    store, old = SyncedStore(remote, params), listed(remote)["../1.jpg"]
    store.read(old.key, expect=old)
    remote.put(old.key, b"n" * SIZE)
    assert store.read(old.key, expect=old) == b"\x01" * SIZE  # the version that was listed, which is still here
    new = listed(remote)[old.key]
    assert store.read(old.key, expect=new) == b"n" * SIZE
    other = listed(remote)["../2.jpg"]
    remote.put(other.key, b"other")
    for read in (store.read, lambda key, expect: store.read_range(key, 0, 9, expect=expect)):
        with pytest.raises(ObjectChanged):
            read(other.key, expect=other)
    remote.delete(other.key)
    with pytest.raises(NotFound):
        store.read(other.key, expect=other)
    assert bytes_held(params) == 2 * SIZE


def test_a_full_budget_reads_through_and_says_so(
    remote: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = SyncParams(str(tmp_path / "copies"), 3 * SIZE + 10)
    store, infos = SyncedStore(remote, params), listed(remote)
    before = requests()
    for _ in range(2):
        for key, info in infos.items():
            assert store.read(key, expect=info) == remote.read(key, expect=info)
            assert bytes_held(params) <= params.budget_bytes
    spent = since(before)
    assert (spent["sync.write"], spent["sync.hit"], spent["sync.full"]) == (3, 3, 8)
    assert [record.getMessage() for record in caplog.records if "budget" in record.getMessage()] == [
        f"sync folder {params.folder}: its budget of 3010 bytes is used up; what is not there yet is read from its "
        "store each time"
    ]


@pytest.mark.parametrize("damage", ["flipped", "short", "long"])
def test_a_damaged_copy_is_replaced(remote: Store, params: SyncParams, damage: str) -> None:
    store, info = SyncedStore(remote, params), listed(remote)["../3.jpg"]
    store.read(info.key, expect=info)
    (copy,) = Path(params.folder).rglob("*.md5")
    content = {"flipped": b"x" * SIZE, "short": b"\x03" * 10, "long": b"\x03" * (SIZE + 1)}[damage]
    copy.write_bytes(content)
    assert store.read(info.key, expect=info) == b"\x03" * SIZE
    assert store.read(info.key, expect=info) == b"\x03" * SIZE
    assert copy.read_bytes() == b"\x03" * SIZE


def test_an_object_whose_etag_is_no_md5_of_it(params: SyncParams) -> None:
    """After encryption with KMS it has the form of one; after an upload in parts it has not."""
    for etag in ("0" * 32, f"{'0' * 32}-3", "anything"):
        names = copy_names(params, "s3://b", ObjectInfo("k", 4, etag, 0))
        kept = keep_copy(params, names, (b"ab", b"cd"))
        assert kept is not None
        assert (kept.path.suffix, kept.path.read_bytes()) == (".sums", b"abcd" + zlib.crc32(b"abcd").to_bytes(4, "big"))


def test_a_read_that_fails_leaves_nothing(remote: Store, params: SyncParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.synced.PIECE", 3000)
    with FaultProxy(moto_port()) as proxy:
        path = remote.uri.removeprefix(f"minio://127.0.0.1:{moto_port()}/")
        store = SyncedStore(open_store(f"minio://127.0.0.1:{proxy.port}/{path}", quick(max_attempts=2)), params)
        info = listed(remote)["a.tar"]
        store.remote.read_range("a.tar", 0, 1)
        proxy.inject(Rule("truncate:7", "GET", count=1), Rule("status:503:SlowDown", "GET", count=5))
        with pytest.raises(StorageError, match="2 attempts"):
            store.read_range("a.tar", 0, 10, expect=info)
        assert bytes_held(params) == 0
        proxy.inject(Rule("status:503:SlowDown", "GET"))
        assert store.read_range("a.tar", 0, 3, expect=info) == bytes([0, 1, 2])
    assert bytes_held(params) == 10_004


WRITER = """
import os, signal, sys
from pipeline.storage import ObjectInfo
from pipeline.storage.copies import SyncParams, copy_names, keep_copy
params = SyncParams(sys.argv[1], int(sys.argv[2]))
first, last, dies = map(int, sys.argv[3:6])
def pieces(data):
    yield data[:500]
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    yield data[500:]
for number in range(first, last):
    info = ObjectInfo(f"{number}.jpg", 1000, f"etag {number}", 0)
    keep_copy(params, copy_names(params, "s3://bucket", info), pieces(bytes([number]) * 1000))
"""


def writer(params: SyncParams, first: int, last: int, *, dies: bool = False) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-c",
        WRITER,
        params.folder,
        str(params.budget_bytes),
        str(first),
        str(last),
        str(int(dies)),
    ]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_two_processes_share_one_budget(tmp_path: Path) -> None:
    """They race for 25 places with 60 objects, a third of which both of them have."""
    params = SyncParams(str(tmp_path / "copies"), 25 * SUMMED + 999)
    both = [writer(params, 0, 40), writer(params, 20, 60)]
    assert [one.wait(60) for one in both] == [0, 0]
    assert bytes_held(params) == 25 * SUMMED
    copies = list(Path(params.folder).rglob("*.sums"))
    assert len(copies) == 25
    assert all(len(set(copy.read_bytes()[:SIZE])) == 1 for copy in copies)


def test_a_killed_writer_takes_no_room(tmp_path: Path) -> None:
    """Its half file is nobody's copy; the same object is written again, and others find the room when it is needed."""
    params = SyncParams(str(tmp_path / "copies"), 2 * SUMMED)
    assert writer(params, 0, 1, dies=True).wait(60) == -9
    assert writer(params, 1, 2, dies=True).wait(60) == -9
    assert bytes_held(params) == 2 * SUMMED
    assert writer(params, 1, 2).wait(60) == 0
    assert [path.read_bytes()[:SIZE] for path in Path(params.folder).rglob("*.sums")] == [b"\x01" * SIZE]
    assert writer(params, 5, 7).wait(60) == 0
    assert bytes_held(params) == 2 * SUMMED
    assert len(list(Path(params.folder).rglob("*.sums"))) == 2
    for number in (7, 8):  # the first one looks for room, the second has what its dead writer took given back
        assert number == 7 or writer(SyncParams(params.folder, 3 * SUMMED), 8, 9, dies=True).wait(60) == -9
        names = copy_names(params, "s3://bucket", ObjectInfo(f"{number}.jpg", SIZE, f"etag {number}", 0))
        assert keep_copy(params, names, (bytes(SIZE),)) is None
        assert Path(params.folder, "image-audit-copies").read_text().split() == [str(bytes_held(params))] == ["2008"]


def test_copies_are_removed_and_nothing_else(remote: Store, params: SyncParams) -> None:
    store = SyncedStore(remote, params)
    assert remove_copies(params) == 0
    for key, info in listed(remote).items():
        store.read(key, expect=info)
    foreign = Path(params.folder, "files", "notes.txt")
    foreign.write_bytes(b"")
    outside = Path(params.folder).parent / "original.jpg"
    outside.write_bytes(b"original")
    Path(params.folder, "files", "link.md5").symlink_to(outside)
    assert remove_copies(params, [ARCHIVES]) == 10_000
    assert remove_copies(params, [FILES]) == 6 * SIZE
    assert outside.read_bytes() == b"original"
    assert foreign.exists()
    assert bytes_held(params) == 0
    assert len(listed(remote)) == 7
    info = listed(remote)["a.tar"]
    store.read("a.tar", expect=info)
    assert bytes_held(params) == 10_000


def test_a_folder_with_other_files_is_refused(remote: Store, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/original.jpg").write_bytes(b"x")
    params = SyncParams(str(tmp_path / "mine"), 10_000)
    info = listed(remote)["../1.jpg"]
    with pytest.raises(UsageError, match="not copies of ours"):
        require_usable(params)
    assert SyncedStore(remote, params).read(info.key, expect=info) == b"\x01" * SIZE
    with pytest.raises(UsageError, match="nothing in it is removed"):
        remove_copies(params)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["original.jpg"]
    for wrong in (("relative", 5), (str(tmp_path), 0)):
        with pytest.raises(UsageError):
            SyncParams(*wrong)


def test_a_copy_has_its_blocks_before_a_byte_is_asked_for(params: SyncParams) -> None:
    """Else an archive is downloaded up to where the disk is full, once for each range that is read of it."""
    seen: list[int] = []

    def pieces() -> Iterator[bytes]:
        (temporary,) = (path for path in Path(params.folder).rglob("*") if path.name.startswith(TEMPORARY_PREFIX))
        seen.append(temporary.stat().st_blocks * 512)
        yield bytes(1 << 20)

    big = SyncParams(params.folder, 10 << 20)
    assert keep_copy(big, copy_names(big, "s3://b", ObjectInfo("a.tar", 1 << 20, "x", 0)), pieces()) is not None
    assert seen[0] >= 1 << 20


NO_ROOM = """
import os, resource, sys
from pathlib import Path
from pipeline.storage import ObjectInfo, request_counts
from pipeline.storage.copies import SyncParams, bytes_held, copy_names, keep_copy
params = SyncParams(sys.argv[1], 10**9)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
def never():
    raise AssertionError("asked for")
    yield b""
descriptors = os.listdir("/proc/self/fd")
for key in ("a.tar", "a.tar", "b.tar"):
    names = copy_names(params, "s3://bucket", ObjectInfo(key, 5_000_000, "etag", 0))
    assert keep_copy(params, names, never()) is None
small = copy_names(params, "s3://bucket", ObjectInfo("c.jpg", 1000, "etag", 0))
assert keep_copy(params, small, (bytes(1000),)) is not None
assert os.listdir("/proc/self/fd") == descriptors
assert Path(params.folder, "image-audit-copies").read_text().split() == ["1004"]
assert bytes_held(params) == 1004
assert [path.name for path in Path(params.folder).rglob("*.*") if path.is_file()] == [small[0].path.name]
assert request_counts().requests["sync.full"] == 3
"""


def test_a_disk_without_room_gives_everything_back(tmp_path: Path) -> None:
    """Room in the ledger, the temporary file and its lock, and the descriptor."""
    command = [sys.executable, "-c", NO_ROOM, str(tmp_path / "copies")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("its disk is full")) == (0, 1), done.stderr


@pytest.mark.parametrize("harm", ["below a file", "no folder inside", "no marker", "of others", "a copy is a folder"])
def test_a_broken_folder_harms_no_image(
    harm: str, remote: Store, params: SyncParams, caplog: pytest.LogCaptureFixture
) -> None:
    """Every read is served by the store, and the folder is warned of once; what the store says stays what it is."""
    store, infos, folder = SyncedStore(remote, params), listed(remote), Path(params.folder)
    if harm == "below a file":
        folder.write_bytes(b"")
        store = SyncedStore(remote, SyncParams(f"{folder}/copies", 10_000))
    elif harm == "of others":
        write = folder / "theirs.txt"
        folder.mkdir()
        write.write_bytes(b"")
    else:
        for info in infos.values():
            store.read(info.key, expect=info)
    if harm == "no folder inside":
        shutil.rmtree(folder / "files")
        (folder / "files").write_bytes(b"")
    elif harm == "no marker":
        (folder / "image-audit-copies").unlink()
        shutil.rmtree(folder / "files")
    elif harm == "a copy is a folder":
        for path in list(folder.rglob("*.md5")):
            path.unlink()
            path.mkdir()
            (path / "x").mkdir()
    for _ in range(2):
        for key, info in infos.items():
            assert store.read(key, expect=info) == remote.read(key)
            assert store.read_range(key, 5, 10, expect=info) == remote.read(key)[5:15]
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert 1 <= len(warned) == len(set(warned)) <= 2
    assert all("is read from its store each time" in line for line in warned)
    gone = ObjectInfo("gone.jpg", 5, "0" * 32, 0)
    with pytest.raises(NotFound):
        store.read(gone.key, expect=gone)


def aged(params: SyncParams, days: float = 1.0) -> None:
    """Takes all copies, one by one, to be from so many days ago, the first by name the oldest."""
    then = time.time() - days * 86400
    for number, path in enumerate(sorted(Path(params.folder).rglob("*.*"))):
        if path.is_file():
            os.utime(path, (then + number, then + number))


def test_copies_of_earlier_nights_make_room(remote: Store, tmp_path: Path) -> None:
    """The oldest ones go, and none that this night has used or made; when only these are left the budget is full."""
    params = SyncParams(str(tmp_path / "copies"), 4 * SIZE + SUMMED)
    store, infos = SyncedStore(remote, params), list(listed(remote).values())[:5]
    for info in infos:
        store.read(info.key, expect=info)
    aged(params)
    begin_run(params)
    kept = {path.stem: path for path in Path(params.folder).rglob("*.md5")}
    by_age = [path.stem for path in sorted(kept.values(), key=lambda path: path.stat().st_mtime)]
    used = [info for info in infos if copy_names(params, store.uri, info)[0].path.stem == by_age[0]]
    store.read(used[0].key, expect=used[0])
    for number in range(4):
        remote.put("new.jpg", bytes([50 + number]) * SIZE)
        info = remote.stat("new.jpg")
        before = requests()
        assert store.read(info.key, expect=info) == store.read(info.key, expect=info)
        assert since(before) == {"s3.get": 1, "sync.write": 1, "sync.hit": 1}
        assert bytes_held(params) <= params.budget_bytes
        left = kept.keys() & {path.stem for path in Path(params.folder).rglob("*.md5")}
        assert left == {by_age[0], *by_age[(3, 3, 5, 5)[number] :]}
    before = requests()
    remote.put("new.jpg", b"y" * SIZE)
    info = remote.stat("new.jpg")
    assert store.read(info.key, expect=info) == b"y" * SIZE
    assert since(before)["sync.full"] == 1
    assert Path(params.folder, "image-audit-copies").read_text().split() == [str(bytes_held(params))] == ["5000"]


def test_two_processes_give_up_old_copies_together(tmp_path: Path) -> None:
    params = SyncParams(str(tmp_path / "copies"), 25 * SUMMED + 999)
    assert writer(params, 100, 125).wait(60) == 0
    aged(params)
    both = [writer(params, 0, 40), writer(params, 20, 60)]
    assert [one.wait(60) for one in both] == [0, 0]
    copies = list(Path(params.folder).rglob("*.sums"))
    assert {copy.read_bytes()[0] for copy in copies} <= set(range(60))
    assert all(len(copy.read_bytes()) == SUMMED and len(set(copy.read_bytes()[:SIZE])) == 1 for copy in copies)
    assert bytes_held(params) == len(copies) * SUMMED == 25 * SUMMED
    assert Path(params.folder, "image-audit-copies").read_text().split() == [str(25 * SUMMED)]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 40), max_size=25), budget=st.integers(1, 120))
def test_never_over_the_budget(tmp_path: Path, sizes: list[int], budget: int) -> None:
    params = SyncParams(str(tmp_path / os.urandom(8).hex()), budget)
    taken = 0
    for number, size in enumerate(sizes):
        names = copy_names(params, "s3://b", ObjectInfo(str(number), size, "x", 0))
        kept = keep_copy(params, names, (bytes(size),))
        copied = size + 4 if size else 0
        assert (kept is not None) == (taken + copied <= budget)
        taken += copied if kept is not None else 0
        assert bytes_held(params) == taken <= budget
