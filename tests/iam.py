"""Identity policies of AWS, as far as infra/ uses them, and a proxy that holds requests to S3 to one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.s3_servers import FaultProxy


@dataclass(frozen=True)
class Asked:
    """What one request needs: an action on a resource. `prefix`: what a list asks for; None where there is none to ask for."""

    action: str
    resource: str
    prefix: str | None = None


def asked_by(line: str) -> Asked:
    """What AWS asks a policy for, for "METHOD /bucket/key?query". The action is "" for a request that is not known here.

    That of a list of unfinished uploads has no prefix as far as policies go: AWS lists s3:prefix for the lists of objects alone.
    """
    method, _, target = line.partition(" ")
    parts = urlsplit(target)
    bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    base = f"arn:aws:s3:::{bucket}"
    if not key:
        if method == "GET" and "uploads" in query:
            return Asked("s3:ListBucketMultipartUploads", base)
        if (method == "GET" and not query.keys() - _OF_LISTS) or method == "HEAD":
            return Asked("s3:ListBucket", base, query.get("prefix"))
        return Asked("", base)
    known = {
        "GET": "s3:GetObject",
        "HEAD": "s3:GetObject",
        "PUT": "s3:PutObject",
        "POST": "s3:PutObject",
        "DELETE": "s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject",
    }
    plain = not query.keys() - {"uploadId", "partNumber", "uploads", "x-id"}
    return Asked(known.get(method, "") if plain else "", f"{base}/{key}")


_OF_LISTS = frozenset(
    ("list-type", "prefix", "delimiter", "max-keys", "continuation-token", "encoding-type", "start-after")
)


def allows(policy: dict[str, Any], asked: Asked) -> bool:
    """Whether a statement of the policy allows it. Knows Allow, one condition (StringLike of s3:prefix), * and ?."""
    return any(_holds(statement, asked) for statement in policy["Statement"])


def _holds(statement: dict[str, Any], asked: Asked) -> bool:
    assert statement["Effect"] == "Allow" and statement.keys() <= _KEYS, statement
    if not (_like(statement["Action"], asked.action) and _like(statement["Resource"], asked.resource)):
        return False
    for name, values in statement.get("Condition", {}).items():
        assert name == "StringLike" and values.keys() == {"s3:prefix"}, statement
        # A condition on what the request lacks does not hold.
        if asked.prefix is None or not _like(values["s3:prefix"], asked.prefix):
            return False
    return True


_KEYS = {"Sid", "Effect", "Action", "Resource", "Condition"}


def _like(patterns: str | list[str], text: str) -> bool:
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        regex = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
        if re.fullmatch(regex, text, re.DOTALL):
            return True
    return False


@dataclass
class PolicyProxy(FaultProxy):
    """Passes on what `policy` allows, and refuses the rest with 403. `refused`, `used`: what was asked for."""

    policy: dict[str, Any] = field(default_factory=dict)
    refused: list[Asked] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def choose(self, line: str) -> str:
        """The fault 403 for what is not allowed."""
        super().choose(line)
        asked = asked_by(line)
        if not allows(self.policy, asked):
            self.refused.append(asked)
            return "403"
        self.used.add(asked.action)
        return ""

    def told(self, line: str, status: int) -> int:
        """403 of an object that is missing, for whoever may not list the bucket.

        AWS says so where s3:ListBucket is not granted. A grant with a condition on s3:prefix is taken for none here: a
        request for an object has no prefix that could fulfil it.
        """
        asked = asked_by(line)
        bucket, _, key = asked.resource.partition("/")
        if status == 404 and key and not allows(self.policy, Asked("s3:ListBucket", bucket)):
            return 403
        return status
