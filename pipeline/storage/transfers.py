"""GETs that are sent from one thread and answered whenever that thread looks.

Beside work that computes, one of 15 KB takes 0.17 ms of a core where a thread that waits for its answer takes 0.30, and
half of the server's time: it is asked for dozens at once and sleeps less.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping
from time import monotonic

import pycurl

from pipeline.storage.curl_handle import Answer, CurlParams, Handle

_CONNECTIONS = 64
"""Kept for the next GETs."""
_EVENTS = {
    pycurl.POLL_IN: select.POLLIN,
    pycurl.POLL_OUT: select.POLLOUT,
    pycurl.POLL_INOUT: select.POLLIN | select.POLLOUT,
}
_OK = (200, 206)


class Transfer:
    """A GET that was sent: under way until it is done, then an answer or a failure, which any thread may take."""

    def __init__(self, transfers: Transfers, handle: Handle) -> None:
        self._transfers = transfers
        self._handle: Handle | None = handle  # None once it is done
        self._answer: Answer | None = None
        self._failure: Exception | None = None
        self._when_failed: Callable[[], None] | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come."""
        return self._handle is None

    @property
    def is_ok(self) -> bool:
        """Whether it brought what was asked for, with status 200 or 206."""
        return self._answer is not None and self._answer[0] in _OK

    def answer(self) -> Answer:
        """Of one that is done. Raises ConnectionError, SSLError of botocore."""
        if self._answer is None:
            raise self._failure or ConnectionError("the GET was given up")
        return self._answer

    def when_failed(self, act: Callable[[], None]) -> None:
        """`act` is called once, in the thread that waits, as soon as it is seen that this one is done and not ok."""
        self._when_failed = act

    def wait(self) -> None:
        """Until it is done, for the thread that sent it; all others that it sent get on meanwhile."""
        self._transfers.wait(self)

    def cancel(self) -> None:
        """Gives it up if it is under way, for the thread that sent it."""
        self._transfers.cancel(self)

    def _ended(self, answer: Answer | None, failure: Exception | None) -> None:
        self._handle, self._answer, self._failure = None, answer, failure
        if self._when_failed is not None and not self.is_ok:
            self._when_failed()


class Transfers:
    """The GETs that one thread sent, over connections of its own."""

    def __init__(self, params: CurlParams) -> None:
        self._params = params
        self._idle = list[Handle]()
        self._under_way: dict[pycurl.Curl, tuple[Transfer, Handle]] = {}
        self._poll = select.poll()
        self._due: float | None = None
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, _CONNECTIONS)
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)

    def begin(self, url: str, headers: Mapping[str, str]) -> Transfer:
        """Sends a GET, or has it sent by the next wait."""
        handle = self._idle.pop() if self._idle else Handle(self._params)
        handle.aim(url, headers)
        transfer = Transfer(self, handle)
        self._under_way[handle.curl] = transfer, handle
        self._multi.add_handle(handle.curl)
        return transfer

    def wait(self, transfer: Transfer) -> None:
        """Until it is done. One that brings nothing for `read_timeout` seconds of waiting fails."""
        arrived, until = -1, 0.0
        while (handle := transfer._handle) is not None:
            if handle.arrived() != arrived:
                arrived, until = handle.arrived(), monotonic() + self._params.read_timeout
            left = until - monotonic()
            if left <= 0:
                silence = ConnectionError(f"not a byte for {self._params.read_timeout:g} s")
                self._end(handle, None, silence)
                return
            self._look(left)

    def cancel(self, transfer: Transfer) -> None:
        """Drops its connection."""
        if transfer._handle is not None:
            transfer._when_failed = None
            self._end(transfer._handle, None, None)

    def leave_to_parent(self) -> None:
        """In a process that was forked: nothing is under way here, and no connection is touched."""
        for transfer, handle in self._under_way.values():
            self._idle.append(handle)  # kept: one that is collected ends its connection
            transfer._handle = None
        self._under_way.clear()

    def _look(self, seconds: float) -> None:
        """Have libcurl look at the sockets on which something happens within that time, and at the clock."""
        seconds = seconds if self._due is None else min(seconds, max(0.0, self._due - monotonic()))
        for socket, event in self._poll.poll(seconds * 1000):
            # an error is for libcurl to find, when it reads
            at = pycurl.CSELECT_IN if event & ~select.POLLOUT else 0
            at |= pycurl.CSELECT_OUT if event & select.POLLOUT else 0
            self._multi.socket_action(socket, at)
        if self._due is not None and self._due <= monotonic():
            self._due = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        self._collect()

    def _collect(self) -> None:
        more = 1
        while more:
            more, done, failed = self._multi.info_read()
            for curl in done:
                self._end(handle := self._under_way[curl][1], handle.answer(), None)
            for curl, code, message in failed:
                self._end(handle := self._under_way[curl][1], None, handle.failure(code, message))

    def _end(self, handle: Handle, answer: Answer | None, failure: Exception | None) -> None:
        transfer, _ = self._under_way.pop(handle.curl)
        self._multi.remove_handle(handle.curl)
        handle.clear()
        self._idle.append(handle)
        transfer._ended(answer, failure)

    def _watch(self, event: int, socket: int, *_: object) -> None:
        if event == pycurl.POLL_REMOVE:
            self._poll.unregister(socket)
        else:
            self._poll.register(socket, _EVENTS[event])

    def _set_timer(self, milliseconds: int) -> None:
        self._due = None if milliseconds < 0 else monotonic() + milliseconds / 1000
