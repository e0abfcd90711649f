"""What of a URL may be stored and shown. A presigned URL is a credential, and so is a URL with a password in it."""

from __future__ import annotations

import re

_URL = re.compile(r"(?!s3://|file://)[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")


def without_secrets(url: str) -> str:
    """`url` without user, password, query and fragment; a path, a file:// URL and an s3:// URL, whose key may hold anything, as it is."""
    if not _URL.match(url):
        return url
    scheme, _, rest = url.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def masked(text: str) -> str:
    """`text` with each URL in it as `without_secrets` has it."""
    return _URL.sub(lambda found: without_secrets(found.group()), text)
