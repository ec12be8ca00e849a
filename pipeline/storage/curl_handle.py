"""One handle of libcurl: how it is set up, what it is asked for, what its answer says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import pycurl
from botocore.exceptions import SSLError

from pipeline.storage.s3_whole import TooLarge

Answer: TypeAlias = "tuple[int, dict[str, str], bytes]"
"""Status, headers (names in lower case), body."""

_CERTIFICATE = frozenset(
    {
        pycurl.E_SSL_CONNECT_ERROR, pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT_BADFILE,
        pycurl.E_SSL_CIPHER, pycurl.E_SSL_CERTPROBLEM, pycurl.E_SSL_ISSUER_ERROR, pycurl.E_SSL_INVALIDCERTSTATUS,
    }
)  # fmt: skip
_ALONE = ("Accept:", "Accept-Encoding: identity")  # none of the first, which curl sends by itself
_TRUST_ANY: dict[int, Any] = {pycurl.SSL_VERIFYPEER: 0, pycurl.SSL_VERIFYHOST: 0}


@dataclass(frozen=True)
class CurlParams:
    """Seconds to connect and without a byte; certificates: file of those that are trusted, "" to trust any."""

    connect_timeout: float
    read_timeout: float
    certificates: str


class Handle:
    """A handle of libcurl for GETs, one after another. Silence is for who waits to notice, or see `give_up_silent`."""

    def __init__(self, params: CurlParams) -> None:
        self._lines = list[bytes]()
        self._pieces = list[bytes]()
        self._url, self._most = "", 0
        self.curl = pycurl.Curl()
        options: dict[int, Any] = {
            pycurl.NOSIGNAL: 1,
            pycurl.PROXY: "",  # none, whatever the environment says: who has one does not come here
            pycurl.PATH_AS_IS: 1,  # `a/../b` is a key of its own
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
            pycurl.TCP_KEEPALIVE: 1,
            pycurl.BUFFERSIZE: 131_072,
            pycurl.CONNECTTIMEOUT_MS: math.ceil(params.connect_timeout * 1000),
            pycurl.HEADERFUNCTION: self._lines.append,
            pycurl.WRITEFUNCTION: self._pieces.append,
        }
        trust = {pycurl.CAINFO: params.certificates} if params.certificates else _TRUST_ANY
        for option, value in (options | trust).items():
            self.curl.setopt(option, value)

    def give_up_silent(self, seconds: float) -> None:
        """Has a GET fail that brings no byte for so long."""
        self.curl.setopt(pycurl.LOW_SPEED_LIMIT, 1)
        self.curl.setopt(pycurl.LOW_SPEED_TIME, math.ceil(seconds))

    def aim(self, url: str, headers: Mapping[str, str], most: int) -> None:
        """The GET that is to be sent next, and the bytes that may come of its answer, 0 = any number."""
        self._url, self._most = url, most
        self.curl.setopt(pycurl.URL, url)
        self.curl.setopt(pycurl.MAXFILESIZE_LARGE, most)
        self.curl.setopt(pycurl.HTTPHEADER, [*(f"{name}: {value}" for name, value in headers.items()), *_ALONE])

    def arrived(self) -> int:
        """Pieces that came so far."""
        return len(self._lines) + len(self._pieces)

    def answer(self) -> Answer:
        """What came, whole."""
        return int(self.curl.getinfo(pycurl.RESPONSE_CODE)), _told(self._lines), b"".join(self._pieces)

    def failure(self, code: int, message: str) -> Exception:
        """What an error of libcurl means: SSLError of botocore, TooLarge, or ConnectionError."""
        if code == pycurl.E_FILESIZE_EXCEEDED:
            return TooLarge(int(_told(self._lines).get("content-length", -1)), self._most)
        text = f"libcurl error {code}: {message}"
        return SSLError(endpoint_url=self._url, error=text) if code in _CERTIFICATE else ConnectionError(text)

    def clear(self) -> None:
        """Lets go of what came."""
        self._lines.clear()
        self._pieces.clear()


def _told(lines: list[bytes]) -> dict[str, str]:
    """The headers of the last answer: another one (100 Continue) may have come before it."""
    told = dict[str, str]()
    for line in b"".join(lines).decode("latin-1").split("\r\n"):
        name, is_header, value = line.partition(":")
        if is_header:
            told[name.lower()] = value.strip()
        elif line.startswith("HTTP/"):
            told.clear()
    return told
