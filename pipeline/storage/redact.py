"""Masks credentials in any text that may reach a log, a manifest or an exception."""

from __future__ import annotations

import logging
import os
import re
import threading

MASK = "***"
_NAMES = (
    r"x-amz-(?:signature|credential|security-token)|aws_?access_?key_?id|aws_?secret_?access_?key|"
    r"aws_?session_?token|(?:[a-z0-9]+[_-])*(?:secret|secret[_-]?key|access[_-]?key|api[_-]?key|password|passwd|"
    r"token|signature|credential|credentials)|sig|secretaccesskey|sessiontoken|accesskeyid"
)
_PATTERNS = (
    # scheme://user:password@host; a user name alone may be a token
    (re.compile(r"(?<=://)[^/\s'\"<>]+@"), MASK + "@"),
    # ?name=value, name: value, "name": "value", <name>value</name>
    (
        re.compile(rf"(?i)(?<![a-z0-9])((?:{_NAMES})['\"]?\s*(?:=|:\s|:(?=['\"])|>)\s*['\"]?)[^\s&;,'\"<>)}}]+"),
        rf"\1{MASK}",
    ),
    (re.compile(r"(?i)\b((?:bearer|basic)\s+)[a-z0-9._~+/=-]{8,}"), rf"\1{MASK}"),
    # access key ids of AWS have a fixed form
    (re.compile(r"(?<![A-Z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Z0-9])"), MASK),
)
_ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
_MIN_LITERAL = 8
_known: set[str] = set()
_lock = threading.Lock()


def remember(*secrets: str | None) -> None:
    """Have `redact` mask these very strings from now on, in this process. Under 8 characters they are ignored."""
    with _lock:
        _known.update(secret for secret in secrets if secret and len(secret) >= _MIN_LITERAL)


def redact(text: str) -> str:
    """Return `text` with credentials, signatures, tokens and URL userinfo replaced by ***."""
    for pattern, mask in _PATTERNS:
        text = pattern.sub(mask, text)
    with _lock:
        literals = set(_known)
    literals.update(value for name in _ENVIRONMENT if len(value := os.environ.get(name, "")) >= _MIN_LITERAL)
    for secret in sorted(literals, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


class RedactingFilter(logging.Filter):
    """Logging filter for a handler: masks the message, its arguments and the traceback of every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record in place and let it pass."""
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redact(record.exc_text or logging.Formatter().formatException(record.exc_info))
        return True
