"""GETs that are sent from one thread and answered whenever that thread looks.

Beside work that computes, one of 15 KB takes 0.17 ms of a core where a thread that waits for its answer takes 0.30, and
half of the server's time: it is asked for dozens at once and sleeps less.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic

import pycurl

from pipeline.storage.curl_handle import Answer, CurlParams, Handle

_CONNECTIONS = 64
"""Kept for the next GETs."""
_UNSEEN_SECONDS = 0.01
"""A look takes no longer while libcurl shows fewer sockets than GETs: it resolves a name, or their numbers are high."""
_OK = (200, 206)
_REFUSED = (400, 401, 403)


class Transfer:
    """A GET that was sent: under way until it is done, then an answer or a failure, which any thread may take."""

    def __init__(self, transfers: Transfers, begun: float) -> None:
        self.heard = 0, begun
        """Pieces that had come when it was looked at last, and since when no more are known (`Transfers.clock`)."""
        self._transfers = transfers
        self._is_done = False
        self._answer: Answer | None = None
        self._failure: Exception | None = None
        self._when_failed: Callable[[], None] | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come."""
        return self._is_done

    @property
    def is_ok(self) -> bool:
        """Whether it brought what was asked for, with status 200 or 206."""
        return self._answer is not None and self._answer[0] in _OK

    @property
    def is_refused(self) -> bool:
        """Whether the server did not take its signature."""
        return self._answer is not None and self._answer[0] in _REFUSED

    def answer(self) -> Answer:
        """Of one that is done. Raises ConnectionError, SSLError of botocore, TooLarge."""
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
        self._when_failed = None
        self._transfers.cancel(self)

    def end(self, answer: Answer | None, failure: Exception | None) -> None:
        """It is done: for `Transfers` alone."""
        self._answer, self._failure, self._is_done = answer, failure, True
        if self._when_failed is not None and not self.is_ok:
            self._when_failed()


class Transfers:
    """The GETs that one thread sent, over connections of its own.

    libcurl calls nothing here that is Python's: an interrupt of the main thread would be raised there, and be lost.
    """

    def __init__(self, params: CurlParams) -> None:
        self.clock = 0.0
        """Seconds that were spent waiting: silence counts by them, since nobody hears while results are used."""
        self._params = params
        self._idle = list[Handle]()
        self._under_way: dict[pycurl.Curl, tuple[Transfer, Handle]] = {}
        self._is_new = False
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, _CONNECTIONS)

    def begin(self, url: str, headers: Mapping[str, str], most: int) -> Transfer:
        """A GET that goes out with the next wait, be it for another one; of its answer at most so many bytes come, 0 =
        any number. Raises pycurl.error.
        """
        handle = self._idle.pop() if self._idle else Handle(self._params)
        handle.aim(url, headers, most)
        self._multi.add_handle(handle.curl)
        transfer = Transfer(self, self.clock)
        self._under_way[handle.curl] = transfer, handle
        self._is_new = True
        return transfer

    def wait(self, transfer: Transfer) -> None:
        """Until it is done. Those that bring nothing for `read_timeout` seconds of waiting fail."""
        try:
            if self._is_new:  # a whole burst goes out at once, whether or not there is anything to wait for
                self._is_new = False
                self._run()
            while not transfer.is_done:
                self._look()
                if not transfer.is_done and self.clock - transfer.heard[1] >= self._params.read_timeout:
                    self._end_silent()
        except pycurl.error as error:
            self.fail(ConnectionError(f"libcurl error {error}"))

    def cancel(self, transfer: Transfer) -> None:
        """Drops its connection."""
        for curl, (each, _) in [*self._under_way.items()]:
            if each is transfer:
                self._end(curl, ConnectionError("the GET was given up"))

    def leave_to_parent(self) -> None:
        """In a process that was forked: nothing is under way here, and no connection is touched."""
        for transfer, handle in self._under_way.values():
            self._idle.append(handle)  # kept: one that is collected ends its connection
            transfer.end(None, None)
        self._under_way.clear()

    def fail(self, failure: Exception) -> None:
        """Ends all that are under way."""
        for curl in [*self._under_way]:
            self._end(curl, failure)

    def _look(self) -> None:
        """Wait until something happens, at most a second, and have libcurl see to it."""
        readable, writable, _ = self._multi.fdset()
        poll = select.poll()
        for socket in {*readable, *writable}:
            poll.register(socket, (socket in readable) * select.POLLIN | (socket in writable) * select.POLLOUT)
        seconds = 1.0 if len({*readable, *writable}) >= len(self._under_way) else _UNSEEN_SECONDS
        timer = self._multi.timeout()
        started = monotonic()
        milliseconds = 1000 * min(seconds, self._params.read_timeout)
        poll.poll(milliseconds if timer < 0 else min(timer, milliseconds))
        self.clock += monotonic() - started
        self._run()

    def _run(self) -> None:
        self._multi.perform()
        more = 1
        while more:
            more, done, failed = self._multi.info_read()
            for curl in done:
                self._end(curl, None)
            for curl, code, message in failed:
                self._end(curl, (code, message))

    def _end_silent(self) -> None:
        """Has all fail that brought nothing for too long: a network that drops connections drops many."""
        for curl, (transfer, handle) in [*self._under_way.items()]:
            arrived, since = transfer.heard
            if handle.arrived() != arrived:
                transfer.heard = handle.arrived(), self.clock
            elif self.clock - since >= self._params.read_timeout:
                self._end(curl, ConnectionError(f"not a byte for {self._params.read_timeout:g} s"))

    def _end(self, curl: pycurl.Curl, failure: Exception | tuple[int, str] | None) -> None:
        """Books what came of a GET. Between any two steps an interrupt may come, and the GET be cancelled then."""
        with suppress(pycurl.error):  # removed already
            self._multi.remove_handle(curl)
        transfer, handle = self._under_way.get(curl, (None, None))
        if transfer is None or handle is None:
            return
        error = handle.failure(*failure) if isinstance(failure, tuple) else failure
        answer = None if error else handle.answer()
        del self._under_way[curl]
        transfer.end(answer, error)
        handle.clear()
        self._idle.append(handle)
