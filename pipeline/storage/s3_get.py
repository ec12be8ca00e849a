"""GETs without what botocore does anew for each call: 0.27 ms of a core, not 1.8; 0.17 where they are begun.

botocore makes the first GET of a bucket. What it then knew (address, region, signature, headers) serves the others.
Anything unusual goes the long way: another kind of signature, no credentials, a redirect to another region.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, TypeVar
from urllib.parse import urlsplit

import botocore.httpchecksum
import botocore.parsers
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError, FlexibleChecksumError, IncompleteReadError
from botocore.httpsession import get_cert_path
from botocore.utils import percent_encode

from pipeline.storage.counts import count_request
from pipeline.storage.curl import CurlGets
from pipeline.storage.curl_handle import CurlParams
from pipeline.storage.redact import remember
from pipeline.storage.s3_sign import signed_headers
from pipeline.storage.s3_whole import most_bytes, read_at_most
from pipeline.storage.transfers import Transfer

T = TypeVar("T")
_FRESH_SECONDS = 60.0
_SIGNATURES = ("s3v4", "v4")
_KEPT_HEADERS = ("User-Agent", "x-amz-checksum-mode")
_ELSEWHERE = {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "301", "307"}
_CHECKSUMS: dict[str, Any] = getattr(botocore.httpchecksum, "_CHECKSUM_CLS", {})


@dataclass(frozen=True)
class _Way:
    """How GETs of one bucket are sent: where to, what the signature is for, headers.

    base: path before the key. host: with its scheme. curl: None where botocore's session has to send them.
    """

    curl: CurlGets | None
    base: str
    host: str
    region: str
    service: str
    headers: dict[str, str]


class PlainGets:
    """get_object of one client, for many small objects; safe to use from several threads."""

    def __init__(self, client: Any, credentials: Any) -> None:
        self._client, self._credentials = client, credentials
        self._ways: dict[str, _Way] = {}
        self._asking = threading.local()
        self._shape = client.meta.service_model.operation_model("GetObject").output_shape
        client.meta.events.register_last("before-sign.s3.GetObject", self._learn)

    def get(self, request: dict[str, Any], most: int) -> dict[str, Any]:
        """Do get_object(Bucket, Key, Range, IfMatch); the answer holds those of its fields that are looked at here.

        Within `BegunGet.answering` it takes that answer. Raises what the client itself would, and TooLarge instead of
        reading more than `most` bytes (0 = any number); the body of a client's answer is still to be read.
        """
        begun, way = self._taken(request), self._ways.get(request["Bucket"])
        if begun is not None:
            answer = self._answered(request, *begun.answer())
        else:
            sent = None if way is None else self._sent(way, *self._signed(way, request), most)
            answer = None if sent is None else self._answered(request, *sent)
        return self._long_way(request) if answer is None else answer

    def begin(self, request: dict[str, Any]) -> BegunGet | None:
        """Ask what a `get` of this thread is going to ask for; None where that has to ask itself: for the first of a
        bucket, and through a proxy.
        """
        way = self._ways.get(request["Bucket"])
        if way is None or way.curl is None:
            return None
        path, headers = self._signed(way, request)
        transfer = way.curl.begin(way.host + path, headers, most_bytes(request.get("Range", "")))
        return None if transfer is None else BegunGet(transfer, request, self._asking)

    def _taken(self, request: dict[str, Any]) -> Transfer | None:
        """The GET that was begun for a request, once. One that was refused a while after it was signed is asked for
        anew: a process that was stopped, or slept, sends what it signed before.
        """
        begun: BegunGet | None = getattr(self._asking, "begun", None)
        self._asking.begun = None
        if begun is None or begun.request != request:
            return None
        if begun.transfer.is_refused and time.time() - begun.signed > _FRESH_SECONDS:
            count_request("s3.get")
            return None
        return begun.transfer

    def _long_way(self, request: dict[str, Any]) -> dict[str, Any]:
        self._asking.request, self._asking.way = request, None
        try:
            answer: dict[str, Any] = self._client.get_object(**request)
        finally:
            self._asking.request = None
        if self._asking.way is not None:  # it led to an answer, so the session has connections to that host
            self._ways[request["Bucket"]] = replace(self._asking.way, curl=self._curl(self._asking.way.host))
        return answer

    def _curl(self, host: str) -> CurlGets | None:
        """What sends GETs there, set up as the client's session is; None where a proxy or a certificate of ours is."""
        session = self._client._endpoint.http_session
        if session._proxy_config.proxy_url_for(host) is not None or session._cert_file:
            return None
        trusted = get_cert_path(session._verify) if session._verify else ""
        config = self._client.meta.config
        return CurlGets(CurlParams(config.connect_timeout, config.read_timeout, trusted or ""))

    def _learn(self, request: AWSRequest, signature_version: str, region_name: str, **context: Any) -> None:
        """Handler of `before-sign`: keep how botocore sends what this thread asks for."""
        asked = getattr(self._asking, "request", None)
        if asked is None or self._credentials is None or signature_version not in _SIGNATURES:
            return
        signing = request.context.get("signing", {})
        name, url = percent_encode(asked["Key"], safe="/~"), str(request.url)
        if not url.endswith(f"/{name}") or set(signing) - {"region", "signing_name", "disableDoubleEncoding"}:
            return
        headers = {kept: str(request.headers[kept]) for kept in _KEPT_HEADERS if kept in request.headers}
        region = signing.get("region") or region_name
        service = signing.get("signing_name") or context["signing_name"]
        base = urlsplit(url.removesuffix(name))
        self._asking.way = _Way(None, base.path, f"{base.scheme}://{base.netloc}", region, service, headers)

    def _signed(self, way: _Way, request: dict[str, Any]) -> tuple[str, dict[str, str]]:
        """Path and headers of a request that is sent now."""
        headers = {"Host": urlsplit(way.host).netloc, **way.headers}
        headers |= {"Range": request["Range"]} if "Range" in request else {}
        headers |= {"If-Match": request["IfMatch"]} if "IfMatch" in request else {}
        path = way.base + percent_encode(request["Key"], safe="/~")
        credentials, now = self._credentials.get_frozen_credentials(), datetime.now(timezone.utc)
        remember(credentials.access_key, credentials.secret_key, credentials.token)
        return path, signed_headers(headers, path, (way.region, way.service), credentials, now)

    def _answered(self, request: dict[str, Any], status: int, told: Any, body: bytes) -> dict[str, Any] | None:
        """What an answer means, None where the bucket has moved to another region."""
        if status in (200, 206):
            return _fields(status, told, body)
        document = {"headers": told, "status_code": status, "body": body}
        failure = botocore.parsers.create_parser("rest-xml").parse(document, self._shape)
        if failure.get("Error", {}).get("Code") in _ELSEWHERE:
            self._ways.pop(request["Bucket"], None)
            return None
        raise ClientError(failure, "GetObject")

    def _sent(self, way: _Way, path: str, headers: dict[str, str], most: int) -> tuple[int, Any, bytes]:
        """Status, headers, of which names in lower case are found, and body."""
        if way.curl is not None and not is_main_thread():
            return way.curl.get(way.host + path, headers, most)
        made = AWSRequest("GET", way.host + path, headers, stream_output=True).prepare()
        got = self._client._endpoint.http_session.send(made)
        return got.status_code, got.headers, read_at_most(got.raw, int(got.headers.get("content-length", -1)), most)


class BegunGet:
    """A GET that was begun, for the thread that began it."""

    def __init__(self, transfer: Transfer, request: dict[str, Any], asking: threading.local) -> None:
        self.transfer, self.request, self.signed = transfer, request, time.time()
        self._asking, self._is_taken = asking, False

    def wait(self) -> bool:
        """Until it is done; whether it brought the object."""
        self.transfer.wait()
        return self.transfer.is_ok

    def when_failed(self, act: Callable[[], None]) -> None:
        """`act` is called once, while this thread waits for any, when it is seen that it brought something else."""
        self.transfer.when_failed(act)

    def answering(self, read: Callable[[], T]) -> T:
        """What `read` returns, whose first `get` takes what this one brought; in any thread, once it is done."""
        self._asking.begun, self._is_taken = self, True
        try:
            return read()
        finally:
            self._asking.begun = None

    def cancel(self) -> None:
        """Nobody is going to read it."""
        self.transfer.cancel()
        if not self._is_taken:
            count_request("s3.get")


def is_main_thread() -> bool:
    """Whether signals come to this thread: libcurl would hold them back until the answer is there."""
    return threading.current_thread() is threading.main_thread()


def _fields(status: int, headers: Any, body: bytes) -> dict[str, Any]:
    promised = int(headers.get("content-length", -1))
    if len(body) < promised:
        raise IncompleteReadError(actual_bytes=len(body), expected_bytes=promised)
    for algorithm, checksum in _CHECKSUMS.items():
        told = headers.get(f"x-amz-checksum-{algorithm}", "-")
        if "-" in told:  # none, or of the parts of an upload
            continue
        seen = checksum()
        seen.update(body)
        if seen.b64digest() != told:
            raise FlexibleChecksumError(error_msg=f"{algorithm} {seen.b64digest()}, wanted {told}")
        break
    answer: dict[str, Any] = {
        "Body": io.BytesIO(body),
        "ContentLength": promised,
        "ETag": headers.get("etag", ""),
        "ResponseMetadata": {"HTTPStatusCode": status, "RetryAttempts": 0},
    }
    named = {
        "ContentRange": "content-range",
        "ServerSideEncryption": "x-amz-server-side-encryption",
        "SSECustomerAlgorithm": "x-amz-server-side-encryption-customer-algorithm",
    }
    return answer | {field: headers[header] for field, header in named.items() if header in headers}
