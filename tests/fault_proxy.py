"""An HTTP proxy that injects faults between an S3 client and a server, and logs every request it saw.

The client's Host header is passed on unchanged, so signatures stay valid. It runs on a thread of the test's process:
`with FaultProxy(port) as proxy: proxy.inject(Rule("status:503:SlowDown", "GET", count=2)); ...; proxy.log`.
"""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import dataclass, field


@dataclass
class Rule:
    """The first rule with `count` left whose method and path match is applied to a request.

    fault: `status:503:SlowDown` and `err200` (an error document; the server never sees the request), `reset` (the
    connection is dropped, ditto), `drop_after` (the request is carried out, its reply lost), `truncate:N` (N bytes of
    the reply's body, then the connection is dropped), `flip:N` (byte N of the reply's body inverted),
    `flip_upload:N` (byte N of the request's body), `cut_upload:N` (the server gets N bytes of it, then both connections
    are dropped: a writer that dies in mid-write), `strip:A` (the request's header A is removed),
    `stall` (no reply before the client hangs up), `stall_body:N` (N bytes of the reply's body and no more before the
    client hangs up), `drip:N` (the body N bytes at a time, 5 ms apart), `header:A:B` (the reply's header A gets the
    value B), `code:N:A` (the reply has the status N, and no header A), `unsized:N` (the reply tells no length and ends
    after N bytes of the body, "" = all). "" lets a request pass, and counts it.
    """

    fault: str
    method: str = ""
    path: str = ""
    count: int = 1

    def matches(self, method: str, path: str) -> bool:
        return self.count > 0 and self.method in ("", method) and re.search(self.path, path) is not None


@dataclass(frozen=True)
class Message:
    """One request or reply, whole."""

    first: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def encoded(self, body: bytes | None = None) -> bytes:
        lines = [self.first, *(f"{key}: {value}" for key, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1") + (self.body if body is None else body)


@dataclass
class FaultProxy:
    """Listens on a free port of 127.0.0.1 and forwards to `upstream_port` there."""

    upstream_port: int
    port: int = 0
    rules: list[Rule] = field(default_factory=list)
    log: list[tuple[str, str, str]] = field(default_factory=list)

    def __enter__(self) -> FaultProxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self._start(), self._loop)
        self._server = started.result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def inject(self, *rules: Rule) -> None:
        """Replace the rules and empty the log."""
        self.rules[:], self.log[:] = rules, []

    def requests(self, method: str = "") -> int:
        """Return how many requests of a method came since the last `inject`."""
        return sum(method in ("", seen) for seen, _, _ in self.log)

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)

    async def _stop(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; return whether the connection stays open."""
        request = await _read_request(reader, writer)
        method, path, _ = request.first.split(" ", 2)
        fault = self._pick(method, path)
        self.log.append((method, path, fault))
        kind, _, argument = fault.partition(":")
        if kind in ("reset", "stall"):
            return await _hang_up(reader, kind)
        if kind in ("status", "err200"):
            writer.write(_error_reply(argument or "200:InternalError", method))
            await writer.drain()
            return True
        if kind == "flip_upload":
            request = Message(request.first, request.headers, _flipped(request.body, int(argument)))
        if kind == "strip":
            kept = [(key, value) for key, value in request.headers if key.lower() != argument.lower()]
            request = Message(request.first, kept, request.body)
        if kind == "cut_upload":
            await self._begin(request, int(argument))
            return False
        reply = await self._forward(request, method)
        if kind == "unsized":
            kept = [(key, value) for key, value in reply.headers if key.lower() not in ("content-length", "connection")]
            writer.write(Message(reply.first, kept, reply.body[: int(argument or len(reply.body))]).encoded())
            await writer.drain()
            return False
        if kind in ("stall_body", "drip"):
            return await _send_slowly(reader, writer, reply, kind, int(argument))
        return kind != "drop_after" and await _send_reply(writer, reply, kind, argument)

    def _pick(self, method: str, path: str) -> str:
        for rule in self.rules:
            if rule.matches(method, path):
                rule.count -= 1
                return rule.fault
        return ""

    async def _begin(self, request: Message, count: int) -> None:
        """Send the server the head and `count` bytes of the body; wait until it has seen the end of them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        kept = [(key, value) for key, value in request.headers if key.lower() not in ("connection", "expect")]
        writer.write(Message(request.first, kept, request.body).encoded(request.body[:count]))
        writer.write_eof()
        await reader.read()
        writer.close()

    async def _forward(self, request: Message, method: str) -> Message:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream_port, limit=1 << 20)
        try:
            kept = [(key, value) for key, value in request.headers if key.lower() not in ("connection", "expect")]
            writer.write(Message(request.first, [*kept, ("Connection", "close")], request.body).encoded())
            await writer.drain()
            return await _read_message(reader, is_head=method == "HEAD", until_close=True)
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Message:
    first, headers = await _read_head(reader)
    if any(key.lower() == "expect" for key, _ in headers):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    return Message(first, headers, await _read_body(reader, headers, until_close=False))


async def _read_message(reader: asyncio.StreamReader, *, is_head: bool, until_close: bool) -> Message:
    first, headers = await _read_head(reader)
    while first.split()[1] == "100":
        first, headers = await _read_head(reader)
    has_none = is_head or first.split()[1] in ("204", "304")
    return Message(first, headers, b"" if has_none else await _read_body(reader, headers, until_close=until_close))


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines[1:] if ":" in line)
    return lines[0], [(key.strip(), value.strip()) for key, value in pairs]


async def _read_body(reader: asyncio.StreamReader, headers: list[tuple[str, str]], *, until_close: bool) -> bytes:
    found = {key.lower(): value for key, value in headers}
    if found.get("transfer-encoding", "").lower() == "chunked":
        body = b""
        while True:  # kept as it came, frames and all
            line = await reader.readuntil(b"\r\n")
            chunk = await reader.readexactly(int(line.split(b";")[0], 16) + 2)
            body += line + chunk
            if chunk == b"\r\n":
                return body
    if "content-length" in found:
        return await reader.readexactly(int(found["content-length"]))
    return await reader.read() if until_close else b""


async def _send_reply(writer: asyncio.StreamWriter, reply: Message, kind: str, argument: str) -> bool:
    body = reply.body
    if kind == "flip":
        body = _flipped(body, int(argument))
    if kind == "truncate":
        body = body[: int(argument)]
    headers = [(key, value) for key, value in reply.headers if key.lower() != "connection"]
    if kind == "header":
        name, _, value = argument.partition(":")
        headers = [(key, old) for key, old in headers if key.lower() != name.lower()] + [(name, value)]
    first = reply.first
    if kind == "code":
        status, _, name = argument.partition(":")
        first = first.replace(first.split()[1], status, 1)
        headers = [(key, value) for key, value in headers if key.lower() != name.lower()]
    writer.write(Message(first, headers, body).encoded())
    await writer.drain()
    return kind != "truncate" and bool(reply.header("content-length"))


async def _hang_up(reader: asyncio.StreamReader, kind: str) -> bool:
    """Drop the connection, for a `stall` after the client did."""
    if kind == "stall":
        await reader.read(1)
    return False


async def _send_slowly(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: Message, kind: str, size: int
) -> bool:
    body = reply.body
    writer.write(reply.encoded(body[:size]))
    await writer.drain()
    if kind == "stall_body":
        await reader.read(1)
        return False
    for at in range(size, len(body), size):
        await asyncio.sleep(0.005)
        writer.write(body[at : at + size])
        await writer.drain()
    return False


def _error_reply(argument: str, method: str) -> bytes:
    status, _, code = argument.partition(":")
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>injected</Message></Error>'
    head = f"HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n\r\n"
    return (head + ("" if method == "HEAD" else text)).encode()


def _flipped(body: bytes, position: int) -> bytes:
    at = min(position, len(body) - 1)
    return body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :] if body else body
