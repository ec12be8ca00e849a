"""GETs over libcurl: beside work that computes, one that a thread waits for takes 0.27 ms of a core, where http.client
and urllib3 take 0.57; one that is begun takes 0.17.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from weakref import WeakSet

import pycurl

from pipeline.storage.curl_handle import Answer, CurlParams, Handle
from pipeline.storage.transfers import Transfer, Transfers


class CurlGets:
    """GETs of one client; safe to use from several threads, each of which has a handle for as long as it asks."""

    def __init__(self, params: CurlParams) -> None:
        self._params = params
        self._idle = list[Handle]()
        self._transfers: dict[int, Transfers] = {}
        _MADE.add(self)

    def get(self, url: str, headers: Mapping[str, str], most: int) -> Answer:
        """The answer, of at most so many bytes, 0 = any number. Raises ConnectionError, SSLError of botocore, TooLarge.

        Not for the main thread: a signal would wait until the answer is there.
        """
        try:
            handle = self._idle.pop()
        except IndexError:
            handle = Handle(self._params)
            handle.give_up_silent(self._params.read_timeout)
        try:
            return _asked(handle, url, headers, most)
        finally:
            handle.clear()
            self._idle.append(handle)

    def begin(self, url: str, headers: Mapping[str, str], most: int) -> Transfer | None:
        """A GET of this thread, which is to wait for it; None where libcurl cannot take it on."""
        thread = threading.get_ident()  # that of a thread that has ended comes again, and its connections are of use
        try:
            if thread not in self._transfers:
                self._transfers[thread] = Transfers(self._params)
            return self._transfers[thread].begin(url, headers, most)
        except pycurl.error as error:
            if broken := self._transfers.pop(thread, None):
                broken.fail(ConnectionError(f"libcurl error {error}"))
            return None

    def leave_to_parent(self) -> None:
        """Lets go of the handles of the process that this one was forked from."""
        for transfers in self._transfers.values():
            transfers.leave_to_parent()
        _INHERITED.extend((self._idle, self._transfers))
        self._idle, self._transfers = [], {}


def _asked(handle: Handle, url: str, headers: Mapping[str, str], most: int) -> Answer:
    handle.aim(url, headers, most)
    failure: Exception | None = None
    try:
        handle.curl.perform()
    except pycurl.error as error:
        failure = handle.failure(*error.args)
    if failure is not None:
        raise failure
    return handle.answer()


_MADE = WeakSet[CurlGets]()
_INHERITED = list[object]()
"""Handles of the process that this one was forked from: never closed here, which would end its TLS connections."""


def _leave_to_parent() -> None:
    for gets in _MADE:
        gets.leave_to_parent()


os.register_at_fork(after_in_child=_leave_to_parent)
