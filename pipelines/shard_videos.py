"""The videos of one shard as its worker takes them, in order, fetched from S3 where they lie there.

They are in the decode pool's queue at once, behind those of the shard before, but for those that wait for one that is to be alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from operator import itemgetter
from typing import Protocol

from echoprune.s3_options import is_s3
from echoprune.sources import Source
from echoprune.staging import StagedVideos, StagingFolder
from pipelines.config import IndexConfig
from pipelines.decode_actor import VideoOpener
from pipelines.decode_pool import DecodePool
from pipelines.inline_video import inline
from pipelines.video_runs import DecodedVideo


class _Part(Protocol):
    """Videos that are decoded ahead together: those of a pool."""

    @property
    def are_soon_asked(self) -> bool: ...

    def __next__(self) -> DecodedVideo: ...

    def close(self) -> None: ...


class Staging:
    """The folder for videos from S3 of a worker, there as long as a shard needs it; those that overlap share its room."""

    def __init__(self, config: IndexConfig) -> None:
        self._config = config
        self._changed = threading.Lock()
        self._folder: StagingFolder | None = None
        self._shards = 0

    def folder(self, until: ExitStack, sources: Sequence[Source]) -> StagingFolder | None:
        """A folder until the end of `until`; None where no source lies in S3."""
        if not any(is_s3(source.uri) for source in sources):
            return None
        config = self._config
        with self._changed:
            if self._folder is None:
                most_bytes = int(config.s3_cache_gb * 2**30)
                self._folder = StagingFolder(config.s3_cache_dir, most_bytes=most_bytes, s3=config.s3_inputs)
            self._shards += 1
            until.callback(self._leave)
            return self._folder

    def _leave(self) -> None:
        with self._changed:
            self._shards -= 1
            if not self._shards and self._folder is not None:
                self._folder.close()
                self._folder = None


class ShardVideos:
    """An iterator over the videos of `sources`, those of `alone` with nothing decoded beside them; `close` it.

    `pool`: None where they are decoded in this process.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        alone: frozenset[str],
        *,
        pool: DecodePool | None,
        opener: VideoOpener,
        decoder: str,
        staging: Staging,
    ) -> None:
        self._pool, self._decoder = pool, decoder
        self._until = ExitStack()
        self._staged = self._until.enter_context(StagedVideos(staging.folder(self._until, sources), sources))
        uris = [source.uri for source in sources]
        self._inline = inline(opener, uris, decoder=decoder, staged=self._staged)
        self._parts = deque(apart([(source.uri, source.video_id in alone) for source in sources]))
        self._part: _Part | None = None
        if pool is not None:
            self._begin_part()

    @property
    def are_soon_asked(self) -> bool:
        """Whether decode actors are soon asked for all that there is of them; never waits."""
        return self._part is not None and not self._parts and self._part.are_soon_asked

    def __iter__(self) -> Iterator[DecodedVideo]:
        return self

    def __next__(self) -> DecodedVideo:
        if self._pool is None:
            return next(self._inline)
        while self._part is not None:
            try:
                return next(self._part)
            except StopIteration:
                self._begin_part()
        raise StopIteration

    def close(self) -> None:
        """Lets go of those that are left."""
        if self._part is not None:
            self._part.close()
        self._until.close()

    def _begin_part(self) -> None:
        self._part = None
        if self._pool is not None and self._parts:
            self._part = self._pool.videos(self._parts.popleft(), decoder=self._decoder, staged=self._staged)


def apart(uris: Iterable[tuple[str, bool]]) -> Iterator[list[str]]:
    """The `uris` in order, cut around each that is to be alone (True)."""
    for alone, part in groupby(uris, key=itemgetter(1)):
        found = [uri for uri, _ in part]
        yield from ([uri] for uri in found) if alone else [found]
