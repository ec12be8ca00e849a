"""Sources and root on an object store, over HTTP: the tables of the same files on disk, through faults as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audited import assert_equal_tables, by_uri, noise_jpeg, rows, run, small_set, write_files
from botocore.exceptions import ClientError
from fault_proxy import FaultProxy, Rule
from held import ended, start
from s3_servers import bucket_on, moto_port, new_store, use_credentials

import pipeline
from pipeline.audit import Audit
from pipeline.cli import main
from pipeline.errors import IncompleteError
from pipeline.layout.root import Root
from pipeline.layout.snapshots import SourceRecord, catalog_rows
from pipeline.stages.catalog import Wanted, update_catalog
from pipeline.storage import StorageConfig, Store, open_store
from pipeline.storage.s3_errors import translated

FILES = small_set(10)
STORAGE: dict[str, Any] = {"region": "us-east-1", "backoff": 0.0, "read_timeout": 5.0}


REGION = ["--region", "us-east-1"]
QUIET = [*REGION, "--runner", "local", "--quiet"]


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(monkeypatch)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("disk")
    return run(write_files(folder / "photos", FILES), root=folder / "audit")


@pytest.fixture
def photos() -> Store:
    """The small set under a prefix of its own."""
    store = new_store(moto_port(), "photos")
    for uri, data in FILES.items():
        store.put(uri, data)
    return store


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with FaultProxy(moto_port()) as running:
        yield running


def beside(store: Store, name: str) -> str:
    return f"{store.uri.rpartition('/')[0]}/{name}"


def through(proxy: FaultProxy, uri: str) -> str:
    """The same place, reached through the proxy."""
    return uri.replace(f"127.0.0.1:{moto_port()}", f"127.0.0.1:{proxy.port}")


def test_minio_uris(photos: Store, on_disk: Audit) -> None:
    """minio://host:port/bucket for source and root: the tables of the disk; the second run does nothing."""
    root = beside(photos, "audit")
    audit = run(photos.uri, root=root, storage=STORAGE, shard_size=5)
    assert_equal_tables(audit, on_disk)
    again = run(photos.uri, root=root, storage=STORAGE)

    assert {stage["stage"] for stage in again.published.session["stages"] if stage["attempts"]} == {"catalog"}
    assert again.audit_id == audit.audit_id
    assert_equal_tables(again, on_disk)
    store = audit.root.open()
    holding = [info.key for info in store.list() if b"testingsecret" in store.read(info.key)]
    assert holding == []  # no credential stays in the root


def test_an_object_store_has_no_time(photos: Store, on_disk: Audit) -> None:
    """Rows hold the etag, which tells a changed object; the time is null, as the schema says."""
    root = Root(beside(photos, "audit"), StorageConfig(**STORAGE))
    wanted = Wanted((SourceRecord(photos.uri, ""),))
    snapshot = update_catalog(root, wanted, lambda *_: False, lambda *_: None).snapshot
    listed = catalog_rows(root.open(), snapshot, 0, snapshot.total)

    assert snapshot.total == on_disk.table("images").num_rows
    assert listed["etag"].null_count == 0
    assert listed["mtime_ns"].null_count == snapshot.total
    assert update_catalog(root, wanted, lambda *_: False, lambda *_: None).snapshot == snapshot


def test_a_prefix_under_which_nothing_is(photos: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped one is a path that does not exist: 3, and its name. Files that are no images are an empty audit."""
    root, typo, other = (beside(photos, name) for name in ("audit", "fotos", "other"))
    assert main(["run", typo, "--root", root, *QUIET]) == 3
    assert f"list {typo}: nothing is there. Check the path" in capsys.readouterr().err
    assert main(["run", photos.uri, typo, "--root", root, *QUIET]) == 3
    open_store(other, StorageConfig(**STORAGE)).put("a.psd", b"x")
    assert run(other, root=root, storage=STORAGE).summary()["images"]["live"] == 0


def test_odd_keys_are_images_of_their_own(tmp_path: Path) -> None:
    """`.`, `..`, nothing between slashes and a slash at the end are parts of a key; `..` is nobody's label. Each image
    is read from its own place: its copy on the disk has the same bytes.
    """
    store = new_store(moto_port(), "odd")
    keys = ["cat/../b.jpg", "cat/./b.jpg", "cat//b.jpg", "cat/b.jpg", "../b.jpg", "b.jpg", "dog/../../b.jpg"]
    photos = {key: noise_jpeg(number) for number, key in enumerate(keys)}
    for key, data in {**photos, "cat/": b"", "cat/c.jpg/": b"x", "cat/.hidden.jpg": noise_jpeg(9)}.items():
        store.put(key, data)
    disk = write_files(tmp_path / "disk", {f"{number}.jpg": data for number, data in enumerate(photos.values())})
    pairs = {(f"{number}.jpg", key) for number, key in enumerate(keys)}
    audit = run(disk, store.uri, root=tmp_path / "one", storage=STORAGE)
    assert copies(audit) == pairs
    labels = {row["uri"]: row["label"] for row in rows(audit, "images") if row["source"] == 1}
    assert labels == dict(zip(keys, ["cat", "cat", "cat", "cat", None, None, "dog"], strict=True))
    assert (audit.summary()["left_out"], audit.summary()["hidden"]) == (1, 1)
    write_files(tmp_path, {"l.txt": "\n".join(f"{store.uri}/{key}" for key in keys).encode()})
    audit = run(disk, tmp_path / "l.txt", root=tmp_path / "two", storage=STORAGE)
    assert {(uri, name.removeprefix(f"{store.uri}/")) for uri, name in copies(audit)} == pairs


def copies(audit: Audit) -> set[tuple[str, str]]:
    """The pairs of the same bytes."""
    return {(row["uri"], row["match_uri"]) for row in rows(audit, "duplicates") if row["kind"] == "same_bytes"}


def test_a_folder_that_a_console_made_is_empty(photos: Store) -> None:
    """Its marker is an object: the path is there, and holds no image."""
    empty = beside(photos, "empty")
    open_store(empty, StorageConfig(**STORAGE)).put("", b"")

    audit = run(empty, root=beside(photos, "audit"), storage=STORAGE)
    assert audit.summary()["images"]["live"] == 0


def test_s3_uris_from_the_command_line(
    photos: Store, on_disk: Audit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """s3:// with an endpoint, a root on disk, and a named server: one set of tables."""
    port = moto_port()
    path = photos.uri.partition(f":{port}/")[2]
    url = f"http://127.0.0.1:{port}"
    plain = [
        "--root",
        str(tmp_path / "audit"),
        "--endpoint-url",
        url,
        "--region",
        "us-east-1",
        "--runner",
        "local",
        "-q",
    ]
    assert main(["run", f"s3://{path}", *plain]) == 0
    named = [f"minio://lab/{path.rpartition('/')[0]}/named", "--endpoint", f"lab={url}", *REGION]
    assert main(["run", f"minio://lab/{path}", "--root", *named, "--runner", "local", "-q"]) == 0
    capsys.readouterr()
    assert main(["show", "summary", "--root", *named]) == 0

    assert "images      13 (12 ok, 1 invalid: " in capsys.readouterr().out
    assert_equal_tables(pipeline.open(tmp_path / "audit"), on_disk)
    lab = {"endpoints": {"lab": url}, "region": "us-east-1"}
    assert_equal_tables(pipeline.open(named[0], storage=lab), on_disk)


def test_a_quiet_run_is_quiet_and_one_full_stop_ends_what_a_server_says(photos: Store, tmp_path: Path) -> None:
    """botocore told on every run where it found credentials; a server's message brings its own full stop."""
    assert ended(start(["run", photos.uri, "--root", str(tmp_path / "audit"), *QUIET, "--json"])).startswith("{")
    nowhere = f"minio://127.0.0.1:{moto_port()}/no-such-bucket/photos"
    said = ended(start(["run", nowhere, "--root", str(tmp_path / "other"), *QUIET]), 3)
    assert said.count("\n") == 1
    assert "There is no such bucket" in said
    answer = {"Error": {"Code": "InvalidAccessKeyId", "Message": "It does not exist in our records."}}
    assert "our records. Set " in str(translated(ClientError(answer, "ListObjectsV2"), "list s3://b"))


def test_faults_do_not_show_in_the_tables(photos: Store, on_disk: Audit, proxy: FaultProxy) -> None:
    """Throttling, dropped connections, truncated and flipped bodies, lost replies: read and written all the same."""
    proxy.inject(
        Rule("status:503:SlowDown", "GET", r"list-type=2", count=2),
        Rule("status:503:SlowDown", "GET", r"/a0[0-2]\.jpg", count=6),
        Rule("reset", "GET", r"/b0\d\.jpg", count=5),
        Rule("truncate:700", "GET", r"(/a0[3-4]\.jpg|half\.jpg)", count=4),
        Rule("flip:900", "GET", r"copy\.jpg", count=1),
        Rule("status:500:InternalError", "PUT", r"rows-", count=2),
        Rule("drop_after", "PUT", r"(snapshot|rows-|part-)", count=3),
        Rule("truncate:50", "GET", r"\.(parquet|npy|npz|json)", count=6),
    )
    audit = run(through(proxy, photos.uri), root=through(proxy, beside(photos, "audit")), storage=STORAGE, shard_size=8)

    assert_equal_tables(audit, on_disk)
    injected = [fault for _, _, fault in proxy.log if fault]
    assert len(injected) > 25
    assert {fault.split(":")[0] for fault in injected} == {"status", "reset", "truncate", "flip", "drop_after"}


@pytest.mark.slow
def test_unreadable_objects_end_incomplete_and_are_tried_again(
    photos: Store, on_disk: Audit, proxy: FaultProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An object that never answers is over 1%: exit 4 with the command that resumes, which reads only that one."""
    root = through(proxy, beside(photos, "audit"))
    proxy.inject(
        Rule("status:503:SlowDown", "GET", r"b03\.jpg", count=10**6),
        Rule("status:403:AccessDenied", "GET", r"half\.jpg", count=10**6),
    )
    command = [
        "run",
        through(proxy, photos.uri),
        "--root",
        root,
        "--region",
        "us-east-1",
        "--runner",
        "local",
        "--quiet",
    ]
    assert main(command) == 4
    message = capsys.readouterr().err

    assert "2 of 13 images could not be read (1 denied, 1 timeout)" in message
    assert f"Resume with: image-audit {' '.join(command)}" in message
    proxy.inject()
    assert main(command) == 0
    fetched = [path for method, path, _ in proxy.log if method == "GET" and "/photos/" in path]
    audit = pipeline.open(root, storage=STORAGE)
    assert_equal_tables(audit, on_disk)
    (again,) = [stage for stage in audit.published.session["stages"] if stage["stage"] == "extract again"]
    assert again["counters"]["images"] == 2
    assert sum("b03.jpg" in path for path in fetched) >= 1


def test_a_few_unreadable_objects_are_statuses(photos: Store, on_disk: Audit, proxy: FaultProxy) -> None:
    """Under max_failed_share they are rows of invalid; the next run tries them again and finds what they are."""
    root = through(proxy, beside(photos, "audit"))
    source = through(proxy, photos.uri)
    proxy.inject(Rule("status:403:AccessDenied", "GET", r"b03\.jpg", count=10**6))
    first = run(source, root=root, storage=STORAGE, max_failed_share=0.2)
    invalid = {uri: row["status"] for uri, row in by_uri(first, "invalid").items()}
    denied = next(uri for uri in FILES if "b03" in uri)

    assert invalid == {denied: "denied", "train/b/cut.jpg": "truncated"}
    assert by_uri(first, "images")[denied]["representative_id"] is None
    proxy.inject()
    second = run(source, root=root, storage=STORAGE, neighbours={"space": "new"})  # the kept one never saw the image
    assert_equal_tables(second, on_disk)
    assert first.audit_id != second.audit_id


@pytest.fixture
def vanishing(photos: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """After the catalog is taken one object is deleted and one replaced by another picture of the same length."""
    from pipeline import plan

    taken = plan.take_snapshot

    def take_and_meddle(*arguments: object) -> object:
        snapshot = taken(*arguments)  # type: ignore[arg-type]
        photos.delete("test/a/copy.jpg")
        old = FILES["val/b/half.jpg"]
        new = noise_jpeg(1, 48)[: len(old)]
        photos.put("val/b/half.jpg", new + bytes(len(old) - len(new)))
        monkeypatch.setattr(plan, "take_snapshot", taken)
        return snapshot

    monkeypatch.setattr(plan, "take_snapshot", take_and_meddle)
    return photos


def test_objects_that_change_after_the_listing(vanishing: Store) -> None:
    """Deleted: missing; replaced: changed; neither is in another table; the next run sees what is there then."""
    root = beside(vanishing, "audit")
    first = run(vanishing.uri, root=root, storage=STORAGE, max_failed_share=0.5)
    invalid = by_uri(first, "invalid")

    assert {uri: row["status"] for uri, row in invalid.items()} == {
        "test/a/copy.jpg": "missing",
        "val/b/half.jpg": "changed",
        "train/b/cut.jpg": "truncated",
    }
    assert rows(first, "groups") == [row for row in rows(first, "leaks") if row["severity"] >= 3] == []
    second = run(vanishing.uri, root=root, storage=STORAGE)
    after = by_uri(second, "images")
    assert "test/a/copy.jpg" not in after
    assert after["val/b/half.jpg"]["status"] == "ok"
    assert after["val/b/half.jpg"]["image_id"] == len(FILES)
    assert set(by_uri(second, "invalid")) == {"train/b/cut.jpg"}


def test_changes_over_the_limit_end_incomplete(vanishing: Store) -> None:
    """Two of thirteen is over 1%."""
    with pytest.raises(IncompleteError, match=r"2 of 13 images could not be read \(1 changed, 1 missing\)"):
        run(vanishing.uri, root=beside(vanishing, "audit"), storage=STORAGE)


def test_missing_bucket_is_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As source and as root: the message names the bucket."""
    nowhere = f"minio://127.0.0.1:{moto_port()}/no-such-bucket"
    photos = write_files(tmp_path / "photos", {"a.jpg": noise_jpeg(1)})
    for source, root in ((f"{nowhere}/photos", str(tmp_path / "audit")), (str(photos), f"{nowhere}/audit")):
        assert main(["run", source, "--root", root, *QUIET]) == 3
        printed = capsys.readouterr()
        assert "no-such-bucket" in printed.err
        assert printed.out == ""
    assert main(["show", "leaks", "--root", f"{nowhere}/audit", *REGION]) == 3
    assert "no-such-bucket" in capsys.readouterr().err


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"])
def test_wrong_credentials_are_3(
    code: str, photos: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The bucket is named, the credentials are not; no object of the source is tried one by one."""
    use_credentials(monkeypatch, "AKIAWRONGWRONGWRONG0", "wrongsecretwrongsecret")
    proxy.inject(Rule(f"status:403:{code}", count=10**6))
    root = through(proxy, beside(photos, "audit"))
    assert main(["run", through(proxy, photos.uri), "--root", root, *REGION, "--runner", "local"]) == 3
    message = capsys.readouterr().err

    assert bucket_on(moto_port()).rpartition("/")[2] in message
    for text in (message, caplog.text):
        assert "AKIAWRONG" not in text
        assert "wrongsecret" not in text
    assert proxy.requests() < 12


def test_credentials_that_expire_during_extraction_stop_at_once(
    photos: Store, on_disk: Audit, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are no status of an image: the run ends with 3, and the next one finishes."""
    root = through(proxy, beside(photos, "audit"))
    proxy.inject(Rule("status:400:ExpiredToken", "GET", r"/photos/.*\.jpg", count=10**6))
    command = ["run", through(proxy, photos.uri), "--root", root, *QUIET]
    assert main(command) == 3
    assert bucket_on(moto_port()).rpartition("/")[2] in capsys.readouterr().err
    proxy.inject()
    assert main(command) == 0
    assert_equal_tables(pipeline.open(root, storage=STORAGE), on_disk)
