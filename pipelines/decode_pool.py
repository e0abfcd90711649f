"""The decode actors of one encoder: prefetching in order, bounded frames in flight, and what happens when one dies.

Videos are handed out in the shard's order and their segments consumed in time order, while the actors work ahead:
at most `lookahead` undelivered segments an actor, so decoded frames never exceed count x lookahead x segment bytes.
With several actors a long video is cut at keyframes into spans of about `lookahead` segments, one span an actor.

An actor answers its calls in order, so the first unanswered one is to blame for a death or a hang. A video that
kills its decoder is tried once more with the same decoder (an outside kill must not change which decoder is used,
and so the bytes); one that hangs it or makes it swell is tried once more with PyAV. The second time it fails.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from echoprune.data import Frames
from echoprune.decode import spans
from echoprune.errors import MediaError
from pipelines.decode_actor import Opened
from pipelines.decode_process import DecodeProcess, Span, Video, answer
from pipelines.memory_watch import MemoryWatch

log = logging.getLogger(__name__)

# Seconds that a decode process may take to start, beside the time it may take to answer.
START_S = 300.0

# Private memory above which a decode actor is ended. It takes 0.5 GB with torch; decord adds at most 0.6 GB for videos
# that "auto" gives it, and grew past 1.3 GB in 4 s at 1920x1080 before that limit; PyAV holds up to 17 pictures: 1.7 GB
# of 7680x4320 in 10 bits. Fifteen actors at the limit are 60 GB of a machine that feeds a GPU.
DECODER_BYTES = 4 * 2**30


class PooledVideo:
    """One video as the pool delivers it: `open()` first, then `segments()`."""

    def __init__(self, pool: DecodePool, video: Video) -> None:
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
        self,
        make_actor: Callable[[], Any],
        *,
        count: int,
        lookahead: int,
        timeout_s: float,
        memory_bytes: int = DECODER_BYTES,
    ) -> None:
        self._make_actor, self._lookahead, self._timeout_s = make_actor, lookahead, timeout_s
        self._memory_bytes = memory_bytes
        self._watch = MemoryWatch(memory_bytes)
        self._decoders = [self._start([]) for _ in range(count)]
        self._watch.watched = self._decoders
        self._queue: list[Video] = []

    def _start(self, spans: list[Span]) -> DecodeProcess:
        handle = self._make_actor()
        return DecodeProcess(handle, handle.ready.remote(), spans=spans)

    def videos(self, uris: Sequence[str], *, decoder: str) -> Iterator[PooledVideo]:
        """The videos of `uris` in order. What is left unread of one is dropped when the next is asked for."""
        self._queue = [Video(uri, decoder) for uri in uris]
        try:
            while self._queue:
                self._pump()
                yield PooledVideo(self, self._queue[0])
                self._drop(self._queue.pop(0))
        finally:
            for video in self._queue:
                self._drop(video)
            self._queue = []

    def wait_opened(self, video: Video) -> Opened:
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

    def wait_segment(self, span: Span) -> Frames:
        """Waits for the next segment of `span`; raises the MediaError of its video."""
        while True:
            self._pump()
            if span.video.error is not None:
                raise span.video.error
            ref = span.calls[0]
            if not self._wait(ref):
                continue
            try:
                frames: Frames = answer(ref, span.video, stage="decode")
            except ray.exceptions.RayActorError:
                self._bury(self._owner(ref), hang=False)
                continue
            owner = self._owner(ref)
            owner.calls = deque(call for call in owner.calls if call[0] != ref)
            span.calls.popleft()
            span.next_cell += frames.cells
            span.delivered = True
            if span.next_cell >= span.stop_cell:
                owner.spans.remove(span)
                owner.handle.end.remote(span.key)
            return frames

    def _wait(self, ref: Any) -> bool:
        """Whether `ref` is answered; if nothing comes in time, its actor is buried as hanging."""
        owner = self._owner(ref)
        # Starting a process is not decoding: on a busy machine it alone took more than a short --decode-timeout.
        ray.wait([owner.ready], timeout=START_S, fetch_local=False)
        owner.note_pid()
        ready, _ = ray.wait([ref], timeout=self._timeout_s, fetch_local=False)
        if not ready:
            self._bury(owner, hang=True)
        return bool(ready)

    def _owner(self, ref: Any) -> DecodeProcess:
        return next(decoder for decoder in self._decoders if any(call[0] == ref for call in decoder.calls))

    def _pump(self) -> None:
        """Asks for as much as may be in flight: openings first, then segments in the order of consumption."""
        for decoder in list(self._decoders):
            decoder.note_pid()
            if decoder.swollen:
                # Before it is asked for more: its death would be blamed on that.
                self._bury(decoder, hang=False)
        for video in self._queue[: len(self._decoders) + 1]:
            if video.opened_ref is None and video.error is None:
                decoder = min(self._decoders, key=lambda each: len(each.calls))
                video.opened_ref = decoder.handle.open.remote(video.uri)
                decoder.calls.append((video.opened_ref, video, None))
        waiting: list[Span] = []
        for video in self._queue[: len(self._decoders) + 1]:
            if video.error is None and video.opened is None and not self._try_open(video):
                break
            if video.error is None:
                waiting += [span for span in video.spans if span.to_issue and not self._is_assigned(span)]
        for decoder in self._decoders:
            while decoder.load < self._lookahead:
                span = next(
                    (each for each in decoder.spans if each.to_issue > 0 and not each.video.error), None
                )
                if span is None:
                    if not waiting:
                        break
                    span = waiting.pop(0)
                    decoder.spans.append(span)
                self._issue(decoder, span)

    def _is_assigned(self, span: Span) -> bool:
        return any(span in decoder.spans for decoder in self._decoders)

    def _issue(self, decoder: DecodeProcess, span: Span) -> None:
        if not span.begun:
            span.begun = True
            decoder.handle.begin.remote(
                span.key, span.video.opened_ref, span.next_cell, span.stop_cell, span.video.decoder
            )
        ref = decoder.handle.segment.remote(span.key)
        span.calls.append(ref)
        decoder.calls.append((ref, span.video, span))

    def _try_open(self, video: Video) -> bool:
        """Whether `video` is opened or has failed to; never waits."""
        ready, _ = ray.wait([video.opened_ref], timeout=0)
        if not ready:
            return False
        owner = self._owner(video.opened_ref)
        try:
            video.opened = answer(video.opened_ref, video, stage="probe")
        except MediaError as error:
            video.error = error
        except ray.exceptions.RayActorError:
            self._bury(owner, hang=False)
            return False
        owner.calls = deque(call for call in owner.calls if call[0] != video.opened_ref)
        if video.opened is not None:
            grid = video.opened.grid
            alone = len(self._decoders) == 1
            parts = 1 if alone else -(-grid.segments // self._lookahead)
            video.spans = deque(
                Span(video, first, stop, grid.segment_cells)
                for first, stop in spans(video.opened.info, grid, parts=parts, decoder=video.decoder)
            )
        return True

    def _bury(self, decoder: DecodeProcess, *, hang: bool) -> None:
        """Kills and replaces an actor; blames the video it was at; asks again for all that it did not deliver."""
        culprit = decoder.culprit()
        decoder.kill()
        if culprit is not None:
            self._strike(culprit, hang=hang, swollen=decoder.swollen)
        for _, video, span in decoder.calls:
            if span is None and video.opened is None:
                video.opened_ref = None
        for span in decoder.spans:
            span.calls.clear()
            span.begun = span.delivered = False
        # A video that has failed is not asked for again, or it would kill again.
        spans_left = [span for span in decoder.spans if span.video.error is None]
        self._decoders[self._decoders.index(decoder)] = self._start(spans_left)

    def _strike(self, video: Video, *, hang: bool, swollen: bool) -> None:
        video.strikes += 1
        what, kind = "died", "decoder_died"
        if swollen:
            what, kind = f"took more than {self._memory_bytes >> 20} MB", "decoder_swelled"
        elif hang:
            what, kind = f"delivered nothing for {self._timeout_s:g} s", "decode_hang"
        log.warning("decoder %s on %s (time %d)", what, video.uri, video.strikes)
        if video.strikes > 1:
            video.error = MediaError(
                f"{video.uri}: the decode process {what}, twice; what was not decoded yet is left out",
                stage="decode",
                kind=kind,
            )
        elif hang or swollen:
            video.decoder = "pyav"

    def _drop(self, video: Video) -> None:
        """Takes back what was asked for and is not needed any more."""
        for decoder in self._decoders:
            for span in [each for each in decoder.spans if each.video is video]:
                decoder.spans.remove(span)
                decoder.handle.end.remote(span.key)
            decoder.calls = deque(call for call in decoder.calls if call[1] is not video)
        video.spans.clear()

    def close(self) -> None:
        """Ends the decode processes."""
        self._watch.close()
        for decoder in self._decoders:
            ray.kill(decoder.handle)
        self._decoders = []
