"""The disk: links, special files, permissions, full disks, and a process that dies at any system call of a write."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import AccessDenied, NotFound, ObjectChanged, StorageError, StorageFull
from pipeline.storage import TEMPORARY_PREFIX, ObjectInfo, Store, open_store
from pipeline.storage.local import LocalStore

NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


@contextlib.contextmanager
def without_root() -> Iterator[None]:
    """Run the body as a user whom permission bits bind."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


def test_names_that_are_not_utf8(store: Store, tmp_path: Path) -> None:
    names = [b"\xff.jpg", b"caf\xe9/\x80\x81.jpg", "é.jpg".encode(), b"new\nline", b"a", b"\xf0\x9f\x98\x80"]
    for name in names:
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name)
    listed = keys(store)
    assert [os.fsencode(key) for key in listed] == sorted(names)
    assert [store.read(key) for key in listed] == sorted(names)
    store.put(listed[-1], b"new")
    assert store.put_if_absent(os.fsdecode(b"\xfe"), b"1")
    assert keys(store)[-1] == os.fsdecode(b"\xff.jpg")


def test_special_files_are_left_out_and_never_block(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("real.jpg", b"1")
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nothing")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # the name of a socket must be short
        listener.bind("socket.jpg")
    with caplog.at_level(logging.WARNING):
        assert keys(store) == ["real.jpg"]
    assert "dangling links or files that vanished (1)" in caplog.text
    assert "files that are no regular files (FIFO, socket, device) (3)" in caplog.text
    for name in ("fifo.jpg", "device.jpg", "socket.jpg"):
        assert not store.exists(name)
        for ask in (store.read, store.stat, store.open):
            with pytest.raises(StorageError, match=name):
                ask(name)


def test_links_are_followed_out_of_the_folder_once(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "sub").mkdir(parents=True)
    (outside / "deep").mkdir(parents=True)
    for path in (inside / "sub/a", outside / "b", outside / "deep/c"):
        path.write_bytes(b"1")
    (inside / "file-link").symlink_to(outside / "b")
    (inside / "train").symlink_to(outside)  # a data set on another disk
    (inside / "val").symlink_to(outside)
    (inside / "self").symlink_to(".")
    (inside / "sub/up").symlink_to("..")
    (inside / "alias").symlink_to("sub")
    (inside / "everything").symlink_to(tmp_path)
    (outside / "back").symlink_to(inside)
    (outside / "deep/again").symlink_to(outside)
    store = open_store(inside)
    wanted = ["file-link", "sub/a", "train/b", "train/deep/c", "val/b", "val/deep/c"]
    assert keys(store) == wanted
    for prefix in ("t", "train/", "train/deep/", "val/d", "sub/", "alias/", "nowhere/"):
        assert keys(store, prefix) == [key for key in wanted if key.startswith(prefix)]
    (tmp_path / "root-link").symlink_to(inside)
    assert keys(open_store(tmp_path / "root-link")) == wanted


def test_a_tree_deeper_than_the_recursion_limit(store: Store, tmp_path: Path) -> None:
    folders = [Path(f"{tmp_path}{'/d' * depth}") for depth in range(1, 1101)]
    for folder in folders:
        folder.mkdir()
    (folders[-1] / "x").write_bytes(b"1")
    assert keys(store) == ["d/" * 1100 + "x"]
    (folders[-1] / "x").unlink()
    for folder in reversed(folders):  # pytest's own cleaning recurses
        folder.rmdir()


def test_what_may_not_be_read_is_named(open_folder: Path) -> None:
    store = open_store(open_folder)
    store.put("closed/x", b"1")
    store.put("open/x", b"1")
    store.put("secret.jpg", b"1")
    (open_folder / "closed").chmod(0)
    (open_folder / "secret.jpg").chmod(0)
    with without_root():
        with pytest.raises(AccessDenied, match=f"{open_folder}/closed"):
            list(store.list())
        assert keys(store, "open") == ["open/x"]
        with pytest.raises(AccessDenied, match=r"secret\.jpg"):
            store.read("secret.jpg")
        with pytest.raises(AccessDenied, match="closed/x"):
            store.stat("closed/x")
        for write in (store.put, store.put_if_absent):
            with pytest.raises(AccessDenied, match=str(open_folder)):
                write("new", b"1")
            with pytest.raises(AccessDenied, match=str(open_folder)):
                write("folder/new", b"1")


def test_a_file_in_the_place_of_a_folder(store: Store, tmp_path: Path) -> None:
    store.put("a", b"1")
    for write in (store.put, store.put_if_absent):
        with pytest.raises(StorageError, match=r"write .*/a"):
            write("a/b", b"2")
    with pytest.raises(NotFound):
        store.read("a/b")
    with pytest.raises(StorageError, match="it is a file; wanted a folder"):
        list(open_store(tmp_path / "a").list())
    store.put("folder/x", b"1")
    with pytest.raises(StorageError, match="folder"):
        store.put("folder", b"2")
    assert keys(store) == ["a", "folder/x"]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a", tmp_path / "folder"]


def test_a_file_that_shrinks_is_a_changed_one(store: Store) -> None:
    store.put("x", b"123")
    with pytest.raises(ObjectChanged, match="3 bytes; listed with 4"):
        store.read("x", expect=ObjectInfo("x", 4, "", 0))


def test_a_write_over_the_limit_of_file_sizes(store: Store, tmp_path: Path) -> None:
    store.put("x", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        with pytest.raises(StorageFull, match=r"write .*Free space"):
            store.put("x", b"1" * 100_000)
        with pytest.raises(StorageFull):
            store.put_if_absent("y", b"1" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.read("x") == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


CALLS = ("open", "write", "fsync", "replace", "link", "unlink", "mkdir", "close")


@contextlib.contextmanager
def at_call(number: int, act: Callable[[str, tuple[object, ...]], None]) -> Iterator[list[str]]:
    """Call `act(name, arguments)` in the place of the `number`th of the system calls that change a disk."""
    seen: list[str] = []
    real = {name: getattr(os, name) for name in CALLS}

    def counting(name: str) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            seen.append(name)
            if len(seen) == number:
                act(name, arguments)
            return real[name](*arguments, **keywords)

        return call

    try:
        for name in CALLS:
            setattr(os, name, counting(name))
        yield seen
    finally:
        for name, function in real.items():
            setattr(os, name, function)


OLD, NEW = b"old" * 1000, b"new!" * 1000
WRITES = {
    "put": LocalStore.put,
    "put_if_absent": LocalStore.put_if_absent,
}


@pytest.mark.parametrize("name", WRITES)
def test_killed_at_any_call_the_key_is_absent_or_whole(tmp_path: Path, name: str) -> None:
    write = WRITES[name]

    def die(call: str, arguments: tuple[object, ...]) -> None:
        if call == "write":
            descriptor, data = arguments
            os.pwrite(descriptor, bytes(data)[: len(data) // 2], 0)  # type: ignore[arg-type, call-overload]
        os.kill(os.getpid(), signal.SIGKILL)

    for number in itertools.count(1):
        store = open_store(tmp_path / str(number))
        store.put("there", OLD)  # type: ignore[attr-defined]
        child = os.fork()
        if child == 0:
            with at_call(number, die) as seen:
                write(store, "a/b/new", NEW)  # type: ignore[arg-type]
                write(store, "there", NEW)  # type: ignore[arg-type]
            os._exit(0 if len(seen) >= number else 42)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 42:
            break
        _check_after_death(tmp_path / str(number), name)
    assert number > 15


def _check_after_death(folder: Path, name: str) -> None:
    store = open_store(folder)
    listed = keys(store)
    assert [key for key in listed if TEMPORARY_PREFIX in key] == []
    assert set(listed) <= {"a/b/new", "there"}
    assert store.read("there") in ((OLD,) if name == "put_if_absent" else (OLD, NEW))
    if "a/b/new" in listed:
        assert store.read("a/b/new") == NEW
    # whoever comes next finishes the work
    assert store.put_if_absent("a/b/new", NEW)
    assert store.read("a/b/new") == NEW


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EROFS, AccessDenied),
        (errno.EIO, StorageError),
    ],
)
@pytest.mark.parametrize("name", WRITES)
def test_an_error_at_any_call_is_typed_and_leaves_nothing(
    tmp_path: Path, name: str, code: int, error: type[StorageError]
) -> None:
    def fail(call: str, _: tuple[object, ...]) -> None:
        if call not in ("unlink", "close"):  # a full disk does not fail these
            raise OSError(code, os.strerror(code))

    failures = 0
    for number in itertools.count(1):
        store = open_store(tmp_path / str(number))
        assert isinstance(store, LocalStore)
        store.put("a/there", OLD)
        with at_call(number, fail) as seen:
            failure = _failure_of(lambda write=WRITES[name], store=store: write(store, "a/b/new", NEW))
        if failure is not None:
            assert type(failure) is error
            assert "write " in str(failure)
            failures += 1
        assert not list((tmp_path / str(number)).rglob(f"{TEMPORARY_PREFIX}*"))
        assert not store.exists("a/b/new") or store.read("a/b/new") == NEW
        if len(seen) < number:
            break
    assert failures >= 5


def _failure_of(write: Callable[[], object]) -> StorageError | None:
    try:
        write()
    except StorageError as failure:
        return failure
    return None


def test_a_disk_without_hard_links_is_refused(store: Store, tmp_path: Path) -> None:
    def fail(call: str, _: tuple[object, ...]) -> None:
        if call == "link":
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    for number in range(1, 20):
        with at_call(number, fail) as seen, contextlib.suppress(StorageError):
            store.put_if_absent(f"x{number}", b"1")
        if seen[-2:] == ["link", "unlink"]:
            break
    with at_call(seen.index("link") + 1, fail), pytest.raises(StorageError, match="no hard links"):
        store.put_if_absent("y", b"1")
    assert not store.exists("y")


def test_pieces_are_written_as_they_come(store: Store, tmp_path: Path) -> None:
    """Each piece is on the disk before the next is asked for; the name appears at the end, and not after an error."""

    def pieces(ends: bool) -> Iterator[bytes]:
        for number in range(3):
            assert [path.stat().st_size for path in tmp_path.glob(f"{TEMPORARY_PREFIX}*")] == [number * 1000]
            assert not (tmp_path / "out").exists()
            yield bytes(1000)
        if not ends:
            raise NotFound("a part is gone")

    with pytest.raises(NotFound, match="a part is gone"):
        store.put_pieces("out", pieces(ends=False))
    assert [*tmp_path.iterdir()] == []
    store.put_pieces("out", pieces(ends=True))
    assert store.read("out") == bytes(3000)


def test_a_read_that_fails_in_an_open_file_is_typed() -> None:
    """The kernel gives EIO for the first page of the memory of any process, as a disk does for a bad sector."""
    store = LocalStore(Path("/proc/self"))
    with (
        store.open("mem") as stream,
        pytest.raises(StorageError, match=r"read /proc/self/mem: .*\(errno 5\)") as raised,
    ):
        stream.read(10)
    assert type(raised.value) is StorageError


def test_an_open_file_reads_and_seeks_as_any(store: Store) -> None:
    data = bytes(range(256)) * 3000
    store.put("a", data)
    with store.open("a") as stream:
        assert stream.read(5) == data[:5]
        assert (stream.seek(-7, os.SEEK_END), stream.read()) == (len(data) - 7, data[-7:])
        assert (stream.seek(200_000), stream.read(300_000)) == (200_000, data[200_000:500_000])
        assert (stream.tell(), stream.seek(10**9), stream.read(1)) == (500_000, 10**9, b"")
    assert stream.closed
