"""What S3 says of an object, and how many requests a process has made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple


class S3Object(NamedTuple):
    """An object as it is listed. `etag`: without quotes; of uploads in parts no hash of the content."""

    key: str
    size_bytes: int
    etag: str


class S3Part(NamedTuple):
    """Bytes of an object, with the size and etag of the whole."""

    data: bytes
    size_bytes: int
    etag: str


@dataclass
class S3Counts:
    """What a process has asked for so far: `requests`, of which `retries` were repeated and `slow_downs` refused."""

    requests: int = 0
    retries: int = 0
    slow_downs: int = 0

    def __add__(self, more: S3Counts) -> S3Counts:
        """Both together."""
        return S3Counts(
            self.requests + more.requests, self.retries + more.retries, self.slow_downs + more.slow_downs
        )

    def __sub__(self, before: S3Counts) -> S3Counts:
        """What was asked for since `before`."""
        return S3Counts(
            self.requests - before.requests,
            self.retries - before.retries,
            self.slow_downs - before.slow_downs,
        )


# By process: a forked child counts for itself.
_counts: list[tuple[int, S3Counts]] = []


def new_counts() -> S3Counts:
    """Those of another client of this process."""
    _counts.append((os.getpid(), S3Counts()))
    return _counts[-1][1]


def s3_counts() -> S3Counts:
    """What this process has asked of S3 so far, all clients together; zeros where nothing was.

    Here, and not where the clients are: what runs without S3 need not load its libraries, a seventh of a process's start.
    """
    return sum((each for pid, each in _counts if pid == os.getpid()), start=S3Counts())
