"""A store behind TLS: its certificate is that of AWS_CA_BUNDLE, or nothing is read."""

from __future__ import annotations

import datetime
import ipaddress
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from moto.server import DomainDispatcherApplication, create_backend_app
from s3_servers import moto_port, new_store, quick, use_credentials
from werkzeug.serving import make_server

from pipeline.errors import StorageUnavailable
from pipeline.storage import open_store
from pipeline.storage.s3_client import forget_clients

pytestmark = pytest.mark.usefixtures("senders")
DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Files of a certificate for 127.0.0.1, signed by itself, and of its key."""
    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    today = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(encoding, kind, serialization.NoEncryption()))
    return str(folder / "cert.pem"), str(folder / "key.pem")


@pytest.fixture
def port(certificate: tuple[str, str]) -> Iterator[int]:
    """Of a server of moto's buckets that speaks TLS."""
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=certificate)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def anew() -> Iterator[None]:
    forget_clients()
    yield
    forget_clients()


def test_only_a_certificate_that_is_trusted(
    port: int, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_credentials(monkeypatch)
    plain = new_store(moto_port(), "tls")
    plain.put("x.bin", DATA)
    uri = "s3://" + plain.uri.removeprefix(f"minio://127.0.0.1:{moto_port()}/")
    store = open_store(uri, quick(endpoint_url=f"https://127.0.0.1:{port}", max_attempts=2))
    monkeypatch.setenv("AWS_CA_BUNDLE", certificate[0])
    info = store.stat("x.bin")
    for _ in range(3):
        assert store.read("x.bin", expect=info) == DATA
    forget_clients()
    monkeypatch.delenv("AWS_CA_BUNDLE")
    with pytest.raises(StorageUnavailable, match="AWS_CA_BUNDLE"):
        store.read("x.bin")


def test_a_certificate_that_is_trusted_no_more(
    port: int, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The bundle is replaced while the client lives: who connects anew is refused, and told what to check."""
    use_credentials(monkeypatch)
    plain = new_store(moto_port(), "tls")
    plain.put("x.bin", DATA)
    uri = "s3://" + plain.uri.removeprefix(f"minio://127.0.0.1:{moto_port()}/")
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(Path(certificate[0]).read_bytes())
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    store = open_store(uri, quick(endpoint_url=f"https://127.0.0.1:{port}", max_attempts=2))
    assert store.read("x.bin") == DATA
    monkeypatch.setattr("pipeline.storage.s3_get.is_main_thread", lambda: False)
    bundle.write_bytes(Path(certificate[0]).read_bytes().replace(b"M", b"N"))
    with pytest.raises(StorageUnavailable, match="AWS_CA_BUNDLE"):
        store.read("x.bin")
