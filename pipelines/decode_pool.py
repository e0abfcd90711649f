"""The decode actors of one encoder: prefetching in order, bounded frames in flight, and what happens when one dies.

Videos are handed out in the shard's order and their segments consumed in time order, while the actors work ahead:
at most `lookahead` undelivered segments an actor, so decoded frames never exceed count x lookahead x segment bytes.
With several actors a long video is cut at keyframes into spans of about `lookahead` segments, one span an actor.

An actor answers its calls in order, so the first unanswered one is to blame for a death or a hang. A video that
kills its decoder is tried once more with the same decoder (an outside kill must not change which decoder is used,
and so the bytes); one that hangs it is tried once more with PyAV. The second time it fails.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray

from echoprune.data import Frames
from echoprune.decode import spans
from echoprune.errors import MediaError
from pipelines.decode_actor import Opened

log = logging.getLogger(__name__)

# Seconds that a decode process may take to start, beside the time it may take to answer.
START_S = 300.0

_span_ids = itertools.count()


@dataclass(eq=False)
class _Video:
    """One video on its way through the pool."""

    uri: str
    decoder: str
    opened_ref: Any = None
    opened: Opened | None = None
    error: MediaError | None = None
    strikes: int = 0
    spans: deque[_Span] = field(default_factory=deque)


@dataclass(eq=False)
class _Span:
    """Cells [next_cell, stop_cell) of a video that are not delivered yet; `issued` calls of them are under way."""

    video: _Video
    next_cell: int
    stop_cell: int
    segment_cells: int
    key: int = field(default_factory=lambda: next(_span_ids))
    calls: deque[Any] = field(default_factory=deque)
    begun: bool = False

    @property
    def to_issue(self) -> int:
        """Segments that nobody has been asked for yet."""
        return -(-(self.stop_cell - self.next_cell) // self.segment_cells) - len(self.calls)


@dataclass(eq=False)
class _Decoder:
    """A decode actor and the calls it has not been relieved of, oldest first: (ref, video, span or None)."""

    handle: Any
    ready: Any
    calls: deque[tuple[Any, _Video, _Span | None]] = field(default_factory=deque)
    spans: list[_Span] = field(default_factory=list)

    @property
    def load(self) -> int:
        """Segments asked for and not yet consumed."""
        return sum(span is not None for _, _, span in self.calls)


class PooledVideo:
    """One video as the pool delivers it: `open()` first, then `segments()`."""

    def __init__(self, pool: DecodePool, video: _Video) -> None:
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


class DecodePool:
    """Decode actors made by `make_actor`, working ahead over the videos of a shard."""

    def __init__(
        self, make_actor: Callable[[], Any], *, count: int, lookahead: int, timeout_s: float
    ) -> None:
        self._make_actor, self._lookahead, self._timeout_s = make_actor, lookahead, timeout_s
        self._decoders = [self._start([]) for _ in range(count)]
        self._queue: list[_Video] = []

    def _start(self, spans: list[_Span]) -> _Decoder:
        handle = self._make_actor()
        return _Decoder(handle, handle.ready.remote(), spans=spans)

    def videos(self, uris: Sequence[str], *, decoder: str) -> Iterator[PooledVideo]:
        """The videos of `uris` in order. What is left unread of one is dropped when the next is asked for."""
        self._queue = [_Video(uri, decoder) for uri in uris]
        try:
            while self._queue:
                self._pump()
                yield PooledVideo(self, self._queue[0])
                self._drop(self._queue.pop(0))
        finally:
            for video in self._queue:
                self._drop(video)
            self._queue = []

    def wait_opened(self, video: _Video) -> Opened:
        """Waits until `video` is scanned; raises its MediaError."""
        self._pump()
        while video.opened is None and video.error is None:
            # Without a reference the actor was lost just now, and the next round asks another one.
            if video.opened_ref is not None:
                self._wait(video.opened_ref)
            self._pump()
        if video.error is not None:
            raise video.error
        assert video.opened is not None
        return video.opened

    def wait_segment(self, span: _Span) -> Frames:
        """Waits for the next segment of `span`; raises the MediaError of its video."""
        while True:
            self._pump()
            if span.video.error is not None:
                raise span.video.error
            ref = span.calls[0]
            if not self._wait(ref):
                continue
            try:
                frames: Frames = _get(ref)
            except ray.exceptions.RayActorError:
                self._bury(self._owner(ref), hang=False)
                continue
            owner = self._owner(ref)
            owner.calls = deque(call for call in owner.calls if call[0] != ref)
            span.calls.popleft()
            span.next_cell += frames.cells
            if span.next_cell >= span.stop_cell:
                owner.spans.remove(span)
                owner.handle.end.remote(span.key)
            return frames

    def _wait(self, ref: Any) -> bool:
        """Whether `ref` is answered; if nothing comes in time, its actor is buried as hanging."""
        owner = self._owner(ref)
        # Starting a process is not decoding: on a busy machine it alone took more than a short --decode-timeout.
        ray.wait([owner.ready], timeout=START_S, fetch_local=False)
        ready, _ = ray.wait([ref], timeout=self._timeout_s, fetch_local=False)
        if not ready:
            self._bury(owner, hang=True)
        return bool(ready)

    def _owner(self, ref: Any) -> _Decoder:
        return next(decoder for decoder in self._decoders if any(call[0] == ref for call in decoder.calls))

    def _pump(self) -> None:
        """Asks for as much as may be in flight: openings first, then segments in the order of consumption."""
        for video in self._queue[: len(self._decoders) + 1]:
            if video.opened_ref is None and video.error is None:
                decoder = min(self._decoders, key=lambda each: len(each.calls))
                video.opened_ref = decoder.handle.open.remote(video.uri)
                decoder.calls.append((video.opened_ref, video, None))
        waiting: list[_Span] = []
        for video in self._queue[: len(self._decoders) + 1]:
            if video.error is None and video.opened is None and not self._try_open(video):
                break
            waiting += [span for span in video.spans if span.to_issue and not self._is_assigned(span)]
        for decoder in self._decoders:
            while decoder.load < self._lookahead:
                span = next((each for each in decoder.spans if each.to_issue > 0), None)
                if span is None:
                    if not waiting:
                        break
                    span = waiting.pop(0)
                    decoder.spans.append(span)
                self._issue(decoder, span)

    def _is_assigned(self, span: _Span) -> bool:
        return any(span in decoder.spans for decoder in self._decoders)

    def _issue(self, decoder: _Decoder, span: _Span) -> None:
        if not span.begun:
            span.begun = True
            decoder.handle.begin.remote(
                span.key, span.video.opened_ref, span.next_cell, span.stop_cell, span.video.decoder
            )
        ref = decoder.handle.segment.remote(span.key)
        span.calls.append(ref)
        decoder.calls.append((ref, span.video, span))

    def _try_open(self, video: _Video) -> bool:
        """Whether `video` is opened or has failed to; never waits."""
        ready, _ = ray.wait([video.opened_ref], timeout=0)
        if not ready:
            return False
        owner = self._owner(video.opened_ref)
        try:
            video.opened = _get(video.opened_ref)
        except MediaError as error:
            video.error = error
        except ray.exceptions.RayTaskError as error:
            # Opening runs ahead: raised here, it would be blamed on the video before.
            kind = type(error.cause).__name__
            video.error = MediaError(f"{video.uri}: {kind}: {error.cause}", stage="probe", kind=kind)
        except ray.exceptions.RayActorError:
            self._bury(owner, hang=False)
            return False
        owner.calls = deque(call for call in owner.calls if call[0] != video.opened_ref)
        if video.opened is not None:
            grid = video.opened.grid
            alone = len(self._decoders) == 1
            parts = 1 if alone else -(-grid.segments // self._lookahead)
            video.spans = deque(
                _Span(video, first, stop, grid.segment_cells)
                for first, stop in spans(video.opened.info, grid, parts=parts, decoder=video.decoder)
            )
        return True

    def _bury(self, decoder: _Decoder, *, hang: bool) -> None:
        """Kills and replaces an actor; blames the first call it did not answer; asks again for the others."""
        ray.kill(decoder.handle)
        if hang:
            _kill_process(decoder)
        culprit = next((video for ref, video, _ in decoder.calls if hang or _is_lost(ref)), None)
        if hang:
            culprit = next(
                (
                    video
                    for ref, video, _ in decoder.calls
                    if not ray.wait([ref], timeout=0, fetch_local=False)[0]
                ),
                culprit,
            )
        if culprit is not None:
            self._strike(culprit, hang=hang)
        for _, video, span in decoder.calls:
            if span is None and video.opened is None:
                video.opened_ref = None
        for span in decoder.spans:
            span.calls.clear()
            span.begun = False
        fresh = self._start(decoder.spans)
        self._decoders[self._decoders.index(decoder)] = fresh

    def _strike(self, video: _Video, *, hang: bool) -> None:
        video.strikes += 1
        what = f"delivered nothing for {self._timeout_s:g} s" if hang else "died"
        log.warning("decoder %s on %s (time %d)", what, video.uri, video.strikes)
        if video.strikes > 1:
            kind = "decode_hang" if hang else "decoder_died"
            video.error = MediaError(
                f"{video.uri}: the decode process {what}, twice; what was not decoded yet is left out",
                stage="decode",
                kind=kind,
            )
        elif hang:
            video.decoder = "pyav"

    def _drop(self, video: _Video) -> None:
        """Takes back what was asked for and is not needed any more."""
        for decoder in self._decoders:
            for span in [each for each in decoder.spans if each.video is video]:
                decoder.spans.remove(span)
                decoder.handle.end.remote(span.key)
            decoder.calls = deque(call for call in decoder.calls if call[1] is not video)
        video.spans.clear()

    def close(self) -> None:
        """Ends the decode processes."""
        for decoder in self._decoders:
            ray.kill(decoder.handle)
        self._decoders = []


def _kill_process(decoder: _Decoder) -> None:
    """Ends a process that may be too stuck to hear Ray; decode actors live on the node of their encoder."""
    started, _ = ray.wait([decoder.ready], timeout=0)
    if started:
        with suppress(ProcessLookupError, ray.exceptions.RayActorError):
            os.kill(ray.get(decoder.ready), signal.SIGKILL)


def _get(ref: Any) -> Any:
    """The answer, with a MediaError raised as itself."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, MediaError):
            raise error.cause from None
        raise


def _is_lost(ref: Any) -> bool:
    """Whether the actor died before it answered this call."""
    try:
        ray.get(ref, timeout=0)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return True
    except ray.exceptions.RayTaskError:
        return False
    return False
