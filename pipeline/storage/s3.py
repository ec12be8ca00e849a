"""Objects of one bucket and prefix, over boto3, with one bounded retry loop and every byte verified."""

from __future__ import annotations

import base64
import hashlib
import io
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO, TypeVar, cast

from botocore.exceptions import ClientError

from pipeline.errors import AccessDenied, NotFound, ObjectChanged, StorageError, UsageError
from pipeline.storage.counts import count_bytes_read, count_request
from pipeline.storage.interface import TEMPORARY_PREFIX, ObjectInfo, StorageConfig, check_range
from pipeline.storage.retry import RetryPolicy, Transient, with_retries
from pipeline.storage.s3_answers import (
    check_expected,
    check_md5,
    checked_length,
    etag,
    has_md5,
    is_md5,
    is_utf8,
    mtime_ns,
    served_range,
    told_length,
)
from pipeline.storage.s3_client import ClientKey, client_for, gets_for, is_aws
from pipeline.storage.s3_cuts import Ask
from pipeline.storage.s3_errors import ConditionFailed, PastEnd, asked
from pipeline.storage.s3_get import BegunGet
from pipeline.storage.s3_listing import list_entries
from pipeline.storage.s3_pages import Page
from pipeline.storage.s3_whole import TooLarge, most_bytes, read_at_most, refusal
from pipeline.storage.uri import Bucket

T = TypeVar("T")
MAX_PUT_BYTES = 5 * 2**30
"""S3's limit of one PUT; parts of an artifact stay under 100 MB, so no multipart upload is needed."""
MAX_KEY_BYTES = 1024
PAGE_KEYS = 1000
STREAM_CHUNK = 8 * 2**20
"""Bytes per ranged GET of `open`."""
_honours_if_none_match: dict[tuple[str, str], bool] = {}


@dataclass(frozen=True)
class S3Store:
    """A `Store` on S3 or a compatible server. Holds no client and no secret, so it pickles."""

    place: Bucket
    config: StorageConfig

    @property
    def uri(self) -> str:
        """Canonical uri."""
        return self.place.uri

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield objects, pages ahead of the caller, refusing a server that lists out of order.

        Left out: temporary keys and empty objects whose key ends in `/` (folder markers of consoles).
        """
        where = self._where("list", prefix)
        cut = len(self._full(""))
        stopped = Event()
        fetch = partial(self._page, where, stopped)
        with closing(list_entries(fetch, where, self._full(prefix), PAGE_KEYS)) as entries, _set_at_end(stopped):
            for entry in entries:
                info = ObjectInfo(entry.key[cut:], entry.size, entry.etag, entry.mtime_ns)
                if not _is_hidden(info):
                    yield info

    def read(self, key: str, *, expect: ObjectInfo | None = None) -> bytes:
        """Return the object; compared: its length, its MD5 where the ETag is one, `expect`'s size and etag."""
        where = self._where("read", key)

        def attempt() -> bytes:
            answer, body = self._get(where, arguments, expect)
            check_md5(body, answer)
            return body

        arguments = self._wanted(key, expect)
        return self._pinned(where, expect, attempt)

    def read_range(self, key: str, start: int, length: int, *, expect: ObjectInfo | None = None) -> bytes:
        """Return bytes [start, start + length); compared: length and range served, `expect`'s size and etag."""
        check_range(key, start, length)
        if length == 0 or (expect is not None and start >= expect.size):
            self._check_still(key, expect)
            return b""
        where = self._where("read", key)

        def attempt() -> bytes:
            return self._get(where, arguments, expect)[1]

        arguments = self._wanted(key, expect, start, length)
        try:
            return self._pinned(where, expect, attempt)
        except PastEnd:
            self._check_still(key, expect)
            return b""

    def begin(
        self, key: str, start: int = 0, length: int | None = None, *, expect: ObjectInfo | None = None
    ) -> BegunGet | None:
        """Send the GET of a `read` or `read_range` to come, where the bucket is known and nothing stands between."""
        if length is not None and (length <= 0 or start < 0 or (expect is not None and start >= expect.size)):
            return None
        where = self._where("read", key)
        try:
            request = {"Bucket": self.place.bucket, **self._wanted(key, expect, start, length)}
            return asked(where, lambda: gets_for(self._client_key()).begin(request))
        except (StorageError, UsageError, Transient):
            return None  # the read meets it in its turn

    def put(self, key: str, data: bytes) -> None:
        """Write the object by one PUT with Content-MD5; the ETag that comes back is compared."""
        where = self._where("write", key)
        self._insist(where, lambda: self._put(where, key, data, {}))

    def put_pieces(self, key: str, pieces: Iterable[bytes]) -> None:
        """Write the joined pieces by one PUT."""
        self.put(key, b"".join(pieces))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write by PUT If-None-Match: *. After a 412 the object is read back: a lost reply looks like another's write.

        Raises StorageError on a server that ignores the condition, found out once per process by a probe object.
        """
        self._require_if_none_match()
        where = self._where("write", key)

        def attempt() -> bool:
            try:
                self._put(where, key, data, {"IfNoneMatch": "*"})
            except ConditionFailed:
                return self._holds(key, data)
            return True

        return self._insist(where, attempt)

    def exists(self, key: str) -> bool:
        """Tell by a HEAD whether the key has an object."""
        try:
            self.stat(key)
        except NotFound:
            return False
        return True

    def stat(self, key: str) -> ObjectInfo:
        """Return size, etag and time of one object by a HEAD."""
        where = self._where("stat", key)
        try:
            answer = self._insist(where, lambda: self._ask("head_object", where, {"Key": self._full(key)}))
        except AccessDenied as error:
            denied = error
        else:
            return ObjectInfo(key, told_length(where, answer), etag(answer), mtime_ns(answer))
        # the answer to a HEAD has no error code: a GET tells a wrong key from a missing permission
        with suppress(PastEnd):  # of an empty object, which is there
            self._insist(where, lambda: self._get(where, {"Key": self._full(key), "Range": "bytes=0-0"}))
        raise denied

    def delete(self, key: str) -> None:
        """Remove the object."""
        where = self._where("delete", key)
        self._insist(where, lambda: self._ask("delete_object", where, {"Key": self._full(key)}))

    def open(self, key: str) -> BinaryIO:
        """Open for reading in ranged GETs of 8 MB; ObjectChanged if it is replaced between two of them."""
        import smart_open.s3  # 0.1 s of every worker, of which few open anything

        client = _StreamClient(self, key, self.stat(key))
        stream = smart_open.s3.open(
            self.place.bucket, self._full(key), "rb", client=client, defer_seek=True, range_chunk_size=STREAM_CHUNK
        )
        # smart_open drops what it has at every seek: a tar of 30 MB took 223 requests of 8 MB for its headers
        return io.BufferedReader(cast(io.RawIOBase, stream), STREAM_CHUNK)

    def local_path(self, key: str) -> Path | None:  # noqa: ARG002 - as every Store
        """Return None: nothing here is on this machine's disk."""
        return None

    def _full(self, key: str) -> str:
        full = f"{self.place.prefix}/{key}" if self.place.prefix else key
        if "\0" in key or len(full.encode("utf-8", "surrogateescape")) > MAX_KEY_BYTES:
            raise UsageError(f"{self.uri}: {key[:80]!r} is no S3 key; wanted at most 1,024 bytes without NUL")
        if not is_utf8(full):
            raise NotFound(f"{self.uri}: {key[:80]!r} is no UTF-8, as every S3 key is: there is no such object")
        return full

    def _wanted(self, key: str, expect: ObjectInfo | None, start: int = 0, length: int | None = None) -> dict[str, Any]:
        """The arguments of a GET, pinned to the version that was listed."""
        part = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        pin = {"IfMatch": f'"{expect.etag}"'} if expect is not None and expect.etag else {}
        return {"Key": self._full(key), **part, **pin}

    def _where(self, verb: str, key: str) -> str:
        return f"{verb} {self.uri}/{key}" if key else f"{verb} {self.uri}"

    def _insist(self, where: str, attempt: Callable[[], T]) -> T:
        return with_retries(RetryPolicy(self.config.max_attempts, self.config.backoff), where, attempt)

    def _pinned(self, where: str, expect: ObjectInfo | None, attempt: Callable[[], T]) -> T:
        try:
            return self._insist(where, attempt)
        except ConditionFailed:
            pass
        raise ObjectChanged(f"{where}: its etag is no longer {expect.etag if expect else ''}; list again")

    def _check_still(self, key: str, expect: ObjectInfo | None) -> None:
        """A HEAD instead of a range that is empty: raises NotFound, ObjectChanged."""
        found = self.stat(key)
        if expect is not None and (found.size != expect.size or expect.etag not in ("", found.etag)):
            raise ObjectChanged(
                f"{self._where('read', key)}: {found.size} bytes, etag {found.etag}; listed with {expect.size}, "
                f"{expect.etag}. List again"
            )

    def _client_key(self) -> ClientKey:
        config = self.config
        return ClientKey(self.place.endpoint, config.region, config.read_timeout, config.connect_timeout)

    def _ask(self, operation: str, where: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Send one request, counted; raises StorageError or Transient."""
        count_request(_COUNTED[operation], written=len(arguments.get("Body", b"")))
        request = {"Bucket": self.place.bucket, **arguments}
        return asked(where, lambda: getattr(client_for(self._client_key()), operation)(**request))

    def _page(self, where: str, stopped: Event, ask: Ask) -> Page:
        """One page of a listing; no attempt is begun once the listing is closed."""
        arguments: dict[str, Any] = {"Prefix": ask.prefix, "MaxKeys": PAGE_KEYS}
        arguments |= {"ContinuationToken": ask.token} if ask.token else {}
        arguments |= {"StartAfter": ask.after} if ask.after else {}
        arguments |= {"Delimiter": "/"} if ask.is_by_folder else {}

        def attempt() -> Page:
            if stopped.is_set():
                raise StorageError(f"{where}: the listing is closed")
            answer = self._ask("list_objects_v2", where, arguments)
            if "Page" not in answer:
                raise Transient("corrupt", "the answer is no listing")
            return cast(Page, answer["Page"])

        return self._insist(where, attempt)

    def _get(
        self, where: str, arguments: dict[str, Any], expect: ObjectInfo | None = None
    ) -> tuple[dict[str, Any], bytes]:
        """Return one answer and its body, of the length that was promised and the range that was asked for."""
        answer, body = self._got(where, arguments)
        answer["ContentLength"] = checked_length(where, answer, body)
        if not etag(answer):
            raise Transient("corrupt", "the answer has no ETag: it is not the object")
        if "Range" in arguments:
            object_size = partial(self._object_size, where, arguments["Key"], (answer, body), expect)
            answer, body = served_range(where, arguments["Range"], answer, body, object_size)
        check_expected(where, answer, expect)
        return answer, body

    def _got(self, where: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """An answer and its body, as they came. Raises StorageUnavailable for a large object in place of a range."""
        count_request("s3.get")
        request, wanted = {"Bucket": self.place.bucket, **arguments}, arguments.get("Range", "")
        most = most_bytes(wanted)
        try:
            answer = asked(where, lambda: gets_for(self._client_key()).get(request, most))
            told = int(answer.get("ContentLength", -1))
            body = asked(where, lambda: read_at_most(answer["Body"], told, most))
        except TooLarge as error:
            raise refusal(where, wanted, error) from error
        count_bytes_read(len(body))
        return answer, body

    def _object_size(
        self, where: str, full: str, answered: tuple[dict[str, Any], bytes], expect: ObjectInfo | None
    ) -> int:
        """Bytes of the object that an answer is of, which tells them not: as listed, by its MD5, else by a HEAD."""
        answer, body = answered
        if expect is not None and expect.etag == etag(answer):
            return expect.size
        if has_md5(body, answer):
            return len(body)
        head = self._ask("head_object", where, {"Key": full})
        if etag(head) != etag(answer):
            raise Transient("conflict", f"a GET brought the etag {etag(answer)}, a HEAD after it {etag(head)}")
        return told_length(where, head)

    def _put(self, where: str, key: str, data: bytes, conditions: dict[str, str]) -> None:
        if len(data) > MAX_PUT_BYTES:
            raise StorageError(f"{where}: {len(data)} bytes; wanted at most {MAX_PUT_BYTES}. Use smaller shards")
        digest = hashlib.md5(data, usedforsecurity=False)
        arguments = {
            "Key": self._full(key),
            "Body": data,
            "ContentMD5": base64.b64encode(digest.digest()).decode(),
            **conditions,
        }
        answer = self._ask("put_object", where, arguments)
        if is_md5(answer) and etag(answer) != digest.hexdigest():
            raise Transient("corrupt", f"stored with MD5 {etag(answer)}, sent with {digest.hexdigest()}")

    def _holds(self, key: str, data: bytes) -> bool:
        """Tell whether the key has these bytes. Raises Transient if it vanished meanwhile."""
        try:
            return self.read(key) == data
        except NotFound as error:
            gone = Transient("conflict", f"was there and vanished: {error}")
        raise gone

    def _require_if_none_match(self) -> None:
        where = self._where("write", "")
        client = self._insist(where, lambda: asked(where, lambda: client_for(self._client_key())))
        place = (str(client.meta.endpoint_url), self.place.bucket)
        if place not in _honours_if_none_match:
            _honours_if_none_match[place] = is_aws(client) or self._probe()
        if not _honours_if_none_match[place]:
            raise StorageError(
                f"{self.uri}: the server overwrites objects in spite of `If-None-Match: *`, so two runs could "
                "overwrite each other's work. Use S3, Ceph RGW, MinIO or another server that honours it, or a disk"
            )

    def _probe(self) -> bool:
        """Write one object twice; a server that honours the condition refuses the second."""
        key = f"{TEMPORARY_PREFIX}probe-{uuid.uuid4().hex}"
        where = self._where("probe", key)

        def is_refused() -> bool:
            try:
                self._put(where, key, b"probe", {"IfNoneMatch": "*"})
            except ConditionFailed:
                return True
            return False

        self._insist(where, is_refused)
        try:
            return self._insist(where, is_refused)
        finally:
            self._drop_probe(key)

    def _drop_probe(self, key: str) -> None:
        try:
            self.delete(key)
        except AccessDenied:  # may write, may not delete: the probe stays, and no listing shows it
            return


class _StreamClient:
    """What smart_open needs of a client: ranged GETs, here retried, verified and pinned to one version."""

    def __init__(self, store: S3Store, key: str, info: ObjectInfo) -> None:
        self._store, self._key, self._info = store, key, info

    def get_object(self, *, Range: str, **_: str) -> dict[str, Any]:  # noqa: N803 - boto3's spelling
        """Serve one chunk from memory, so that smart_open never meets a broken connection."""
        store, where = self._store, self._store._where("read", self._key)
        arguments = {"Key": store._full(self._key), "Range": Range, "IfMatch": f'"{self._info.etag}"'}

        try:
            answer, body = store._insist(where, lambda: store._get(where, arguments, self._info))
        except ConditionFailed:
            failure: Exception = ObjectChanged(f"{where}: it was replaced while it was read. List again")
        except PastEnd:
            size = str(self._info.size)
            answered: Any = {"Error": {"Code": "InvalidRange", "ActualObjectSize": size}}
            failure = ClientError(answered, "GetObject")
        else:
            return {**answer, "Body": io.BytesIO(body)}
        raise failure


_COUNTED = {
    "list_objects_v2": "s3.list",
    "put_object": "s3.put",
    "head_object": "s3.head",
    "delete_object": "s3.delete",
}


@contextmanager
def _set_at_end(event: Event) -> Iterator[None]:
    try:
        yield
    finally:
        event.set()


def _is_hidden(info: ObjectInfo) -> bool:
    name = info.key.rpartition("/")[2]
    return name.startswith(TEMPORARY_PREFIX) or not info.key or (info.key.endswith("/") and info.size == 0)
