"""Videos from S3 on the local disk: fetched whole ahead of their use, in order, and removed after it.

A decoder seeks, and reads a file up to three times, so that fetching it once is the least. What arrives is checked against
the size and etag of the plan. A file that comes short is fetched on, never taken for a short video.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from echoprune.backoff import OutOfPatienceError
from echoprune.errors import ConfigError, MediaError, StoreError
from echoprune.own_folder import OwnFolder, own_base
from echoprune.s3_objects import S3Part
from echoprune.s3_options import S3Options, current_s3, is_s3, s3_place
from echoprune.sources import Source

# Fetched by one request. What is lost with a connection is at most this.
PIECE_BYTES = 16 << 20
# Files on their way at once. One connection to S3 gives about 90 MB/s.
_FETCHERS = 4


@dataclass(eq=False)
class _Staged:
    """One video of the list. `fetched`: its path, or why there is none; None for a video that is local from the start."""

    source: Source
    fetched: Future[str] | None = None
    arrived: bool = False
    released: bool = False
    held_bytes: int = 0
    path: Path | None = None


class StagingFolder:
    """A folder of this process for staged videos, of at most `most_bytes`; `close` removes it with all that is in it.

    `parent`: where it is made, "" for the system's folder for temporary files. `s3`: None for the options of this process.
    Several lists of videos may share it: those of a list that came later wait for room behind all of one before.
    """

    def __init__(self, parent: str = "", *, most_bytes: int, s3: S3Options | None = None) -> None:
        self.most_bytes = most_bytes
        self.s3 = s3 or current_s3()
        try:
            self._own = OwnFolder("videos", parent)
        except OSError as error:
            raise ConfigError(
                f"cannot stage videos in {parent or own_base()}: {error.strerror or error}; give another --s3-cache-dir"
            ) from error
        self.path = self._own.path
        # Of all lists, guarded by `changed`: bytes held, and videos that are not let in yet, in order.
        self.changed = threading.Condition()
        self.used_bytes = 0
        self.waiting: deque[_Staged] = deque()

    def file(self, uri: str) -> Path:
        """Where the video of that URL is put."""
        suffix = Path(uri).suffix
        # FFmpeg goes by suffixes too; the rest of a key may be too long for a file name, or not fit for one.
        name = hashlib.sha256(uri.encode()).hexdigest()[:32]
        return self.path / (
            name + (suffix if suffix[1:].isalnum() and suffix.isascii() and len(suffix) < 20 else "")
        )

    def close(self) -> None:
        """Removes the folder."""
        self._own.close()


class StagedVideos:
    """The videos of a list, on local disk as far as they lie in S3: fetched ahead in their order, to be released when used up.

    `folder`: None leaves them where they are. A context manager: at the end all are released.
    """

    def __init__(self, folder: StagingFolder | None, sources: Sequence[Source]) -> None:
        self._folder = folder
        remote = [source for source in sources if folder is not None and is_s3(source.uri)]
        self._videos = {source.uri: _Staged(source) for source in remote}
        self._closed = False
        self._changed = folder.changed if folder is not None else threading.Condition()
        self._threads = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="staging")
        if folder is not None:
            with self._changed:
                folder.waiting.extend(self._videos.values())
            for video in self._videos.values():
                video.fetched = self._threads.submit(self._stage, folder, video)

    def __enter__(self) -> StagedVideos:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_ready(self, uri: str) -> bool:
        """Whether `path` would answer at once."""
        video = self._videos.get(uri)
        return video is None or video.fetched is None or video.fetched.done()

    def path(self, uri: str) -> str:
        """Where the video lies, "" for one that was local from the start; waits for it.

        Raises MediaError (stage "probe"): "missing", "unreadable", "source_changed" (not of the size and etag that were
        planned), "source_unreachable", "larger_than_cache". Raises StoreError where the disk does not take it.
        """
        video = self._videos.get(uri)
        return "" if video is None or video.fetched is None else video.fetched.result()

    def source(self, uri: str) -> Source | None:
        """A video that has to be fetched, as it was planned; None of one that was local from the start."""
        video = self._videos.get(uri)
        return None if video is None else video.source

    def release(self, uri: str) -> None:
        """Says that a video is not needed any more; its file goes."""
        video = self._videos.get(uri)
        if video is not None:
            with self._changed:
                video.released = True
                # One that is on its way is freed by its fetcher.
                if video.arrived:
                    self._give_back(video)
                self._changed.notify_all()

    def close(self) -> None:
        """Releases all videos; fetches under way end after their present piece."""
        with self._changed:
            self._closed = True
            for video in self._videos.values():
                video.released = True
                self._let_in(video)
            self._changed.notify_all()
        self._threads.shutdown(cancel_futures=True)
        with self._changed:
            for video in self._videos.values():
                self._give_back(video)
            # The videos of another list may wait for that room.
            self._changed.notify_all()

    def _let_in(self, video: _Staged) -> None:
        if self._folder is not None and video in self._folder.waiting:
            self._folder.waiting.remove(video)

    def _give_back(self, video: _Staged) -> None:
        self._hold(video, 0)
        if video.path is not None:
            video.path.unlink(missing_ok=True)

    def _stage(self, folder: StagingFolder, video: _Staged) -> str:
        """Waits for room, then fetches; the path.

        Videos are let in strictly in order: what waits for room then waits only for videos that are used before it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(folder, video))
            self._let_in(video)
            self._hold(video, video.source.size_bytes or 0)
            self._changed.notify_all()
        path = video.path = folder.file(video.source.uri)
        whole = False
        try:
            if not video.released:
                self._pieces(folder, video, path)
            whole = True
        finally:
            with self._changed:
                video.arrived = whole and not video.released
                if not video.arrived:
                    self._give_back(video)
                self._changed.notify_all()
        return str(path)

    def _has_room(self, folder: StagingFolder, video: _Staged) -> bool:
        size = video.source.size_bytes or 0
        fits = not folder.used_bytes or folder.used_bytes + size <= folder.most_bytes
        return folder.waiting[0] is video and (video.released or fits)

    def _hold(self, video: _Staged, size: int) -> None:
        if self._folder is not None:
            self._folder.used_bytes += size - video.held_bytes
            video.held_bytes = size

    def _pieces(self, folder: StagingFolder, video: _Staged, path: Path) -> None:
        # Loads s3fs, which takes half a second.
        from echoprune.s3_client import s3_client  # noqa: PLC0415

        source = video.source
        client, place = s3_client(folder.s3), s3_place(source.uri)

        def read(first: int) -> S3Part:
            try:
                return client.read(place, first=first, count=PIECE_BYTES)
            except FileNotFoundError:
                raise _failure(source, "no such object; check the URL", "missing") from None
            except PermissionError as error:
                raise _failure(source, f"{_words(error)}; grant s3:GetObject", "unreadable") from None
            except OutOfPatienceError as error:
                message = f"{_words(error)}; retry when it can be reached"
                raise _failure(source, message, "source_unreachable") from None
            except OSError as error:
                raise _failure(source, _words(error), "unreadable") from None

        piece = read(0)
        whole = piece
        _check_same(source, whole)
        if whole.size_bytes > folder.most_bytes:
            raise _failure(
                source,
                f"{whole.size_bytes:,} bytes do not fit into the {folder.most_bytes:,} that videos may take on disk; "
                "give a larger --s3-cache-gb",
                "larger_than_cache",
            )
        with self._changed:
            self._hold(video, whole.size_bytes)
        try:
            with path.open("wb") as file:
                while True:
                    file.write(piece.data)
                    if file.tell() >= whole.size_bytes or video.released:
                        return
                    piece = read(file.tell())
                    if (piece.size_bytes, piece.etag) != (whole.size_bytes, whole.etag) or not piece.data:
                        raise _failure(source, "it was replaced while it was fetched", "source_changed")
        except OSError as error:
            raise StoreError(
                f"cannot stage {source.uri} in {path.parent}: {error.strerror or error}; free space there, or give another "
                "--s3-cache-dir or a smaller --s3-cache-gb"
            ) from error


@contextmanager
def local_copy(source: Source, *, s3: S3Options | None = None) -> Iterator[str]:
    """A path of the video within the block: "" for a local one, of one in S3 a copy, whatever its size; see StagedVideos.path."""
    if not is_s3(source.uri):
        yield ""
        return
    folder = StagingFolder(most_bytes=1 << 62, s3=s3)
    try:
        with StagedVideos(folder, [source]) as staged:
            yield staged.path(source.uri)
    finally:
        folder.close()


def _check_same(source: Source, found: tuple[bytes, int, str]) -> None:
    _, size, etag = found
    if source.size_bytes is not None and source.size_bytes != size:
        change = f"{size} bytes, {source.size_bytes} when it was planned"
    elif source.etag and source.etag.strip('"') != etag:
        change = f"etag {etag}, {source.etag} when it was planned"
    else:
        return
    raise _failure(
        source, f"not the object that was planned ({change}); forget it and index it again", "source_changed"
    )


def _failure(source: Source, message: str, kind: str) -> MediaError:
    return MediaError(f"{source.uri}: {message}", stage="probe", kind=kind)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())
