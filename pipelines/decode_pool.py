"""What an encoder asks of its decode actors: prefetching in order, bounded frames in flight, and whom a death is blamed on.

Videos are handed out in the shards' order and their segments consumed in time order, while the actors work ahead, beyond
the end of a shard where the next one is in the queue (pooled_videos.py): at most about count x `lookahead` segments are
undelivered; which actor is asked for which is in calls_ahead.py. With several actors a long video is cut at keyframes into
spans of about `lookahead` segments, one span an actor.

An actor answers its calls in order, so the first unanswered one is to blame for a death or a hang. A video that
kills its decoder is tried once more with the same decoder (an outside kill, or one by Ray's memory monitor, must not
change which decoder is used, and so the bytes); one that hangs it or makes it swell is tried once more with PyAV. The second time it fails.

Videos are opened on the encoder's node, and judged there: one that gets into trouble on another node, whatever that was,
is decoded at home from there on, and nothing is held against it. So a node that is lost costs no video an attempt.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray

from echoprune.data import Frames
from echoprune.decode import spans
from echoprune.errors import MediaError
from echoprune.staging import StagedVideos
from pipelines.calls_ahead import calls_ahead
from pipelines.decode_actor import NOT_HERE, Opened
from pipelines.decode_calls import DecodeCalls
from pipelines.decode_process import AWAY, DecodeProcess, Span, Video, answer
from pipelines.decoders import Decoders
from pipelines.growth import Pace
from pipelines.pooled_videos import PooledVideos
from pipelines.ray_errors import GONE

log = logging.getLogger(__name__)


class DecodePool:
    """`decoders`, working ahead over the videos of shards. `lookahead(count)`: segments for each of so many."""

    def __init__(self, decoders: Decoders, *, lookahead: Callable[[int], int], timeout_s: float) -> None:
        self._crew, self._segments_each, self._timeout_s = decoders, lookahead, timeout_s
        self._pace, self._is_warm = Pace(), False
        self._queue: list[Video] = []
        self._calls = DecodeCalls(lambda: self._crew.up)

    @property
    def _decoders(self) -> list[DecodeProcess]:
        return self._crew.up

    @property
    def _lookahead(self) -> int:
        return self._segments_each(self._crew.count)

    @property
    def decoders(self) -> int:
        """How many have started."""
        return len(self._crew.up)

    def videos(
        self, uris: Sequence[str], *, decoder: str, staged: StagedVideos | None = None
    ) -> PooledVideos:
        """The videos of `uris`, in the queue from now on: decoded when what is before them there leaves room.

        Any thread may call it, whoever is served. `staged`: where those lie that are not on this machine. Waiting for one
        is no hang of a decoder.
        """
        videos = [Video(uri, decoder, staged) for uri in uris]
        is_warm = bool(self._queue)
        # At once, as a list does that: whoever is served goes over the queue meanwhile.
        self._queue.extend(videos)
        return PooledVideos(self, videos, is_warm=is_warm)

    def begin(self, *, is_warm: bool) -> None:
        """The videos of another shard are asked for from now on; `is_warm`: they were decoded while others were asked for."""
        # What came before is no work on frames, and the first ones are waited for whatever the number of decoders.
        self._pace.skip()
        self._is_warm = self._is_warm and is_warm

    def soon_asked(self, videos: Sequence[Video]) -> bool:
        """Whether all `videos` are open, and what is left of them to ask for is no more than may be in flight; never waits."""
        left = self._lookahead * self._crew.count
        for video in videos:
            if not video.is_judged:
                return False
            left -= sum(span.to_issue for span in video.spans if video.error is None)
            if left < 0:
                return False
        return True

    def wait_opened(self, video: Video) -> Opened:
        """Waits until `video` is scanned; raises its MediaError."""
        self._pace.worked()
        self.pump()
        while not video.is_judged:
            # Without a reference its file is not here yet, or the actor was lost just now: the next round asks another one.
            if video.opened_ref is not None:
                self._wait(video.opened_ref)
                self._note_wait()
            elif video.is_here():
                self._crew.wait(home=True)
                self._pace.skip()
            elif video.staged is not None:
                with suppress(MediaError):  # `pump` takes note of it
                    video.staged.path(video.uri)
                self._pace.skip()
            self.pump()
        video.raise_error()
        assert video.opened is not None
        return video.opened

    def wait_segment(self, span: Span) -> Frames:
        """Waits for the next segment of `span`; raises the MediaError of its video."""
        self._pace.worked()
        frames = self._next_segment(span)
        self._note_wait(segments=1)
        self._is_warm = True
        if self._crew.consider(self._pace.rates):
            self._pace.begin()
        return frames

    def _next_segment(self, span: Span) -> Frames:
        while True:
            self.pump()
            span.video.raise_error()
            if not span.calls:
                self._hand_over(span)
                continue
            ref = span.calls[0]
            if not self._wait(ref):
                continue
            owner = self._calls.owner(ref)
            try:
                frames: Frames = answer(ref, span.video, stage="decode" if owner.home else AWAY)
            except GONE as error:
                self._bury(owner, error=error)
                continue
            except (MediaError, ray.exceptions.RayError) as error:
                # Frames that Ray lost at home are no video's doing, and end the encoder.
                if owner.home or getattr(error, "stage", "") == "decode":
                    raise
                self._bring_home(owner, error)
                continue
            owner.calls = deque(call for call in owner.calls if call[0] != ref)
            self._calls.forget(ref)
            span.calls.popleft()
            span.next_cell += frames.cells
            span.delivered = True
            if span.next_cell >= span.stop_cell:
                owner.spans.remove(span)
                owner.end(span)
            return frames

    def _note_wait(self, *, segments: int = 0) -> None:
        if self._is_warm:
            self._pace.waited(segments=segments)
        else:
            self._pace.skip()

    def _hand_over(self, span: Span) -> None:
        """Gives `span`, which is waited for and was lost with its decoder, to one that has its hands full already."""
        owner = next((each for each in self._decoders if span in each.spans), None)
        if owner is not None:
            owner.ask(span)  # it may have less in flight than when it took its later ones
            return
        fit = [each for each in self._decoders if each.may_have(span.video)]
        if not fit:
            self._crew.wait(home=span.video.at_home)
            return
        heir = min(fit, key=lambda each: len(each.calls))
        span.inherited = True
        heir.spans.append(span)
        heir.ask(span)

    def _bring_home(self, decoder: DecodeProcess, error: Exception) -> None:
        """Ends a decoder away that could not get at a video, whose part goes on at home."""
        log.warning("node %s is not asked for frames any more: %s", decoder.node_id, error)
        for _, video, _ in decoder.calls:
            video.at_home = True
        decoder.let_go()
        self._crew.lose(decoder, node_too=getattr(error, "kind", "") == NOT_HERE)

    def _wait(self, ref: Any) -> bool:
        """Whether `ref` is answered; if nothing comes in time, its actor is buried as hanging.

        Each call before it has as much time, from the answer of the one before: two slow ones are no hang. Actors that
        answer meanwhile are asked for more.
        """
        owner = self._calls.owner(ref)
        for each, _, _ in list(owner.calls):
            deadline = time.monotonic() + self._timeout_s
            while not self._calls.comes(each, deadline):
                if time.monotonic() >= deadline:
                    self._bury(owner, hang=True)
                    return False
                self.pump()
                if not any(call[0] == ref for call in owner.calls):
                    return False  # its actor swelled, and was buried for that
            if each == ref:
                break
        return True

    def pump(self) -> None:
        """Asks for as much as may be in flight: openings first, then segments in the order of consumption."""
        self._crew.look()
        for decoder in list(self._decoders):
            if decoder.swollen:
                # Before it is asked for more: its death would be blamed on that.
                self._bury(decoder)
            else:
                decoder.forget_dropped()
        near = self._near()
        at_home = [each for each in self._decoders if each.home]
        for video in near:
            if at_home and video.opened_ref is None and video.error is None and video.is_here():
                decoder = min(at_home, key=lambda each: len(each.calls))
                video.opened_ref = decoder.handle.open.remote(video.uri, video.path)
                decoder.calls.append((video.opened_ref, video, None))
        spans: list[Span] = []
        for video in near:
            if video.error is None and video.opened is None and not self._try_open(video):
                break
            if video.error is None:
                spans += video.spans
        asked = calls_ahead(
            spans,
            self._decoders,
            pending=self._calls.pending(),
            each=self._lookahead,
            count=self._crew.count,
        )
        for decoder, span in list(asked):
            if span not in decoder.spans:
                decoder.spans.append(span)
            decoder.ask(span)
        self._calls.fetch_ahead()

    def _near(self) -> list[Video]:
        """The next videos: as many as there may be segments of in memory, and of those that are not open one more than actors."""
        near: list[Video] = []
        segments = unopened = 0
        for video in self._queue:
            if unopened > self._crew.count or (
                len(near) > self._crew.count and segments >= self._lookahead * self._crew.count
            ):
                break
            near.append(video)
            if video.opened is not None:
                segments += video.opened.grid.segments
            else:
                unopened += 1
        return near

    def _try_open(self, video: Video) -> bool:
        """Whether `video` is opened or has failed to; never waits."""
        if video.opened_ref is None:
            return False
        ready, _ = ray.wait([video.opened_ref], timeout=0)
        if not ready:
            return False
        owner = self._calls.owner(video.opened_ref)
        try:
            video.opened = answer(video.opened_ref, video, stage="probe")
        except MediaError as error:
            video.fail(error)
        except GONE as error:
            self._bury(owner, error=error)
            return False
        owner.calls = deque(call for call in owner.calls if call[0] != video.opened_ref)
        if video.opened is not None:
            grid = video.opened.grid
            alone = self._crew.count == self._crew.most == 1
            parts = 1 if alone else -(-grid.segments // self._lookahead)
            video.spans = deque(
                Span(video, first, stop, grid.segment_cells)
                for first, stop in spans(video.opened.info, grid, parts=parts, decoder=video.decoder)
            )
        return True

    def _bury(self, decoder: DecodeProcess, *, hang: bool = False, error: Exception | None = None) -> None:
        """Kills and replaces an actor; blames the video it was at; all that it did not deliver is asked of others.

        `error`: what Ray says of its end.
        """
        culprit = decoder.culprit()
        self._crew.lose(decoder)
        if culprit is not None and decoder.home:
            culprit.strike(
                hang_s=self._timeout_s if hang else None,
                memory_bytes=self._crew.memory_bytes if decoder.swollen else None,
                node_full=isinstance(error, ray.exceptions.OutOfMemoryError),
            )
        elif culprit is not None:
            log.warning("a decode actor of node %s was lost; %s goes on here", decoder.node_id, culprit.uri)
            culprit.at_home = True
        decoder.let_go()

    def drop(self, videos: Sequence[Video]) -> None:
        """Takes back what was asked for `videos` and is not needed any more; those of other shards stay in the queue."""
        for video in videos:
            self._queue.remove(video)
            for decoder in self._decoders:
                decoder.drop(video)
            video.spans.clear()
            if video.staged is not None:
                video.staged.release(video.uri)
        if not self._queue:
            # Not until the next shard: frames that nobody wants any more would stay in memory.
            self._calls.pending()

    def close(self) -> None:
        """Ends the decode processes."""
        self._crew.close()
