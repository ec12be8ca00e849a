"""GETs over libcurl: a read takes 0.27 ms of a core beside threads that compute; over http.client and urllib3 0.57.

Not for the main thread: a signal would wait until the answer is there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import pycurl
from botocore.exceptions import SSLError

_CERTIFICATE = frozenset(
    {
        pycurl.E_SSL_CONNECT_ERROR, pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT_BADFILE,
        pycurl.E_SSL_CIPHER, pycurl.E_SSL_CERTPROBLEM, pycurl.E_SSL_ISSUER_ERROR, pycurl.E_SSL_INVALIDCERTSTATUS,
    }
)  # fmt: skip
_ALONE = ("Accept:", "Accept-Encoding: identity")  # none of the first, which curl sends by itself


@dataclass(frozen=True)
class CurlParams:
    """Seconds to connect and without a byte; certificates: file of those that are trusted, "" to trust any."""

    connect_timeout: float
    read_timeout: float
    certificates: str


class _Handle:
    """A handle of libcurl, which keeps its connections, and what came of the answer."""

    def __init__(self, params: CurlParams) -> None:
        self.lines = list[bytes]()
        self.pieces = list[bytes]()
        self.curl = pycurl.Curl()
        options: dict[int, Any] = {
            pycurl.NOSIGNAL: 1,
            pycurl.PROXY: "",  # none, whatever the environment says: who has one does not come here
            pycurl.PATH_AS_IS: 1,  # `a/../b` is a key of its own
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
            pycurl.TCP_KEEPALIVE: 1,
            pycurl.BUFFERSIZE: 131_072,
            pycurl.CONNECTTIMEOUT_MS: math.ceil(params.connect_timeout * 1000),
            pycurl.LOW_SPEED_LIMIT: 1,
            pycurl.LOW_SPEED_TIME: math.ceil(params.read_timeout),
            pycurl.HEADERFUNCTION: self.lines.append,
            pycurl.WRITEFUNCTION: self.pieces.append,
        }
        trust = {pycurl.CAINFO: params.certificates} if params.certificates else _TRUST_ANY
        for option, value in (options | trust).items():
            self.curl.setopt(option, value)


_TRUST_ANY: dict[int, Any] = {pycurl.SSL_VERIFYPEER: 0, pycurl.SSL_VERIFYHOST: 0}


class CurlGets:
    """GETs of one client; safe to use from several threads, each of which has a handle for as long as it asks."""

    def __init__(self, params: CurlParams) -> None:
        self._params = params
        self._idle = list[_Handle]()
        _MADE.add(self)

    def get(self, url: str, headers: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body. Raises ConnectionError, SSLError of botocore."""
        try:
            handle = self._idle.pop()
        except IndexError:
            handle = _Handle(self._params)
        try:
            return _asked(handle, url, headers)
        finally:
            handle.lines.clear()
            handle.pieces.clear()
            self._idle.append(handle)

    def leave_to_parent(self) -> None:
        """Lets go of the handles of the process that this one was forked from."""
        _INHERITED.extend(self._idle)
        self._idle.clear()


def _asked(handle: _Handle, url: str, headers: Mapping[str, str]) -> tuple[int, dict[str, str], bytes]:
    curl = handle.curl
    curl.setopt(pycurl.URL, url)
    curl.setopt(pycurl.HTTPHEADER, [*(f"{name}: {value}" for name, value in headers.items()), *_ALONE])
    failure: Exception | None = None
    try:
        curl.perform()
    except pycurl.error as error:
        code, message = error.args
        text = f"libcurl error {code}: {message}"
        failure = SSLError(endpoint_url=url, error=text) if code in _CERTIFICATE else ConnectionError(text)
    if failure is not None:
        raise failure
    return int(curl.getinfo(pycurl.RESPONSE_CODE)), _told(handle.lines), b"".join(handle.pieces)


def _told(lines: list[bytes]) -> dict[str, str]:
    """The headers of the last answer: another one (100 Continue) may have come before it."""
    told = dict[str, str]()
    for line in lines:
        name, is_header, value = line.partition(b":")
        if is_header:
            told[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        elif line.startswith(b"HTTP/"):
            told.clear()
    return told


_MADE = WeakSet[CurlGets]()
_INHERITED = list[_Handle]()
"""Handles of the process that this one was forked from: never closed here, which would end its TLS connections."""


def _leave_to_parent() -> None:
    for gets in _MADE:
        gets.leave_to_parent()


os.register_at_fork(after_in_child=_leave_to_parent)
