"""What an error of an S3 request means: try again, more slowly, or not at all."""

from __future__ import annotations

from typing import Any

import aiohttp
import botocore.exceptions
import botocore.parsers

from echoprune.backoff import Verdict

# What is caught around a request to be judged. s3fs turns answers of the server into OSErrors.
JUDGED: tuple[type[Exception], ...] = (
    OSError,
    aiohttp.ClientError,
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
    botocore.parsers.ResponseParserError,
)
# Of the connection: nothing, or only a part of an answer, came.
_BROKEN = (
    ConnectionError,
    TimeoutError,
    aiohttp.ClientError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.ConnectionError,
    botocore.exceptions.IncompleteReadError,
    # The beginning of a list, or an error page of something in between.
    botocore.parsers.ResponseParserError,
)
_SLOW_DOWN = frozenset(
    ("SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "TooManyRequests")
)
_PASSING = frozenset(
    (
        "InternalError",
        "RequestTimeout",
        "OperationAborted",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
    )
)
# What the server says of the key, the token or the clock that a request was signed with, whatever was asked for.
_SIGNED_WRONGLY = frozenset(
    (
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    )
)


def judge(error: Exception) -> Verdict:
    """Whether the request that gave `error` is worth another attempt, and at what pace."""
    status, code = status_of(error), _code(error)
    if status in (429, 503) or code in _SLOW_DOWN:
        return Verdict.SLOW_DOWN
    if status == 408 or (status >= 500 and status != 501) or code in _PASSING:
        return Verdict.AGAIN
    if status:
        return Verdict.FINAL
    return Verdict.AGAIN if isinstance(error, _BROKEN) else Verdict.FINAL


def status_of(error: BaseException) -> int:
    """The HTTP status of the answer that an error stands for; 0 where there was no answer."""
    answer = _answer(error)
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if answer else 0


def condition_failed(error: BaseException) -> bool:
    """Whether the server refused a request since its condition (If-None-Match) did not hold."""
    return status_of(error) == 412


def credentials_refused(error: BaseException) -> bool:
    """Whether the credentials are at fault: any other request would have failed too."""
    return _code(error) in _SIGNED_WRONGLY


def not_supported(error: BaseException) -> bool:
    """Whether the server does not know what it was asked for."""
    return status_of(error) == 501 or _code(error) == "NotImplemented"


def _code(error: BaseException) -> str:
    answer = _answer(error)
    return str(answer.get("Error", {}).get("Code", "")) if answer else ""


def _answer(error: BaseException | None) -> dict[str, dict[str, Any]] | None:
    # s3fs hangs the server's answer on the OSError that it makes of it.
    for each in (error, error.__cause__ if error else None):
        if isinstance(each, botocore.exceptions.ClientError):
            answer: dict[str, dict[str, Any]] = each.response
            return answer
    return None
