"""The videos of an open shard: encoded one after another, chosen among and written in turn, told of as they end.

On a GPU choosing and writing are done beside the encoder (in_turn.py), each by a thread, so that a video is written while the next one is encoded: it is
told of after that one has started. An error is told to be of the video whose call raised it. A worker's death is blamed on the video
that is encoded, or on the one that is waited for; if it was another one that was written, so it will be again, until that
one is alone: what goes before and after a video that is alone waits for it.

Another shard's videos may be encoded while the last ones of this shard are written: each shard has its own threads for that.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from echoprune.data import Frames
from echoprune.errors import MediaError
from echoprune.index import VideoIndexing
from echoprune.models.encoder import Encoder
from echoprune.schema import StoreSettings
from echoprune.segment import Begun
from echoprune.sources import Source
from pipelines.decode_actor import Opened
from pipelines.events import CellsDone, Event, ReadyForNext, VideoDone, VideoStarted
from pipelines.in_turn import InTurn
from pipelines.open_shard import OpenShard

T = TypeVar("T")

# Seconds between two progress events of one video: a long video is seen to move, and the driver is not flooded.
EVENT_INTERVAL_S = 0.5
# What follows the encoder. Segments to be chosen among at most: each holds its tokens on the GPU, 15 to 75 MB, and more where they
# are computed in float32. Videos to be written: each holds what is kept of it in files, 1.7 GB for three hours of 3,584-wide tokens.
_CHOOSE, _WRITE = "choose", "write"
_LANES = {_CHOOSE: 4, _WRITE: 2}


class DecodedVideo(Protocol):
    """A video as it comes from decode actors, or from this process."""

    def open(self) -> Opened:
        """The scanned video; raises its MediaError."""
        ...

    def segments(self) -> Iterator[Frames]:
        """Its segments in time order; raises its MediaError where decoding ends early."""
        ...


@dataclass
class Clock:
    """Where the time of a shard's turn at the encoder goes, in seconds."""

    wait_s: float = 0.0
    encode_s: float = 0.0

    def waited(self, call: Callable[[], T]) -> T:
        """What `call` gives, with its time counted as waiting."""
        asked = time.perf_counter()
        try:
            return call()
        finally:
            self.wait_s += time.perf_counter() - asked

    def timed(self, segments: Iterator[Frames]) -> Iterator[Frames]:
        """`segments`, with the time spent waiting for them and between them counted."""
        while True:
            try:
                frames = self.waited(partial(next, segments))
            except StopIteration:
                return
            given = time.perf_counter()
            yield frames
            self.encode_s += time.perf_counter() - given


@dataclass(eq=False)
class _Run:
    """A video on its way; `error`: why it has failed while tokens were chosen among."""

    indexing: VideoIndexing
    error: MediaError | None = None

    def take(self, begun: Begun) -> None:
        if self.error is None:
            try:
                self.indexing.take(begun)
            except MediaError as error:
                self.error = copy(error)


@dataclass
class VideoRuns:
    """The videos of the shard whose `files` are open, in its order; `close` it before their folder goes.

    `beside`: what follows the encoder is done in two threads, else at once. `threads`: CPU threads of each. `is_ready`: whether the
    worker may be given its next shard, which is told as soon as it is so.
    """

    files: OpenShard
    encoder: Encoder
    settings: StoreSettings
    spill_dir: Path
    clock: Clock
    beside: bool
    threads: int
    is_ready: Callable[[], bool] = lambda: False
    _is_told_ready: bool = False
    _ending: deque[tuple[str, Future[VideoDone | None]]] = field(default_factory=deque)
    _begun: list[_Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._turn = InTurn(_LANES, beside=self.beside, start=partial(torch.set_num_threads, self.threads))

    def run(self, source: Source, video: DecodedVideo, *, alone: bool) -> Generator[Event, None, None]:
        """Encodes a video. `alone`: nothing is encoded, chosen among or written beside it."""
        yield from self._told_of(self._run(source, video, alone=alone))

    def copied(self, source: Source) -> Generator[Event, None, None]:
        """Takes over a video that is committed as it is."""
        yield from self._told_of(self._written(source, partial(self.files.copy, source)))

    def failed(self, source: Source, error: MediaError) -> Generator[Event, None, None]:
        """Writes down a video that is not tried."""
        yield from self._told_of(self._written(source, partial(self.files.failed, source, error)))

    def rest(self) -> Generator[Event, None, None]:
        """Waits until all videos are written."""
        yield from self._told_of(self._rest())

    def ready(self, *, at_latest: bool = False) -> Generator[Event, None, None]:
        """Tells that the worker may be given its next shard if that is so, or is `at_latest` now; never twice."""
        if not self._is_told_ready and (at_latest or self.is_ready()):
            self._is_told_ready = True
            yield ReadyForNext()

    def close(self) -> None:
        """Ends what is under way, and removes its spill files."""
        self._turn.close()
        for run in self._begun:
            run.indexing.close()

    def _told_of(self, events: Generator[Event, None, None]) -> Generator[Event, None, None]:
        """`events`; where a call that was done in turn raised, its video is in hand when that comes out."""
        try:
            yield from events
        except Exception:
            if self._turn.raised_for is not None:
                yield VideoStarted(self._turn.raised_for)
            raise

    def _run(self, source: Source, video: DecodedVideo, *, alone: bool) -> Generator[Event, None, None]:
        if alone:
            yield from self._timed_rest()
        yield VideoStarted(source.video_id)
        try:
            opened = self.clock.waited(video.open)
        except MediaError as error:
            self._end(source, partial(self.files.failed, source, copy(error)))
        else:
            yield from self._encode(source, opened, video, alone=alone)
        yield from self._timed_rest() if alone else self._ended(None)

    def _written(self, source: Source, call: Callable[[], VideoDone | None]) -> Generator[Event, None, None]:
        self._end(source, call)
        yield from self._ended(None)

    def _timed_rest(self) -> Generator[Event, None, None]:
        """As `_rest`, in this shard's turn."""
        asked = time.perf_counter()
        yield from self._rest()
        self.clock.encode_s += time.perf_counter() - asked

    def _rest(self) -> Generator[Event, None, None]:
        while self._ending:
            self._ending[0][1].exception()
            yield from self._ended(None)

    def _encode(
        self, source: Source, opened: Opened, video: DecodedVideo, *, alone: bool
    ) -> Generator[Event, None, None]:
        grid = opened.grid
        run = _Run(
            VideoIndexing(
                grid=grid,
                time_base_s=float(opened.info.time_base),
                encoder=self.encoder,
                settings=self.settings,
                spill_dir=self.spill_dir,
            )
        )
        self._begun.append(run)
        told, stopped = time.monotonic(), None
        taken: Future[None] | None = None
        try:
            for frames in self.clock.timed(video.segments()):
                begun = run.indexing.begin(frames)
                taken = self._turn.ask(_CHOOSE, partial(run.take, begun), of=source.video_id)
                del begun  # it holds tokens on the GPU
                if alone:
                    # It may have ended its worker for memory: one segment at a time.
                    taken.exception()
                if run.error is not None:
                    break
                if time.monotonic() - told >= EVENT_INTERVAL_S:
                    told = time.monotonic()
                    cells = run.indexing.cells
                    covered = grid.cell_times_s[cells] if cells < grid.cells else grid.end_s
                    yield CellsDone(
                        source.video_id,
                        tokens=cells * grid.tokens_per_cell,
                        video_s=float(covered),
                        wait_s=self.clock.wait_s,
                        encode_s=self.clock.encode_s,
                    )
                yield from self._ended(source.video_id)
                yield from self.ready()
        except MediaError as error:
            # Without its traceback, which holds this frame, and that the last pictures.
            stopped = copy(error)
        self._end(source, partial(self._finish, source, opened, run, taken, stopped))

    def _finish(
        self,
        source: Source,
        opened: Opened,
        run: _Run,
        taken: Future[None] | None,
        stopped: MediaError | None,
    ) -> VideoDone:
        """Writes a video once its last segment is `taken`."""
        if taken is not None:
            taken.result()
        error = run.error or (stopped if run.indexing.cells == 0 else None)
        if error is None:
            try:
                indexed = run.indexing.finish(stopped)
            except MediaError as nothing:
                error = copy(nothing)
        # It holds 12 bytes a candidate token, and has given its files away by now, or gives them up.
        self._begun.remove(run)
        if error is not None:
            run.indexing.close()
            return self.files.failed(source, error)
        with indexed:
            return self.files.store(source, opened, indexed)

    def _end(self, source: Source, call: Callable[[], VideoDone | None]) -> None:
        self._ending.append((source.video_id, self._turn.ask(_WRITE, call, of=source.video_id)))

    def _ended(self, encoded: str | None) -> Generator[Event, None, None]:
        """Tells of the videos that have ended; then in hand is `encoded`, or, of those that are written, the next."""
        told = False
        while self._ending and self._ending[0][1].done():
            done = self._ending.popleft()[1].result()
            if done is not None:
                told = True
                yield done
        in_hand = encoded or (self._ending[0][0] if self._ending else None)
        if told and in_hand is not None:
            yield VideoStarted(in_hand)
