"""One page of a ListObjectsV2 answer, read by expat instead of botocore's parser: 6 ms for 1,000 keys, not 40."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from botocore.utils import parse_timestamp

_EPOCH = datetime(1970, 1, 1)
_STUB = b"<ListBucketResult/>"


class Entry(NamedTuple):
    """One listed object under its whole key. size in bytes, mtime_ns cut to whole seconds (0 = not told)."""

    key: str
    size: int
    etag: str
    mtime_ns: int


@dataclass(frozen=True)
class Page:
    """Entries and common prefixes in the server's order; token: of the next page, "" where this was the last."""

    entries: list[Entry]
    prefixes: list[str]
    token: str


def read_listing_answer(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any] | None = None, **_: object
) -> None:
    """Handler of botocore's `before-parse.s3.ListObjectsV2`: puts a `Page` into the answer as `Page`.

    botocore's own parser then gets an empty document. Anything but a whole listing (an error, a body cut short) is
    left for it to judge.
    """
    if customized_response_dict is None or response_dict.get("status_code") != 200:
        return
    page = page_of(response_dict["body"])
    if page is not None:
        response_dict["body"] = _STUB
        customized_response_dict["Page"] = page


def page_of(body: bytes) -> Page | None:
    """The page in a body of ListObjectsV2, None if it is no whole listing."""
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - expat itself bounds entities; botocore parses it likewise
    except ElementTree.ParseError:
        return None
    space = root.tag[: root.tag.rfind("}") + 1]
    if root.tag != f"{space}ListBucketResult":
        return None
    truncated = _text(root, f"{space}IsTruncated")
    token = _text(root, f"{space}NextContinuationToken")
    # an empty or foreign answer must not pass for an empty bucket
    if truncated not in ("true", "false") or (truncated == "true" and not token):
        return None
    is_encoded = _text(root, f"{space}EncodingType") == "url"
    try:
        entries = list(_entries(root, space, is_encoded))
    except (KeyError, ValueError):
        return None
    found = (prefix.findtext(f"{space}Prefix") or "" for prefix in root.iterfind(f"{space}CommonPrefixes"))
    prefixes = [unquote_plus(prefix) if is_encoded else prefix for prefix in found]
    return Page(entries, prefixes, token if truncated == "true" else "")


def _entries(root: ElementTree.Element, space: str, is_encoded: bool) -> Iterator[Entry]:
    key_tag, size_tag, etag_tag, time_tag = (space + name for name in ("Key", "Size", "ETag", "LastModified"))
    for contents in root.iterfind(f"{space}Contents"):
        found = {child.tag: child.text or "" for child in contents}
        key = found[key_tag]
        if is_encoded and ("%" in key or "+" in key):
            key = unquote_plus(key)
        etag = found.get(etag_tag, "").strip('"')
        yield Entry(key, int(found[size_tag]), etag, _mtime_ns(found.get(time_tag, "")))


def _text(root: ElementTree.Element, tag: str) -> str:
    return (root.findtext(tag) or "").strip()


def _mtime_ns(text: str) -> int:
    """Nanoseconds since 1970, in whole seconds: a HEAD has no more, so that a listing and a HEAD agree."""
    if not text:
        return 0
    if text.endswith("Z"):
        span = datetime.fromisoformat(text[:19]) - _EPOCH
    else:
        modified = parse_timestamp(text)
        span = modified.astimezone(timezone.utc).replace(tzinfo=None) - _EPOCH
    return (span.days * 86_400 + span.seconds) * 10**9
