"""A decode actor as its pool sees it: what it was asked for, what it may be blamed for, how it is ended."""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from echoprune.errors import MediaError
from pipelines.decode_actor import Opened

log = logging.getLogger(__name__)

_span_ids = itertools.count()


@dataclass(eq=False)
class Video:
    """One video on its way through the pool."""

    uri: str
    decoder: str
    opened_ref: Any = None
    opened: Opened | None = None
    error: MediaError | None = None
    strikes: int = 0
    spans: deque[Span] = field(default_factory=deque)


@dataclass(eq=False)
class Span:
    """Cells [next_cell, stop_cell) of a video that are not delivered yet; `calls`: those of them under way."""

    video: Video
    next_cell: int
    stop_cell: int
    segment_cells: int
    key: int = field(default_factory=lambda: next(_span_ids))
    calls: deque[Any] = field(default_factory=deque)
    begun: bool = False
    delivered: bool = False

    @property
    def to_issue(self) -> int:
        """Segments that nobody has been asked for yet."""
        return -(-(self.stop_cell - self.next_cell) // self.segment_cells) - len(self.calls)


@dataclass(eq=False)
class DecodeProcess:
    """A decode actor and the calls it has not been relieved of, oldest first: (ref, video, span or None)."""

    handle: Any
    ready: Any
    calls: deque[tuple[Any, Video, Span | None]] = field(default_factory=deque)
    spans: list[Span] = field(default_factory=list)
    pid: int = 0
    swollen: bool = False

    @property
    def load(self) -> int:
        """Segments asked for and not yet consumed."""
        return sum(span is not None for _, _, span in self.calls)

    def note_pid(self) -> int:
        """Its process id once it has started, else 0; never waits."""
        if not self.pid and ray.wait([self.ready], timeout=0)[0]:
            with suppress(ray.exceptions.RayActorError):
                self.pid = ray.get(self.ready)
        return self.pid

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

    def kill(self) -> None:
        """Ends the process, which may be too stuck to hear Ray; decode actors live on the node of their encoder."""
        ray.kill(self.handle)
        if self.note_pid():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def private_bytes(pid: int) -> int:
    """Memory of a process that it shares with nobody; 0 where it has ended, or the system does not tell (no /proc)."""
    try:
        # Frames lie in Ray's shared memory, and libraries in files: both are resident too, and no decoder's fault.
        _, resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[:3]
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def is_answered(ref: Any) -> bool:
    """Whether the actor answered this call, with a result or an error of its own; never waits."""
    try:
        ray.get(ref, timeout=0)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        return False
    except ray.exceptions.RayError:
        return True
    return True


def answer(ref: Any, video: Video, *, stage: str) -> Any:
    """What the actor answered to a call for `video`. Raises MediaError, or RayActorError where the actor died.

    An error that nobody expected is the video's own too: `kind` is its class. Raised as it is, Ray's form of it would
    pass for a StopIteration or OSError of this process, or be blamed on the video before, since actors work ahead.
    """
    try:
        return ray.get(ref)
    except ray.exceptions.RayActorError:
        raise
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, MediaError):
            raise cause from None
        kind = type(cause).__name__
        message = f"{video.uri}: {kind}: {' '.join(str(cause).split())}"
        log.warning("%s failed unexpectedly", video.uri, exc_info=error)
        raise MediaError(message, stage=stage, kind=kind) from error
