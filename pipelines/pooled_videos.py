"""The videos of one shard as a decode pool gives them, in order: those of the next shard lie behind them in its queue.

All but `DecodePool.videos` is for one thread at a time: that of the shard whose turn it is (turns.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from echoprune.data import Frames
from pipelines.decode_actor import Opened
from pipelines.decode_process import Span, Video


class Pool(Protocol):
    """What is asked of a decode pool here."""

    def begin(self, *, is_warm: bool) -> None:
        """The videos of another shard are asked for from now on; `is_warm`: they were decoded while others were asked for."""
        ...

    def pump(self) -> None:
        """Asks the decoders for as much as may be in flight."""
        ...

    def wait_opened(self, video: Video) -> Opened:
        """Waits until `video` is scanned; raises its MediaError."""
        ...

    def wait_segment(self, span: Span) -> Frames:
        """Waits for the next segment of `span`; raises the MediaError of its video."""
        ...

    def soon_asked(self, videos: Sequence[Video]) -> bool:
        """Whether there is little left of `videos` to ask for; never waits."""
        ...

    def drop(self, videos: Sequence[Video]) -> None:
        """Takes back what was asked for `videos`, which nobody wants any more."""
        ...


class PooledVideo:
    """One video as the pool delivers it: `open()` first, then `segments()`."""

    def __init__(self, pool: Pool, video: Video) -> None:
        self._pool, self._video = pool, video

    def open(self) -> Opened:
        """The scanned video; waits for it. Raises its MediaError."""
        return self._pool.wait_opened(self._video)

    def segments(self) -> Iterator[Frames]:
        """The video's segments in time order. Raises its MediaError where decoding ends early."""
        video = self._video
        while video.spans:
            span = video.spans[0]
            if span.next_cell >= span.stop_cell:
                video.spans.popleft()
                continue
            yield self._pool.wait_segment(span)


class PooledVideos:
    """An iterator over `videos`, which are in the queue of `pool`. What is left unread of one is dropped when the next is asked for.

    `is_warm`: there was something before them in the queue. Closed when all have been given; `close` it before, or frames
    of what is left stay in memory.
    """

    def __init__(self, pool: Pool, videos: Sequence[Video], *, is_warm: bool) -> None:
        self._pool, self._left, self._is_warm = pool, deque(videos), is_warm
        self._given: Video | None = None
        self._is_begun = False

    @property
    def are_soon_asked(self) -> bool:
        """Whether the decoders are soon asked for all that there is of them; never waits."""
        return self._pool.soon_asked(self._left)

    def __iter__(self) -> Iterator[PooledVideo]:
        return self

    def __next__(self) -> PooledVideo:
        if not self._is_begun:
            self._is_begun = True
            self._pool.begin(is_warm=self._is_warm)
        if self._given is not None:
            self._pool.drop([self._left.popleft()])
            self._given = None
        if not self._left:
            raise StopIteration
        self._pool.pump()
        self._given = self._left[0]
        return PooledVideo(self._pool, self._given)

    def close(self) -> None:
        """Takes back what was asked for those that are left."""
        self._pool.drop(self._left)
        self._left.clear()
        self._given = None
