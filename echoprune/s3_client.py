"""Requests to S3, each tried again until it succeeds, fails for good, or patience is over. Uploads are whole or not there.

s3fs opens the connection and signs; its own retries are off, since it gives up on a GET after five errors and tries other
calls without jitter. One client a process and set of options: its connections and threads must not cross a fork, so that
a forked child gets a client of its own. Which objects make a store is not known here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import botocore.exceptions
import fsspec.asyn

from echoprune.backoff import Backoff, ConcurrencyLimit, OutOfPatienceError, Verdict, persist
from echoprune.errors import ConfigError
from echoprune.s3_connection import MOST_REQUESTS, ask, connect, fetch
from echoprune.s3_errors import (
    JUDGED,
    condition_failed,
    credentials_refused,
    judge,
    not_supported,
    status_of,
)
from echoprune.s3_objects import S3Counts, S3Object, S3Part, new_counts
from echoprune.s3_options import S3Options, S3Place

_log = logging.getLogger(__name__)

T = TypeVar("T")

# Files larger than this are sent in parts. S3 takes no parts below 5 MiB and no more than 10,000 of them: 1 GiB is 64.
PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 4
# The largest object that is read in one request, and the largest file of a store.
FILE_BYTES = 1 << 30
# A request that trickles is as good as none: this long, and as much again for every 100 kB.
_SLOW_S, _SLOW_BYTES_S = 60.0, 100_000
# Where a server ignores conditions, two writers that raced have both written after this long.
SETTLE_S = 1.0


@dataclass
class S3Client:
    """One connection to S3; see the module's docstring. All calls block, and may be made from any thread.

    Raises FileNotFoundError for what is not there, PermissionError, OutOfPatienceError, other OSErrors; ConfigError where the
    credentials are missing or refused.
    """

    options: S3Options
    backoff: Backoff
    limit: ConcurrencyLimit = field(default_factory=lambda: ConcurrencyLimit(MOST_REQUESTS))
    counts: S3Counts = field(default_factory=S3Counts)
    _fs: Any = None
    _opening: threading.Lock = field(default_factory=threading.Lock)
    _warned: bool = False

    def head(self, place: S3Place) -> S3Object | None:
        """The object at `place`; None where there is none."""
        try:
            found = self._ask("head_object", Bucket=place.bucket, Key=place.key)
        except FileNotFoundError:
            return None
        except PermissionError:
            if self._is_missing(place):
                return None
            raise
        return S3Object(place.key, int(found["ContentLength"]), _bare(found.get("ETag")))

    def _is_missing(self, place: S3Place) -> bool:
        """Whether the list says so of an object that is forbidden: for a role that may list a prefix alone, what is missing is."""
        try:
            page = self._ask("list_objects_v2", Bucket=place.bucket, Prefix=place.key, MaxKeys=1)
        except PermissionError:
            return False
        # In order of keys: the object itself comes before those whose names go on from there.
        return all(each["Key"] != place.key for each in page.get("Contents", ()))

    def heads(self, places: Sequence[S3Place]) -> list[S3Object | None]:
        """`head` of each, several at a time."""
        return self._at_once(self.head, places)

    def read(self, place: S3Place, *, first: int | None = None, count: int | None = None) -> S3Part:
        """The whole object, or `count` bytes from byte `first` on; `first` negative: so many bytes at its end.

        Less where the object ends before. A body that is shorter than the server said is asked for again.
        """
        asked: dict[str, Any] = {}
        if first is not None:
            last = "" if count is None else first + count - 1
            asked["Range"] = f"bytes={first}" if first < 0 else f"bytes={first}-{last}"
        size = FILE_BYTES if count is None else count
        try:
            answer, body = self._call(
                lambda: self._run(fetch, "get_object", size, Bucket=place.bucket, Key=place.key, **asked)
            )
        except OSError as error:
            if isinstance(error, PermissionError) and self._is_missing(place):
                raise FileNotFoundError(errno.ENOENT, "no such object", place.url) from error
            if status_of(error) != 416 or first is None:
                raise
            # No byte of an empty object can be asked for; and rclone takes the last 64 KiB of a smaller one for none.
            found = self.head(place)
            if found is not None and first < 0 and 0 < found.size_bytes <= -first:
                return self.read(place)
            if found is None or found.size_bytes:
                raise
            return S3Part(b"", 0, found.etag)
        total = int(str(answer.get("ContentRange") or f"/{len(body)}").rpartition("/")[2])
        if "ContentRange" not in answer and first is not None:
            # A server that knows no ranges sends everything.
            begin = max(0, total + first) if first < 0 else first
            body = body[begin : None if count is None or first < 0 else begin + count]
        return S3Part(body, total, _bare(answer.get("ETag")))

    def read_many(self, places: Sequence[S3Place]) -> list[bytes]:
        """The content of several objects, several at a time."""
        return self._at_once(lambda place: self.read(place).data, places)

    def below(self, place: S3Place) -> Iterator[S3Object]:
        """The objects whose keys begin with that of `place`, in order of their keys."""
        for page in self._pages("list_objects_v2", place, ("ContinuationToken",)):
            for entry in page.get("Contents", ()):
                yield S3Object(entry["Key"], int(entry["Size"]), _bare(entry.get("ETag")))

    def _pages(self, method: str, place: S3Place, tokens: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The answers of a listing, 1,000 entries each. Raises OSError for one that breaks off."""
        token: dict[str, str] = {}
        while True:
            page = self._ask(method, Bucket=place.bucket, Prefix=place.key, **token)
            yield page
            if not page.get("IsTruncated"):
                return
            following = {name: page[f"Next{name}"] for name in tokens if page.get(f"Next{name}")}
            if following in ({}, token):
                raise OSError(errno.EIO, f"the list of {place.url} breaks off, with no word of how to go on")
            token = following

    def remove(self, place: S3Place) -> None:
        """Removes an object; nothing happens if it is not there."""
        self._ask("delete_object", Bucket=place.bucket, Key=place.key)

    def write(self, place: S3Place, data: bytes, *, before: Callable[[], None] | None = None) -> None:
        """Writes an object in one put. `before` is called ahead of each attempt, and may raise to end it."""
        self._ask("put_object", before, len(data), Bucket=place.bucket, Key=place.key, Body=data)

    def create(self, place: S3Place, data: bytes) -> bool:
        """Whether this call made the object; False if it was there. Of two racing calls one wins.

        Exact where the server takes conditions (If-None-Match: AWS S3, MinIO, Ceph), if the contents differ. One that ignores them is
        noticed by putting the same again: then whoever wrote last within a second wins, so that both may only if one of
        them stood still for longer between looking and putting.
        """
        if self.head(place) is not None:
            return False
        exact = self._put_if_absent(place, data)
        if exact is None:
            exact = self._put_if_absent(place, data)
            if exact is None:
                self.backoff.sleep(SETTLE_S)
        return self.read(place).data == data

    def _put_if_absent(self, place: S3Place, data: bytes) -> bool | None:
        """False if the server refused since there is one, None if it took it: the first of two puts may."""
        asked = {"Bucket": place.bucket, "Key": place.key, "Body": data}
        try:
            self._ask("put_object", None, len(data), IfNoneMatch="*", **asked)
        except OSError as error:
            if condition_failed(error):
                return False
            if not not_supported(error):
                raise
            self._ask("put_object", None, len(data), **asked)
        return None

    def put_file(
        self, path: str | os.PathLike[str], place: S3Place, *, before: Callable[[], None] | None = None
    ) -> None:
        """Sends a local file; it appears when it is whole. Larger ones go in parts, the last request of which completes it."""
        size = Path(path).stat().st_size
        if size <= PART_BYTES:
            self.write(place, Path(path).read_bytes(), before=before)
        else:
            self._put_parts(Path(path), place, size, before=before)
        found = self.head(place)
        if found is None or found.size_bytes != size:
            there = "nothing" if found is None else f"{found.size_bytes} bytes"
            raise OSError(errno.EIO, f"{there} arrived of {size}")

    def _put_parts(self, path: Path, place: S3Place, size: int, *, before: Callable[[], None] | None) -> None:
        target = {"Bucket": place.bucket, "Key": place.key}
        target["UploadId"] = self._ask("create_multipart_upload", before, **target)["UploadId"]

        def send(number: int) -> dict[str, Any]:
            with path.open("rb") as file:
                file.seek((number - 1) * PART_BYTES)
                data = file.read(PART_BYTES)
            done = self._ask("upload_part", before, len(data), PartNumber=number, Body=data, **target)
            return {"PartNumber": number, "ETag": done["ETag"]}

        try:
            with ThreadPoolExecutor(_PARTS_AT_ONCE) as threads:
                parts = list(threads.map(send, range(1, math.ceil(size / PART_BYTES) + 1)))
            try:
                self._ask("complete_multipart_upload", before, MultipartUpload={"Parts": parts}, **target)
            except FileNotFoundError:
                # Completed by an attempt whose answer was lost; `put_file` looks whether it is there.
                if self.head(place) is None:
                    raise
        except BaseException:
            self._abort(target)
            raise

    def unfinished_uploads(self, place: S3Place) -> list[tuple[str, str]]:
        """(key, upload id) of uploads in parts that were begun below `place` and not ended; none where a server cannot tell."""
        uploads: list[tuple[str, str]] = []
        try:
            for page in self._pages("list_multipart_uploads", place, ("KeyMarker", "UploadIdMarker")):
                uploads += [(each["Key"], each["UploadId"]) for each in page.get("Uploads") or ()]
        except OutOfPatienceError:
            raise
        except OSError as error:
            _log.debug("unfinished uploads of %s are not known: %s", place.url, error)
        return uploads

    def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Removes the parts of an upload that was not ended."""
        self._abort({"Bucket": bucket, "Key": key, "UploadId": upload_id})

    def _abort(self, target: dict[str, str]) -> None:
        try:
            self._ask("abort_multipart_upload", **target)
        except OSError as error:
            # Left for `gc`, or the bucket's own rule for incomplete uploads.
            _log.warning(
                "an unfinished upload of s3://%s/%s is left: %s", target["Bucket"], target["Key"], error
            )

    def _ask(
        self, method: str, before: Callable[[], None] | None = None, size: int = 0, /, **asked: Any
    ) -> dict[str, Any]:
        answer: dict[str, Any] = self._call(lambda: self._run(ask, method, size, **asked), before=before)
        return answer

    def _call(self, call: Callable[[], T], *, before: Callable[[], None] | None = None) -> T:
        def counted() -> T:
            self.counts.requests += 1
            return call()

        try:
            return persist(
                counted,
                backoff=self.backoff,
                limit=self.limit,
                errors=JUDGED,
                judge=judge,
                on_retry=self._note,
                before=before,
            )
        except botocore.exceptions.BotoCoreError as error:
            # Of those that are not tried again: no credentials, a name that is none.
            raise ConfigError(f"cannot use S3: {_words(error)}; check the URL and the credentials") from error
        except OSError as error:
            if not credentials_refused(error):
                raise
            # No video or file is to blame for it.
            raise ConfigError(
                f"S3 refuses the credentials: {_words(error)}; renew them, and look at this machine's clock"
            ) from error

    def _note(self, error: Exception, verdict: Verdict) -> None:
        self.counts.retries += 1
        self.counts.slow_downs += verdict is Verdict.SLOW_DOWN
        # Said once a process: a run may repeat many requests and be well.
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        where = self.options.endpoint or "S3"
        _log.log(level, "%s: %s; tried again for up to %.0f s", where, error, self.backoff.patience_s)

    def _run(self, coroutine: Any, method: str, size: int, **asked: Any) -> Any:
        fs = self._connected()
        limit_s = _SLOW_S + size / _SLOW_BYTES_S

        async def bounded() -> Any:
            return await asyncio.wait_for(coroutine(fs, method, **asked), limit_s)

        try:
            return fsspec.asyn.sync(fs.loop, bounded)
        except RuntimeError as error:
            # What botocore raises where a role's credentials have expired and new ones do not come.
            if "credentials" not in str(error):
                raise
            raise ConfigError(f"cannot use S3: {_words(error)}; renew the credentials") from error

    def _connected(self) -> Any:
        with self._opening:
            if self._fs is None:
                self._fs = connect(self.options)
            return self._fs

    def _at_once(self, call: Callable[[S3Place], T], places: Sequence[S3Place]) -> list[T]:
        if len(places) < 2:
            return [call(place) for place in places]
        with ThreadPoolExecutor(min(MOST_REQUESTS, len(places))) as threads:
            return list(threads.map(call, places))


_clients: dict[tuple[int, S3Options], S3Client] = {}


def s3_client(options: S3Options) -> S3Client:
    """The client of this process for these options."""
    key = (os.getpid(), options)
    if key not in _clients:
        _clients[key] = S3Client(options, Backoff(patience_s=options.patience_s), counts=new_counts())
    return _clients[key]


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())


def _bare(etag: object) -> str:
    return str(etag or "").strip('"')
