"""Videos in S3: a single object, all below a prefix, those that a glob matches. Listed once; sizes and etags with it."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from echoprune.errors import ConfigError
from echoprune.s3_client import S3Client, s3_client
from echoprune.s3_objects import S3Object
from echoprune.s3_options import S3Options, S3Place, current_s3, s3_place

Found = tuple[str, int | None, str | None]

# How many objects are looked up between two signs of life to the caller; memory, not speed, is the reason.
_BATCH = 10_000


def search_s3(url: str, *, is_video: Callable[[str], bool], s3: S3Options | None = None) -> list[Found]:
    """(url, size, etag) of the videos that an s3:// URL names: an object, else what lies below it, else a glob.

    A missing object with a video's suffix is found too, without size. Keys with a part that begins with a dot are hidden
    from globs and prefixes. Raises ConfigError where the bucket is missing or may not be listed, and for an object without
    a video's suffix that has videos below its name too; an empty one of that kind stands for the folder.
    """
    client, place = s3_client(s3 or current_s3()), s3_place(url)
    below = place if not place.key or place.key.endswith("/") else S3Place(place.bucket, f"{place.key}/")
    with _listing(url):
        refused: PermissionError | None = None
        try:
            single = None if below is place else client.head(place)
        except PermissionError as error:
            # A role that may read what lies below clips/ may neither look up nor list "clips".
            single, refused = None, error
        if single is not None and is_video(place.key):
            return [(url, single.size_bytes, single.etag)]
        videos = [
            _found(place, each) for each in client.below(below) if _shown(each, below) and is_video(each.key)
        ]
        if videos and single is not None and single.size_bytes:
            raise ConfigError(
                f"{url} is an object, and {len(videos)} videos lie below it: write {url}/ for those, or put the object "
                "into a manifest"
            )
        if single is not None and not videos:
            return [(url, single.size_bytes, single.etag)]
        if not videos and glob.has_magic(place.key):
            return list(_matching(client, place, is_video))
        if refused is not None and not videos:
            raise refused
    if not videos and below is not place and is_video(place.key):
        return [(url, None, None)]
    return videos


def look_up(urls: Sequence[str], *, s3: S3Options | None = None) -> Iterator[tuple[int | None, str | None]]:
    """(size, etag) of each object, in order; (None, None) of one that is not there."""
    client = s3_client(s3 or current_s3())
    for begin in range(0, len(urls), _BATCH):
        some = urls[begin : begin + _BATCH]
        with _listing(some[0]):
            found = client.heads([s3_place(url) for url in some])
        for each in found:
            yield (None, None) if each is None else (each.size_bytes, each.etag)


def _matching(client: S3Client, place: S3Place, is_video: Callable[[str], bool]) -> Iterator[Found]:
    """As in local globs: * and ? stay within a part of the key, ** does not; clips/* means videos, *.dat what it says.

    Without **, a folder that fits stands for the videos below it.
    """
    plain = re.split(r"[*?[]", place.key, maxsplit=1)[0]
    pattern = re.compile(_as_regex(place.key), re.DOTALL)
    inside = re.compile(_as_regex(place.key.rstrip("/")) + "/.+", re.DOTALL)
    literal = re.search(r"\.[^./*?[\]]+$", place.key)
    named = S3Place(place.bucket, plain[: plain.rfind("/") + 1])
    for each in client.below(S3Place(place.bucket, plain)):
        if not _shown(each, named):
            continue
        fits = pattern.fullmatch(each.key) and (literal or is_video(each.key))
        if fits or ("**" not in place.key and is_video(each.key) and inside.fullmatch(each.key)):
            yield _found(place, each)


def _as_regex(pattern: str) -> str:
    """A regular expression for a glob over keys. Brackets hold characters, ! negates them."""
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        closed = pattern.find("]", at + 2)
        if pattern.startswith("**/", at):
            parts.append("(?:.*/)?")
            at += 2
        elif pattern.startswith("**", at):
            parts.append(".*")
            at += 1
        elif char == "*":
            parts.append("[^/]*")
        elif char == "?":
            parts.append("[^/]")
        elif char == "[" and closed > 0:
            inside = re.escape(pattern[at + 1 : closed]).replace("\\-", "-")
            parts.append(f"[^{inside.removeprefix('!')}]" if inside.startswith("!") else f"[{inside}]")
            at = closed
        else:
            parts.append(re.escape(char))
        at += 1
    return "".join(parts)


def _shown(found: S3Object, below: S3Place) -> bool:
    name = found.key.removeprefix(below.key)
    return not name.endswith("/") and not any(part.startswith(".") for part in name.split("/"))


def _found(place: S3Place, found: S3Object) -> Found:
    return (S3Place(place.bucket, found.key).url, found.size_bytes, found.etag)


@contextmanager
def _listing(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"cannot list {url}: {reason}; check bucket, permissions (s3:ListBucket, s3:GetObject) and --s3-endpoint"
        ) from error
