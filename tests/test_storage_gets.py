"""GETs that go around botocore: signed as it signs, sent as it sends, and by it where anything is unusual."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import botocore.auth
import fault_proxy
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.utils import percent_encode
from fault_proxy import FaultProxy
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_servers import moto_port, new_store, quick, use_credentials

from pipeline.errors import NotFound
from pipeline.storage import open_store, redact
from pipeline.storage.curl import CurlGets
from pipeline.storage.curl_handle import CurlParams
from pipeline.storage.s3_client import forget_clients
from pipeline.storage.s3_sign import signed_headers

READ = fault_proxy._read_request
words = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=12)

pytestmark = pytest.mark.usefixtures("senders")


@settings(max_examples=60, deadline=None)
@given(
    key=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    more=st.dictionaries(st.sampled_from(["Range", "If-Match", "User-Agent", "x-amz-checksum-mode"]), words),
    token=st.none() | words,
    place=st.tuples(words, st.sampled_from(["s3", "s3-outposts"])),
)
def test_the_signature_is_botocores(key: str, more: dict[str, str], token: str | None, place: tuple[str, str]) -> None:
    path = f"/bucket/{percent_encode(key, safe='/~')}"
    request = AWSRequest("GET", f"http://host:9000{path}", headers={"Host": "host:9000", **more})
    credentials = Credentials("AKIA", "secret", token).get_frozen_credentials()
    botocore.auth.S3SigV4Auth(credentials, place[1], place[0]).add_auth(request)
    now = datetime.strptime(request.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    ours = signed_headers({"Host": "host:9000", **more}, path, place, credentials, now)
    assert ours["Authorization"] == request.headers["Authorization"]
    assert ours.get("X-Amz-Security-Token") == request.headers.get("X-Amz-Security-Token") == token
    assert urlsplit(request.url).path == path


def test_keys_of_all_kinds_come_from_the_place_they_were_put(monkeypatch: pytest.MonkeyPatch) -> None:
    use_credentials(monkeypatch)
    store = new_store(moto_port())
    kept = ["a b", "a+b", "a%20b", "a//b", "a/../b", "./a", "?x=1", "#", "~-._", "日本/😀", "a&b=c;d", "'\"<>"]
    for key in kept:
        store.put(key, key.encode())
    for key in kept * 2:
        assert store.read(key) == key.encode()
        assert store.read_range(key, 0, 2, expect=store.stat(key)) == key.encode()[:2]


def test_a_key_that_is_no_utf8_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 has no such keys; a list may name one. Asked on the long way, which comes first, and on the short one."""
    use_credentials(monkeypatch)
    store, key = new_store(moto_port()), "a\udce9.jpg"
    store.put("a", b"1")
    forget_clients()
    for ask in (store.read, store.stat, store.open, store.delete, lambda key: store.read_range(key, 0, 1)):
        with pytest.raises(NotFound, match="no UTF-8"):
            ask(key)
    assert not store.exists(key)
    store.read("a")
    with pytest.raises(NotFound, match="no UTF-8"):
        store.read(key)


def test_other_credentials_are_used_from_the_next_request_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a client without any goes the long way, which says what is missing."""
    use_credentials(monkeypatch)
    direct = new_store(moto_port())
    direct.put("x", b"1")
    seen: list[str] = []
    with FaultProxy(moto_port()) as proxy:
        path = direct.uri.removeprefix(f"minio://127.0.0.1:{moto_port()}/")
        store = open_store(f"minio://127.0.0.1:{proxy.port}/{path}", quick())
        for name in ("first", "second"):
            use_credentials(monkeypatch, name, f"{name}-secret")
            monkeypatch.setenv("AWS_SESSION_TOKEN", f"{name}-token")
            forget_clients()
            heads = record_heads(monkeypatch)
            assert [store.read("x") for _ in range(3)] == [b"1"] * 3
            assert len(heads) == 3
            assert all(f"Credential={name}/" in head and f"{name}-token" in head for head in heads)
            seen += heads
    forget_clients()
    assert len({head.partition("User-Agent: ")[2].partition("\n")[0] for head in seen}) == 1
    assert os.environ["AWS_SESSION_TOKEN"] == "second-token"


PROCESS = """
import datetime, json, sys
name = open(sys.argv[1]).read()
until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=5)
print(json.dumps({"Version": 1, "AccessKeyId": f"key-of-{name}", "SecretAccessKey": f"secret-of-{name}",
                  "SessionToken": f"token-of-{name}", "Expiration": until.isoformat()}))
"""


def test_refreshed_credentials_are_masked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Temporary ones are replaced while a run goes on; those that expire so soon, before each request."""
    use_credentials(monkeypatch)
    store = new_store(moto_port())
    store.put("x", b"1")
    (tmp_path / "name").write_text("nobody")
    (tmp_path / "keys.py").write_text(PROCESS)
    command = f"{sys.executable} {tmp_path}/keys.py {tmp_path}/name"
    (tmp_path / "config").write_text(f"[profile refreshed]\ncredential_process = {command}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "refreshed")
    forget_clients()
    store.read("x")
    for ask, name in ((store.read, "the short way"), (store.stat, "botocore")):
        (tmp_path / "name").write_text(name)
        ask("x")
        assert redact(f"a secret-of-{name} b token-of-{name} c") == "a *** b *** c"
    forget_clients()


def record_heads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the proxy reads of each request from now on, as text."""
    heads: list[str] = []

    async def recorded(*streams: Any) -> fault_proxy.Message:
        request = await READ(*streams)
        heads.append("\n".join(f"{name}: {value}" for name, value in request.headers))
        return request

    monkeypatch.setattr(fault_proxy, "_read_request", recorded)
    return heads


def test_connections_go_with_their_client() -> None:
    """Nothing else holds on to what sends the GETs of a client that is forgotten."""
    gets = CurlGets(CurlParams(1.0, 1.0, ""))
    known = weakref.ref(gets)
    del gets
    gc.collect()
    assert known() is None
