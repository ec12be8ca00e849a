"""What an answer of S3 promises (length, range, ETag), compared with what came."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from pipeline.errors import ObjectChanged, StorageError
from pipeline.storage.interface import ObjectInfo
from pipeline.storage.retry import Transient
from pipeline.storage.s3_errors import PastEnd

_MD5 = re.compile(r"[0-9a-f]{32}")


def check_expected(where: str, answer: dict[str, Any], expect: ObjectInfo | None) -> None:
    """Raise ObjectChanged if the object is not the one that was listed."""
    if expect is None:
        return
    size = total_size(answer)
    if size != expect.size or (expect.etag and etag(answer) != expect.etag):
        raise ObjectChanged(
            f"{where}: {size} bytes, etag {etag(answer)}; listed with {expect.size}, {expect.etag}. List again"
        )


def told_length(where: str, answer: dict[str, Any]) -> int:
    """Bytes of the object or range as the answer tells them. Raises StorageError where it does not."""
    told = int(answer.get("ContentLength", -1))
    if told < 0:
        raise StorageError(
            f"{where}: the server tells no Content-Length and the ETag is no MD5, so that a body that is cut off would "
            "not show. Have the server, or the proxy in front of it, send the length"
        )
    return told


def checked_length(where: str, answer: dict[str, Any], body: bytes) -> int:
    """Bytes of the body. Raises Transient for others than promised, StorageError where nothing tells if all came.

    Without a promise the range that is named, which the caller compares, or the MD5 of a whole object tells it.
    """
    if int(answer.get("ContentLength", -1)) < 0 and ("ContentRange" in answer or is_md5(answer)):
        if "ContentRange" not in answer:
            check_md5(body, answer)
        return len(body)
    told = told_length(where, answer)
    if told != len(body):
        raise Transient("corrupt", f"{len(body)} bytes came, {told} were promised")
    return told


def check_md5(body: bytes, answer: dict[str, Any]) -> None:
    """Raise Transient if the ETag is an MD5 and not the body's."""
    if is_md5(answer) and not has_md5(body, answer):
        seen = hashlib.md5(body, usedforsecurity=False).hexdigest()
        raise Transient("corrupt", f"MD5 {seen}, wanted {etag(answer)}")


def has_md5(body: bytes, answer: dict[str, Any]) -> bool:
    """Tell whether the ETag is the MD5 of this body, which is then the whole object."""
    return is_md5(answer) and hashlib.md5(body, usedforsecurity=False).hexdigest() == etag(answer)


def served_range(
    where: str, wanted: str, answer: dict[str, Any], body: bytes, object_size: Callable[[], int]
) -> tuple[dict[str, Any], bytes]:
    """The range `wanted` (`bytes=a-b`, `bytes=a-` or `bytes=-n`) as a 206 answers it, whatever the status was.

    With a 200 some servers answer the range (rclone), others the whole object, of which it is cut: where the range is
    not named, only the size of the object tells them apart. Raises Transient for another range, PastEnd for none.
    """
    if "ContentRange" not in answer and _status(answer) == 200:
        answer, body = _without_range(where, wanted, answer, body, object_size())
    served = str(answer.get("ContentRange", ""))
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", served)
    if match is not None:
        first, last, size = (int(number) for number in match.groups())
        if (first, last) == _bounds(wanted, size) and len(body) == last - first + 1:
            return {**answer, "ResponseMetadata": {**answer["ResponseMetadata"], "HTTPStatusCode": 206}}, body
    raise Transient("corrupt", f"range {served!r} with {len(body)} bytes came, {wanted} was asked for")


def _without_range(
    where: str, wanted: str, answer: dict[str, Any], body: bytes, size: int
) -> tuple[dict[str, Any], bytes]:
    """The range of a 200 that names none: its body is the whole object of `size` bytes, or as long as the range."""
    first, last = _bounds(wanted, size)
    if first > last:
        raise PastEnd(f"{where}: {wanted} of {size} bytes")
    if len(body) != size:
        return {**answer, "ContentRange": f"bytes {first}-{last}/{size}"}, body
    check_md5(body, answer)
    named = {"ContentRange": f"bytes {first}-{last}/{size}", "ContentLength": last - first + 1}
    return {**answer, **named}, body[first : last + 1]


def _status(answer: dict[str, Any]) -> int:
    return int(answer["ResponseMetadata"]["HTTPStatusCode"])


def _bounds(wanted: str, size: int) -> tuple[int, int]:
    start, end = wanted.removeprefix("bytes=").split("-")
    if not start:
        return max(0, size - int(end)), size - 1
    return int(start), min(int(end), size - 1) if end else size - 1


def total_size(answer: dict[str, Any]) -> int:
    """Return the size of the object that an answer is a part of."""
    return int(str(answer.get("ContentRange", "")).rpartition("/")[2] or answer["ContentLength"])


def etag(entry: dict[str, Any]) -> str:
    """Return the ETag without its quotes, "" if there is none."""
    return str(entry.get("ETag", "")).strip('"')


def is_md5(answer: dict[str, Any]) -> bool:
    """Tell whether the ETag is the MD5 of the body: not after a multipart upload, nor under KMS or customer keys."""
    is_encrypted = str(answer.get("ServerSideEncryption", "")).startswith("aws:") or "SSECustomerAlgorithm" in answer
    return _MD5.fullmatch(etag(answer)) is not None and not is_encrypted


def mtime_ns(entry: dict[str, Any]) -> int:
    """Return LastModified in nanoseconds since 1970, 0 if there is none.

    Cut to whole seconds: a HEAD has no more, so that a listing and a HEAD agree.
    """
    modified = entry.get("LastModified")
    if not isinstance(modified, datetime):
        return 0
    span = modified - datetime(1970, 1, 1, tzinfo=timezone.utc)
    return (span.days * 86400 + span.seconds) * 10**9


def is_utf8(key: str) -> bool:
    """Tell whether a key, with surrogates for bytes that are not UTF-8, has none of these."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True
