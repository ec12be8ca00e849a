"""A bucket that exists only as numbers: ListObjectsV2 and GET over HTTP, at a cost that shows what the client can do.

    python benchmarks/synthetic_bucket.py --objects 1000000 [--photos DIR] [--latency 0.02]

Object i is `class00042/photo00012345.jpg` (`--per-class` of them in each), its bytes are those of one of the photos in
turn. It checks no signature, honours If-Match and Range, and prints its port. Sorted keys are never held: a key is made
from its number and found by bisection, so a million objects cost no memory.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import overload
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<Name>bucket</Name><MaxKeys>{limit}</MaxKeys><KeyCount>{count}</KeyCount><IsTruncated>{more}</IsTruncated>"
)
CONTENTS = (
    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;{etag}&quot;</ETag>"
    "<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


class Keys(Sequence[str]):
    """The keys in order."""

    def __init__(self, count: int, per_class: int) -> None:
        self._count, self._per_class = count, per_class

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(self._count))]
        if not 0 <= number < self._count:
            raise IndexError(number)
        return f"class{number // self._per_class:05d}/photo{number:08d}.jpg"


class Bucket:
    """Answers requests. The place of an object among the photos is its number modulo theirs."""

    def __init__(self, keys: Keys, photos: Sequence[bytes]) -> None:
        self._keys = keys
        self._photos = [(photo, hashlib.md5(photo).hexdigest()) for photo in photos]

    def answer(self, method: str, target: str, headers: str) -> tuple[int, str, bytes]:
        """Status, headers, body."""
        path, _, query = target.partition("?")
        name = unquote(path).split("/", 2)
        if method == "GET" and "list-type=2" in query:
            return 200, "Content-Type: application/xml\r\n", self._listing(parse_qs(query))
        if method not in ("GET", "HEAD") or len(name) < 3:
            return 501, "", b""
        return self._object(name[2], headers)

    def _object(self, key: str, headers: str) -> tuple[int, str, bytes]:
        number = re.fullmatch(r"class\d+/photo(\d+)\.jpg", key)
        if number is None or int(number[1]) >= len(self._keys) or self._keys[int(number[1])] != key:
            return 404, "", b"<Error><Code>NoSuchKey</Code></Error>"
        body, etag = self._photos[int(number[1]) % len(self._photos)]
        wanted = re.search(r"(?i)^if-match: *\"?([^\"\r]*)", headers, re.MULTILINE)
        if wanted is not None and wanted[1] != etag:
            return 412, "", b"<Error><Code>PreconditionFailed</Code></Error>"
        told = f'ETag: "{etag}"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nAccept-Ranges: bytes\r\n'
        part = re.search(r"(?i)^range: *bytes=(\d+)-(\d+)", headers, re.MULTILINE)
        if part is None:
            return 200, told, body
        first, last = int(part[1]), min(int(part[2]), len(body) - 1)
        if first > last:
            return 416, "", b"<Error><Code>InvalidRange</Code></Error>"
        return 206, f"{told}Content-Range: bytes {first}-{last}/{len(body)}\r\n", body[first : last + 1]

    def _listing(self, query: dict[str, list[str]]) -> bytes:
        keys, prefix = self._keys, query.get("prefix", [""])[0]
        limit = int(query.get("max-keys", ["1000"])[0])
        behind = query.get("continuation-token", query.get("start-after", [""]))[0]
        at = max(bisect_left(keys, prefix), bisect_right(keys, behind) if behind else 0)
        pieces: list[str] = []
        last = ""
        while at < len(keys) and len(pieces) < limit and (key := keys[at]).startswith(prefix):
            folder, slash, _ = key[len(prefix) :].partition("/")
            if slash and "delimiter" in query:
                last = prefix + folder + "0"  # the sign behind the slash
                pieces.append(f"<CommonPrefixes><Prefix>{escape(prefix + folder)}/</Prefix></CommonPrefixes>")
                at = bisect_left(keys, last)
            else:
                body, etag = self._photos[at % len(self._photos)]
                pieces.append(CONTENTS.format(key=key, etag=etag, size=len(body)))
                last, at = key, at + 1
        more = at < len(keys) and keys[at].startswith(prefix)
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        head = HEAD.format(limit=limit, count=len(pieces), more=str(more).lower())
        return f"{head}{token}{''.join(pieces)}</ListBucketResult>".encode()


class Connection(asyncio.Protocol):
    """One kept-alive connection, a request at a time."""

    def __init__(self, bucket: Bucket, latency: float) -> None:
        self._bucket, self._latency, self._held = bucket, latency, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        while b"\r\n\r\n" in self._held:
            head, _, self._held = self._held.partition(b"\r\n\r\n")
            first, _, headers = head.decode("latin-1").partition("\r\n")
            method, target, _ = first.split(" ", 2)
            if self._latency:
                asyncio.get_running_loop().call_later(self._latency, self._answer, method, target, headers)
            else:
                self._answer(method, target, headers)

    def _answer(self, method: str, target: str, headers: str) -> None:
        status, told, body = self._bucket.answer(method, target, headers)
        head = f"HTTP/1.1 {status} X\r\n{told}Content-Length: {len(body)}\r\n\r\n".encode()
        if not self._transport.is_closing():
            self._transport.write(head if method == "HEAD" else head + body)


async def serve(bucket: Bucket, latency: float, port: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Connection(bucket, latency), "127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--per-class", type=int, default=530, help="objects in a folder (default 530)")
    parser.add_argument("--photos", type=Path, help="folder with the photos to serve (default: 4 KB of zeros)")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer (default 0)")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    paths = sorted(options.photos.rglob("*.jpg"))[:2000] if options.photos else []
    photos = [path.read_bytes() for path in paths] or [bytes(4096)]
    try:
        bucket = Bucket(Keys(options.objects, options.per_class), photos)
        asyncio.run(serve(bucket, options.latency, options.port))
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
