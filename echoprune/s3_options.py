"""How S3 is reached: endpoint, profile, who pays, how long to be patient. No secrets, and no connection.

Credentials are found where every AWS tool looks for them: AWS_ACCESS_KEY_ID and its companions, AWS_PROFILE, ~/.aws, the
role of the machine. They are never an option, so that no log, receipt or report can hold one. The connection itself is
in s3_client.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from echoprune.credentials import without_secrets
from echoprune.errors import ConfigError

SCHEME = "s3://"
# A service that is away for a minute is survived, with as much again for it to come back slowly.
PATIENCE_S = 180.0


@dataclass(frozen=True)
class S3Options:
    """How to reach S3; fields left alone mean what AWS_ENDPOINT_URL_S3, AWS_PROFILE and so on say.

    `patience_s`: how long one request is tried again. Raises ConfigError for an endpoint that is no http(s) URL or holds a
    password, and for a profile with `anonymous`.
    """

    endpoint: str | None = None
    profile: str | None = None
    anonymous: bool = False
    requester_pays: bool = False
    patience_s: float = PATIENCE_S

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            check_endpoint(self.endpoint)
        if self.anonymous and self.profile:
            raise ConfigError("--s3-anon uses no credentials: leave --s3-profile out")
        if self.anonymous and self.requester_pays:
            raise ConfigError("--s3-requester-pays needs credentials to be billed: leave --s3-anon out")


class S3Place(NamedTuple):
    """A bucket and a key, or the beginning of one."""

    bucket: str
    key: str

    @property
    def url(self) -> str:
        """s3://bucket/key."""
        return f"{SCHEME}{self.bucket}/{self.key}" if self.key else f"{SCHEME}{self.bucket}"


def is_s3(url: str) -> bool:
    """Whether a path or URL means an object in S3."""
    return url.startswith(SCHEME)


def require_whole_scheme(path: str) -> None:
    """Raises ConfigError for s3:/bucket/key and S3://bucket/key, which would be a local folder or a URL of nothing known."""
    if path[:3].lower() == "s3:" and not is_s3(path):
        raise ConfigError(f"{path} is no URL: write s3://BUCKET/KEY; ./{path} would be a local path")


def s3_place(url: str) -> S3Place:
    """The bucket and key that an s3:// URL means. Raises ConfigError where it names no bucket, or holds credentials."""
    bucket, _, key = url.removeprefix(SCHEME).partition("/")
    if "@" in bucket or ":" in bucket:
        # The URL itself is left out of the message: it may hold a secret.
        raise ConfigError(
            f"an s3:// URL names the bucket {bucket.rpartition('@')[2]!r} with something else: write s3://BUCKET/KEY, and "
            "leave credentials to AWS_PROFILE or the AWS_* variables"
        )
    if not bucket:
        raise ConfigError(f"{url!r} names no bucket: write s3://BUCKET/KEY")
    return S3Place(bucket, key)


_current = {"options": S3Options()}


def use_s3(options: S3Options) -> None:
    """Makes `options` those of this process, for every s3:// URL opened from now on without options of its own."""
    _current["options"] = options


def current_s3() -> S3Options:
    """The options of this process; those that `use_s3` was given last."""
    return _current["options"]


def check_endpoint(endpoint: str, *, name: str = "--s3-endpoint") -> None:
    """Raises ConfigError for an endpoint that is no http(s) URL or holds a password, which is not shown."""
    parts = urlsplit(endpoint)
    if parts.username or parts.password or "@" in parts.netloc:
        raise ConfigError(
            f"{name} holds a user name or password: give it without, and set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"{name} is {without_secrets(endpoint)!r}: give a URL such as https://s3.example.org or http://127.0.0.1:9000"
        )
