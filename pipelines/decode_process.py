"""A decode actor as its pool sees it: what it was asked for, what it may be blamed for, how it is ended."""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections import deque
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from echoprune.errors import MediaError
from echoprune.s3_objects import S3Counts
from echoprune.staging import StagedVideos
from pipelines.decode_actor import Opened, Seen
from pipelines.ray_errors import ANSWERED, GONE
from pipelines.rows import unforeseen

log = logging.getLogger(__name__)

# Stage of an error that is no video's, but of a decoder on another node.
AWAY = "away"

_span_ids = itertools.count()


@dataclass(eq=False)
class Video:
    """One video on its way through the pool. `path`: where its file lies, "" if that is `uri`. `staged`: who fetches it there.

    `at_home`: only decoders on the encoder's node may have it from now on. `dropped`: nobody wants it any more, but a
    decoder may still be at it.
    """

    uri: str
    decoder: str
    staged: StagedVideos | None = None
    path: str = ""
    opened_ref: Any = None
    opened: Opened | None = None
    error: MediaError | None = None
    strikes: int = 0
    at_home: bool = False
    dropped: bool = False
    spans: deque[Span] = field(default_factory=deque)

    @property
    def is_judged(self) -> bool:
        """Whether it has been opened, or has failed."""
        return self.opened is not None or self.error is not None

    def is_here(self) -> bool:
        """Whether its file is on this machine; never waits. One that cannot be fetched has failed.

        An error of the disk, or of a library, is none of a shard that is encoded meanwhile: it comes when the file is waited for.
        """
        if self.staged is None:
            return True
        if not self.staged.is_ready(self.uri):
            return False
        try:
            self.path = self.staged.path(self.uri)
        except MediaError as error:
            self.fail(error)
            return False
        except Exception:  # noqa: BLE001 - raised again where it is waited for, in the turn of its own shard
            return False
        return True

    def fail(self, error: MediaError) -> None:
        """Keeps why it has failed, without the frames of calls through which that came.

        They hold this video, and what Ray has of it, until Python looks for circles: for minutes, by a process with little to do.
        """
        self.error = copy(error)

    def raise_error(self) -> None:
        """Raises why it has failed, if it has: another exception each time, for the same reason."""
        if self.error is not None:
            raise copy(self.error)

    def strike(self, *, hang_s: float | None, memory_bytes: int | None, node_full: bool = False) -> None:
        """Takes note that it has ended a decoder at home; it is tried once more, and the second time it has failed.

        By delivering nothing for `hang_s` seconds, by taking more than `memory_bytes`, by being at work when Ray found its
        node's memory full, or else by killing it.
        """
        self.strikes += 1
        what, kind = "died", "decoder_died"
        if node_full:
            what, kind = "was ended by Ray, since the memory of its machine was full", "node_out_of_memory"
        if memory_bytes is not None:
            what, kind = f"took more than {memory_bytes >> 20} MB", "decoder_swelled"
        elif hang_s is not None:
            what, kind = f"delivered nothing for {hang_s:g} s", "decode_hang"
        log.warning("decoder %s on %s (time %d)", what, self.uri, self.strikes)
        if self.strikes > 1:
            self.error = MediaError(
                f"{self.uri}: the decode process {what}, twice; what was not decoded yet is left out",
                stage="decode",
                kind=kind,
            )
        elif kind in ("decoder_swelled", "decode_hang"):
            self.decoder = "pyav"


def as_seen(video: Video) -> Seen:
    """The file of `video` as it is on this node."""
    try:
        size = Path(video.path or video.uri).stat().st_size
    except OSError:
        size = -1  # gone: it is judged by whoever decodes it
    return Seen(size, video.staged.source(video.uri) if video.staged is not None else None)


@dataclass(eq=False)
class Span:
    """Cells [next_cell, stop_cell) of a video that are not delivered yet; `calls`: those of them under way.

    `inherited`: its decoder was lost, and another one has it beside what it may have in flight itself.
    """

    video: Video
    next_cell: int
    stop_cell: int
    segment_cells: int
    key: int = field(default_factory=lambda: next(_span_ids))
    calls: deque[Any] = field(default_factory=deque)
    begun: bool = False
    delivered: bool = False
    inherited: bool = False

    @property
    def to_issue(self) -> int:
        """Segments that nobody has been asked for yet."""
        return -(-(self.stop_cell - self.next_cell) // self.segment_cells) - len(self.calls)


@dataclass(eq=False)
class DecodeProcess:
    """A decode actor and the calls it has not been relieved of, oldest first: (ref, video, span or None).

    `pid`: its process on the node `node_id`. `home`: that is the encoder's own.
    """

    handle: Any
    pid: int
    node_id: str
    home: bool = True
    calls: deque[tuple[Any, Video, Span | None]] = field(default_factory=deque)
    spans: list[Span] = field(default_factory=list)
    swollen: bool = False
    _ended: list[Any] = field(default_factory=list)

    @property
    def load(self) -> int:
        """Segments asked for and not yet consumed, without those of spans that were another one's."""
        return sum(
            span is not None and not span.inherited and not video.dropped for _, video, span in self.calls
        )

    def may_have(self, video: Video) -> bool:
        """Whether it may decode `video`."""
        return self.home or not video.at_home

    def culprit(self) -> Video | None:
        """The video at work when it died or hung: that of the oldest call without an answer; None if there is none.

        One that swelled may have done so between two calls, since decord decodes ahead: then it is the video that it
        has begun to deliver and not finished, if there is one.
        """
        waiting = [(video, span) for ref, video, span in self.calls if not is_answered(ref)]
        video, at_work = waiting[0] if waiting else (None, None)
        if not self.swollen or at_work is not None:
            return video
        answered = [span for ref, _, span in self.calls if is_answered(ref)]
        begun = (span for span in self.spans if span.delivered or span in answered)
        unfinished = (span for span in begun if span.to_issue or any(span is each for _, each in waiting))
        return next((span.video for span in unfinished), video)

    def ask(self, span: Span) -> None:
        """Asks it for the next segment of `span`, which it begins first if it has not."""
        video = span.video
        if not span.begun:
            span.begun = True
            if not self.home:
                self.handle.see.remote(span.key, as_seen(video))
            self.handle.begin.remote(
                span.key, video.opened_ref, span.next_cell, span.stop_cell, video.decoder
            )
        ref = self.handle.segment.remote(span.key)
        span.calls.append(ref)
        self.calls.append((ref, video, span))

    def let_go(self) -> None:
        """Takes back what it was asked for: it has ended."""
        for _, video, span in self.calls:
            if span is None and video.opened is None:
                video.opened_ref = None
        for span in self.spans:
            span.calls.clear()
            span.begun = span.delivered = span.inherited = False
        self.calls.clear()
        self.spans.clear()

    def drop(self, video: Video) -> None:
        """Takes back what it was asked for `video`, which nobody wants any more."""
        video.dropped = True
        for span in [each for each in self.spans if each.video is video]:
            self.spans.remove(span)
            self.end(span)
        self.forget_dropped()

    def end(self, span: Span) -> None:
        """Tells it that nobody wants more of `span`."""
        ref = self.handle.end.remote(span.key)
        if not self.home:
            self._ended.append(ref)

    def s3(self) -> S3Counts:
        """What one on another node has asked of S3 for spans that have ended since the last call; never waits."""
        total = S3Counts()
        # Not taken away at once: another thread may end a span meanwhile.
        if ended := list(self._ended):
            told, _ = ray.wait(ended, num_returns=len(ended), timeout=0)
            for ref in told:
                self._ended.remove(ref)
            # One that is lost takes its counts along.
            with suppress(ray.exceptions.RayError):
                total = sum(ray.get(told), total)
        return total

    def forget_dropped(self) -> None:
        """Relieves it of calls that nobody wants any more and that it has answered: until then they are what it is at."""
        if any(video.dropped for _, video, _ in self.calls):
            self.calls = deque(each for each in self.calls if not (each[1].dropped and is_answered(each[0])))

    def kill(self) -> None:
        """Ends the process, which may be too stuck to hear Ray."""
        ray.kill(self.handle)
        if self.home:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            return
        # Nobody waits for this: the node may be gone.
        there = NodeAffinitySchedulingStrategy(self.node_id, soft=False)
        task = ray.remote(end_process).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        task.remote(self.pid)


def end_process(pid: int) -> None:
    """Ends a process of the node that this runs on, if it is a decode actor still and no other that got its number."""
    with suppress(OSError):
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        if title.startswith(b"ray::") and b"Decod" in title:
            os.kill(pid, signal.SIGKILL)


def is_answered(ref: Any) -> bool:
    """Whether the actor answered this call, with a result or an error of its own; never waits."""
    try:
        ray.get(ref, timeout=0)
    except (*GONE, ray.exceptions.GetTimeoutError):
        return False
    except ray.exceptions.RayError:
        return True
    return True


def answer(ref: Any, video: Video, *, stage: str) -> Any:
    """What the actor answered to a call for `video`. Raises MediaError, or Ray's error where the actor gave no answer.

    An error that nobody expected is the video's own too: `kind` is its class. Raised as it is, Ray's form of it would
    pass for a StopIteration or OSError of this process, or be blamed on the video before, since actors work ahead.
    """
    try:
        return ray.get(ref)
    except ANSWERED as error:
        # A frame that has a name for an exception which came through it is a circle: there is none for the cause here.
        raise _video_error(error, video.uri, stage=stage) from None


def _video_error(error: Exception, uri: str, *, stage: str) -> MediaError:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, MediaError):
        return copy(cause)
    log.warning("%s failed unexpectedly", uri, exc_info=error)
    return unforeseen(uri, cause, stage=stage)
