"""What an S3 answer means: one typed error per cause, or Transient where another attempt may succeed."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any, TypeVar, cast

import botocore.exceptions as boto
import botocore.parsers
import urllib3.exceptions

from pipeline.errors import (
    AccessDenied,
    BadCredentials,
    NotFound,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from pipeline.storage.redact import redact
from pipeline.storage.retry import Transient

T = TypeVar("T")

_MISSING = {"NoSuchKey", "NoSuchBucket", "NotFound", "NoSuchVersion", "404"}
_CREDENTIALS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "InvalidToken",
    "InvalidSecurity", "TokenRefreshRequired", "RequestTimeTooSkewed", "InvalidClientTokenId",
    "CredentialsNotSupported", "AuthorizationHeaderMalformed", "UnrecognizedClientException", "MissingSecurityHeader",
}  # fmt: skip
_FULL = {
    "QuotaExceeded", "XMinioStorageFull", "XMinioStorageQuotaExceeded", "XMinioAdminBucketQuotaExceeded",
    "QuotaExceededException", "InsufficientStorage", "507",
}  # fmt: skip
_THROTTLED = {
    "SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "ThrottledException",
    "TooManyRequests", "TooManyRequestsException", "RequestLimitExceeded", "RequestThrottled",
    "RequestThrottledException", "BandwidthLimitExceeded", "503", "429",
}  # fmt: skip
_SERVER = {"InternalError", "ServiceUnavailable", "InternalFailure", "ServerBusy", "500", "502", "504"}
_CONNECTION = {"RequestTimeout", "RequestTimeoutException", "IncompleteBody"}
_CORRUPT = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}  # damaged on its way to the server
_CONFLICT = {"OperationAborted", "ConditionalRequestConflict"}
_CAUSES = {
    **dict.fromkeys(_THROTTLED, "throttled"),
    **dict.fromkeys(_SERVER, "server"),
    **dict.fromkeys(_CONNECTION, "connection"),
    **dict.fromkeys(_CORRUPT, "corrupt"),
    **dict.fromkeys(_CONFLICT, "conflict"),
}
_STATUS_CAUSES = {429: "throttled", 500: "server", 502: "server", 503: "throttled", 504: "server"}


class ConditionFailed(StorageError):
    """412: If-Match or If-None-Match did not hold. Internal to the storage package."""


class PastEnd(StorageError):
    """416: the range starts behind the object's last byte. Internal to the storage package."""


_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.ProfileNotFound,
    boto.ConfigParseError,
    boto.InvalidConfigError,
    boto.TokenRetrievalError,
    boto.SSOError,
)
_TRANSIENT_CAUSES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((boto.CredentialRetrievalError, boto.MetadataRetrievalError), "credentials"),
    ((boto.FlexibleChecksumError, botocore.parsers.ResponseParserError), "corrupt"),
    ((boto.HTTPClientError, boto.IncompleteReadError), "connection"),  # reset, timed out, truncated
    ((boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError), "connection"),
    ((urllib3.exceptions.HTTPError, http.client.HTTPException, ConnectionError, TimeoutError), "connection"),
)
CLIENT_ERRORS = (
    boto.BotoCoreError,
    boto.ClientError,
    botocore.parsers.ResponseParserError,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
)


def asked(where: str, request: Callable[[], T]) -> T:
    """Call `request`; raise what a client error means. Nothing is chained: client errors hold request headers."""
    try:
        return request()
    except CLIENT_ERRORS as error:
        failure = translated(error, where)
    raise failure


def translated(error: Exception, where: str) -> StorageError | Transient:
    """Return the StorageError or Transient that stands for an error of boto3 or of the connection below it."""
    if isinstance(error, boto.ClientError):
        return _of_answer(cast("dict[str, Any]", error.response), where)
    text = redact(f"{type(error).__name__}: {error}")
    for causes, cause in _TRANSIENT_CAUSES:
        if isinstance(error, causes):
            return Transient(cause, text)
    if isinstance(error, _NO_CREDENTIALS):
        return BadCredentials(f"{where}: {text}. {_CREDENTIAL_ADVICE}")
    if isinstance(error, boto.SSLError):
        return StorageUnavailable(f"{where}: {text}. Check the endpoint's certificate, or set AWS_CA_BUNDLE")
    return StorageError(f"{where}: {text}. {_PLACE_ADVICE}")


_CREDENTIAL_ADVICE = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN for temporary ones), AWS_PROFILE, "
    "or give the machine a role"
)
_PERMISSION_ADVICE = (
    "The credentials need s3:ListBucket, s3:GetObject and, for a root, s3:PutObject and s3:DeleteObject there"
)
_PLACE_ADVICE = "Check endpoint, region and bucket name"
_BY_CODE: dict[str, tuple[type[StorageError], str]] = {
    "NoSuchBucket": (NotFound, "There is no such bucket: check its name, the endpoint and the region"),
    "InvalidObjectState": (AccessDenied, "It lies in an archive tier (Glacier): restore it, then run again"),
}
_BY_STATUS: dict[int, type[StorageError]] = {412: ConditionFailed, 416: PastEnd}


def _of_answer(answer: dict[str, Any], where: str) -> StorageError | Transient:
    error, meta = answer.get("Error", {}), answer.get("ResponseMetadata", {})
    code, status = str(error.get("Code", "")), int(meta.get("HTTPStatusCode", 0))
    text = redact(f"{code or 'no code'} (HTTP {status}): {(error.get('Message') or 'no message').rstrip('.')}")
    cause = _CAUSES.get(code) or (None if code in _FULL else _STATUS_CAUSES.get(status))
    if cause is not None:
        return Transient(cause, text, _retry_after(meta))
    failure, advice = _final(code, status)
    return failure(f"{where}: {text}. {advice}")


def _final(code: str, status: int) -> tuple[type[StorageError], str]:
    """Return the type of an error that no retry mends, and what to do about it."""
    if code in _CREDENTIALS:
        return BadCredentials, f"{_CREDENTIAL_ADVICE}; check the region and this machine's clock too"
    if code in _FULL:
        return StorageFull, "Free space or raise the quota, then run again; finished work is kept"
    if code in _BY_CODE:
        return _BY_CODE[code]
    if code in _MISSING or status == 404:
        return NotFound, "There is no such object"
    # to a HEAD, S3 answers an expired token with a bare 400
    if status in (401, 403) or code == "400":
        return AccessDenied, _PERMISSION_ADVICE
    return _BY_STATUS.get(status, StorageError), _PLACE_ADVICE


def _retry_after(meta: dict[str, Any]) -> float:
    value = str(meta.get("HTTPHeaders", {}).get("retry-after", ""))
    return float(value) if value.isdigit() else 0.0
