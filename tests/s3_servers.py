"""Object stores for tests: moto in the process, ministack as a process, Ceph RGW from unpacked Debian packages.

Each is started on first use, once per process, and stopped at exit. All of them take the keys `testing` and
`testingsecret` from the environment that `use_credentials` sets.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipeline.storage import StorageConfig, Store, open_store

RGW_VARIABLE = "IMAGE_AUDIT_RGW"
"""Names the folder that the Debian packages of Ceph RGW were unpacked into (see rgw_port); unset = not tested."""


def quick(**changes: object) -> StorageConfig:
    """Return a config that does not wait between attempts."""
    return StorageConfig(**{"backoff": 0.0, "read_timeout": 5.0, "region": "us-east-1", **changes})  # type: ignore[arg-type]


def use_credentials(monkeypatch: pytest.MonkeyPatch, key: str = "testing", secret: str = "testingsecret") -> None:
    """Set the AWS environment to these keys and nothing else. After other keys, call `forget_clients`."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@functools.cache
def bucket_on(port: int) -> str:
    """Create the tests' bucket on a server; return `minio://server/bucket`."""
    bucket = "image-audit-tests"
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="testing",
        aws_secret_access_key="testingsecret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=bucket)
    return f"minio://127.0.0.1:{port}/{bucket}"


def new_store(port: int, prefix: str = "", **changes: object) -> Store:
    """Open an empty store."""
    return open_store(f"{bucket_on(port)}/{uuid.uuid4().hex}/{prefix}", quick(**changes))


def put_in_parts(store: Store, key: str, data: bytes) -> None:
    """Put an object whose ETag is no MD5."""
    server, bucket, prefix = store.uri.removeprefix("minio://").split("/", 2)
    client = boto3.client("s3", endpoint_url=f"http://{server}", region_name="us-east-1")
    place = {"Bucket": bucket, "Key": f"{prefix}/{key}"}
    place["UploadId"] = client.create_multipart_upload(**place)["UploadId"]
    part = {"ETag": client.upload_part(**place, PartNumber=1, Body=data)["ETag"], "PartNumber": 1}
    client.complete_multipart_upload(**place, MultipartUpload={"Parts": [part]})


@functools.cache
def moto_port() -> int:
    """Start moto's server on a thread of this process."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    atexit.register(server.stop)
    return int(server.get_host_and_port()[1])


@functools.cache
def ministack_port() -> int:
    """Start ministack, which shares no code with moto."""
    port = free_port()
    settings = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SERVICES": "s3"}
    process = _start([sys.executable, "-m", "ministack"], settings)
    _wait_for(f"http://127.0.0.1:{port}/_ministack/health", process)
    return port


@functools.cache
def rgw_port() -> int:
    """Start a one-node Ceph RGW, all in memory, without root services. Make its folder by

        apt-get install -s --no-install-recommends radosgw ceph-mon ceph-osd ceph-mgr | awk '/^Inst/{print $2}' \\
            | xargs apt-get download; for deb in *.deb; do dpkg -x $deb root; done

    and pass it as IMAGE_AUDIT_RGW=/path/to/root.
    """
    port, monitor = free_port(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="rgw-"))
    script = Path(__file__).with_name("rgw.sh")
    settings = {"R": os.environ[RGW_VARIABLE], "D": str(folder), "PORT": str(port), "MONP": str(monitor)}
    with (folder / "start.log").open("wb") as log:  # a pipe would stay open in the daemons
        command = ["bash", str(script)]
        atexit.register(_terminate, folder / "run")
        subprocess.run(command, env={**os.environ, **settings}, check=True, timeout=120, stdout=log, stderr=log)
    return port


def _terminate(folder: Path) -> None:
    """End the daemons whose process ids are in this folder of ours."""
    for file in folder.glob("*.pid"):
        os.kill(int(file.read_text()), signal.SIGTERM)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _start(command: list[str], settings: dict[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def stop() -> None:
        process.terminate()
        process.wait(10)

    atexit.register(stop)
    return process


def _wait_for(url: str, server: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    """Wait until the server answers or ends, whichever comes first."""
    deadline = time.monotonic() + seconds
    while not _answers(url):
        assert time.monotonic() < deadline, f"{url} does not answer"
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"{server.args!r} ended with {server.wait(0.05)}")


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except (urllib.error.URLError, ConnectionError):
        return False
    return True
