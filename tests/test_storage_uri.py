"""Uris, storage configs and the promise that no credential is ever shown."""

from __future__ import annotations

import logging
import os
import pickle
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Rule
from hypothesis import given
from hypothesis import strategies as st
from s3_servers import bucket_on, free_port, moto_port, new_store, quick, use_credentials

from pipeline.errors import AuditError, BadCredentials, StorageError, UsageError
from pipeline.storage import RedactingFilter, StorageConfig, canonical_uri, is_remote, open_store, redact
from pipeline.storage.s3_client import forget_clients

KEY_ID, SECRET, TOKEN = "AKIACANARYCANARYCANA", "canary/Secret+0123456789abcdefghijklmnop", "canaryTokenFQoGZXIvYXdz=="
CANARIES = (KEY_ID, SECRET, TOKEN, "hunter2hunter2")
CONFIG = StorageConfig(endpoints={"lab": "https://minio.lab.example:9000"})


@pytest.mark.parametrize(
    ("uri", "canonical"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3://bucket/a//b?c=1#d%20", "s3://bucket/a//b?c=1#d%20"),
        ("minio://lab/bucket/a/", "minio://lab/bucket/a"),
        ("minio://127.0.0.1:9000/bucket", "minio://127.0.0.1:9000/bucket"),
        ("minio://[::1]:9000/bucket/x", "minio://[::1]:9000/bucket/x"),
        ("file:///data/photos/", "/data/photos"),
        ("file://localhost/data/a%20b", "/data/a b"),
        ("file:///data/%FF", os.fsdecode(b"/data/\xff")),
        ("/data/../x//y/", "/x/y"),
        ("/data/a%20b", "/data/a%20b"),
        ("/", "/"),
    ],
)
def test_one_spelling(uri: str, canonical: str) -> None:
    assert canonical_uri(uri, CONFIG) == canonical
    assert open_store(uri, CONFIG).uri == canonical
    assert canonical_uri(canonical, CONFIG) == canonical
    assert is_remote(uri) == canonical.startswith(("s3:", "minio:"))


def test_plain_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert canonical_uri("photos/", CONFIG) == str(tmp_path / "photos")
    assert canonical_uri(Path("photos"), CONFIG) == str(tmp_path / "photos")
    assert canonical_uri("~/photos", CONFIG) == "/home/someone/photos"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "nul\0",
        "https://example.org/a.jpg",
        "gs://bucket/x",
        "s3://",
        "s3:///x",
        "s3://a",
        "s3://bucket--usw2-az1--x-s3/x",
        "minio://bucket/x",
        "minio://lab/",
        "minio://host:99999/bucket",
        "file://other-host/x",
        "file://relative",
        f"s3://{KEY_ID}:hunter2hunter2@bucket/x",
        "minio://user:hunter2hunter2@127.0.0.1:9000/bucket",
        f"s3://bucket/x?X-Amz-Signature={SECRET}",
    ],
)
def test_what_is_no_store_is_refused_without_showing_secrets(uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_store(uri, CONFIG)
    assert not any(canary in str(caught.value) for canary in CANARIES)


def test_all_problems_of_a_config_in_one_message() -> None:
    with pytest.raises(UsageError) as caught:
        StorageConfig(endpoints={"a": "http://u:hunter2hunter2@h:1", "b": "h:1"}, max_attempts=0, connect_timeout=-1)
    message = str(caught.value)
    assert all(part in message for part in ("a: ", "b: ", "max_attempts", "connect_timeout"))
    assert "hunter2" not in message


def test_a_config_pickles_and_compares() -> None:
    assert pickle.loads(pickle.dumps(CONFIG)) == CONFIG
    assert hash(CONFIG) == hash(pickle.loads(pickle.dumps(CONFIG)))


@pytest.mark.parametrize(
    "text",
    [
        "GET http://user:{}@host:9000/x",
        "GET http://{}@host/x",
        "https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIA%2F1&X-Amz-Signature={}&x=1",
        "X-Amz-Security-Token={}",
        "x-amz-security-token: {}",
        "Authorization: AWS4-HMAC-SHA256 Credential=AKIAABCDEFGHIJKLMNOP/2026/us/s3, Signature={}",
        "{{'aws_secret_access_key': '{}'}}",
        '{{"SecretAccessKey": "{}", "x": 1}}',
        "MINIO_ROOT_PASSWORD={}",
        "<SessionToken>{}</SessionToken>",
        "Authorization: Bearer {}",
        "https://hooks.example/?token={}",
    ],
)
def test_secrets_by_their_name(text: str) -> None:
    masked = redact(text.format("qWeRtY0123456789"))
    assert "qWeRtY0123456789" not in masked
    assert "***" in masked
    assert "AKIAABCDEFGHIJKLMNOP" not in masked
    assert redact(masked) == masked


@given(st.text(max_size=60))
def test_redaction_is_idempotent(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text", ["s3://bucket/train/cat@home.jpg", "/data/tokens/a.jpg", "no secret here, no password either"]
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_credentials(monkeypatch, KEY_ID, SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    forget_clients()
    yield
    forget_clients()


def shown(error: BaseException) -> str:
    """Everything that a log, a traceback with locals' reprs aside, or an inspection of the error could show."""
    parts = []
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        parts += [str(one), repr(one), repr(vars(one)), *traceback.format_exception(one)]
        pending += [one.__cause__, one.__context__]
    return "\n".join(parts) + repr(pickle.dumps(error))


@pytest.mark.usefixtures("canaries")
def test_no_canary_in_any_error_log_or_repr(caplog: pytest.LogCaptureFixture) -> None:
    bucket = bucket_on(moto_port()).rpartition("/")[2]
    caplog.set_level(logging.DEBUG)
    echo = f"AWSAccessKeyId={KEY_ID} {SECRET} {TOKEN}"
    texts = []
    with FaultProxy(moto_port()) as proxy:
        store = open_store(f"minio://127.0.0.1:{proxy.port}/{bucket}/canary", quick(max_attempts=2))
        store.put("x", b"1")
        store.put_if_absent("y", b"1")
        faults = ["status:503:SlowDown", "reset", "truncate:0", "flip:0", "err200"]
        faults += [f"status:403:{code}" for code in ("AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId")]
        faults += [f"status:400:{echo}", f"status:403:{echo}", f"status:500:{echo}", f"status:404:{echo}"]
        for fault in faults:
            for call in (store.read, store.stat, lambda _: list(store.list()), lambda key: store.put(key, b"1")):
                proxy.inject(Rule(fault, count=99))
                error = _error_of(call)
                texts.append(shown(error) if error is not None else "")
        texts += [str(store), repr(store), repr(pickle.dumps(store))]
    texts.append(shown(_error_of(open_store(f"minio://127.0.0.1:{free_port()}/{bucket}", quick(max_attempts=2)).read)))
    everything = "\n".join(texts) + caplog.text
    assert len([text for text in texts if text]) > 35
    assert "botocore" not in {record.name.split(".")[0] for record in caplog.records if record.levelno < logging.INFO}
    for canary in (*CANARIES, SECRET[:20], TOKEN[:20]):
        assert canary not in everything


def _error_of(call: object) -> AuditError | None:
    try:
        call("x")  # type: ignore[operator]
    except StorageError as error:
        return error
    return None


@pytest.mark.usefixtures("canaries")
def test_the_filter_masks_messages_arguments_and_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(RedactingFilter())
    logger = logging.getLogger("some.module")
    try:
        raise ValueError(f"key {SECRET}")
    except ValueError:
        logger.exception("with %s and %s", TOKEN, {"password": "hunter2hunter2"})
    assert "with *** and" in caplog.text
    assert "ValueError" in caplog.text
    for canary in CANARIES:
        assert canary not in caplog.text


def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(monkeypatch)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    forget_clients()
    try:
        store = open_store(f"{bucket_on(moto_port())}/x", quick())
        with pytest.raises(BadCredentials, match="Set AWS_ACCESS_KEY_ID"):
            list(store.list())
        monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
        forget_clients()
        with pytest.raises(BadCredentials, match="no-such-profile"):
            store.put_if_absent("x", b"1")
    finally:
        forget_clients()


def test_s3_uris_take_the_endpoint_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(monkeypatch)
    written = new_store(moto_port(), "e")
    written.put("x", b"1")
    path = written.uri.partition(f":{moto_port()}/")[2]
    by_config = open_store(f"s3://{path}", quick(endpoint_url=f"http://127.0.0.1:{moto_port()}"))
    by_name = open_store(f"minio://lab/{path}", quick(endpoints={"lab": f"http://127.0.0.1:{moto_port()}"}))
    assert by_config.read("x") == by_name.read("x") == b"1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{moto_port()}")
    forget_clients()
    assert open_store(f"s3://{path}", quick()).read("x") == b"1"
    forget_clients()


def test_a_disk_needs_no_boto3(tmp_path: Path) -> None:
    code = "import sys, pipeline.storage as s; s.open_store('/').exists('x'); assert 'boto3' not in sys.modules"
    paths = os.pathsep.join(path for path in sys.path if path)
    assert os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-c", code], {**os.environ, "PYTHONPATH": paths}) == 0
