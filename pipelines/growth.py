"""How many decode actors an encoder is to have, from what was measured: its waiting for frames, and its work on them.

An encoder that waits a share w of its time is delivered 1 - w of the frames that it could take. Decoders being alike, it
lacks as many as its time is longer than its work. They are added stepwise, since what they read from may be slower than they.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

# Below this share of waiting the encoder is as good as busy; decoders more would gain less than this.
IDLE_SHARE = 0.05
# A shorter stretch measures single videos: the longest wait of one is that for a scan and a first segment, some seconds.
WINDOW_S = 20.0
WINDOW_SEGMENTS = 32
# Of the gain that added decoders promise, what must have come, or the next ones are added later.
GAIN_SHARE = 0.25
# Times that a stretch may have been doubled: 20 s become 21 minutes.
_DOUBLINGS = 6


@dataclass(frozen=True)
class Rates:
    """A stretch of an encoder's time: segments that it was given, seconds that it waited for them and worked on them."""

    segments: int
    waited_s: float
    busy_s: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.waited_s + self.busy_s

    @property
    def idle(self) -> float:
        """The share of waiting."""
        return self.waited_s / self.seconds if self.seconds else 0.0

    @property
    def delivered(self) -> float:
        """Segments a second that came: the decoders' rate where the encoder waits, else the encoder's."""
        return self.segments / self.seconds if self.seconds else 0.0

    @property
    def taken(self) -> float:
        """Segments a second that the encoder would take: its own rate, infinite where its work took no time."""
        return self.segments / self.busy_s if self.busy_s else math.inf


def wanted(decoders: int, rates: Rates, *, most: int) -> int:
    """Decoders for an encoder that had `decoders` during `rates`: never fewer, at most twice as many and at most `most`.

    The whole number of them that delivers what the encoder takes.
    """
    most = min(most, 2 * decoders)
    if rates.idle < IDLE_SHARE or most <= decoders or not rates.delivered:
        return decoders
    lacking = rates.taken / rates.delivered
    # A hair less: 2 / 1.6 * 8 is 10.000000000000002.
    return most if decoders * lacking >= most else max(decoders, math.ceil(decoders * lacking - 1e-9))


def helped(before: Rates, after: Rates, *, decoders: int, added: int) -> bool:
    """Whether `added` decoders beside `decoders` raised what is delivered by a good part of what they promised.

    The promise ends where the encoder is busy all the time.
    """
    if not before.delivered:
        return True
    promised = min(added / decoders, before.taken / before.delivered - 1)
    gained = after.delivered / before.delivered - 1
    return after.idle < IDLE_SHARE or gained >= GAIN_SHARE * promised


class Growth:
    """Looks at one encoder, stretch by stretch, and says how many decoders it is to have.

    A stretch is at least `window_s` and `segments` long, and twice as long as the last one where the decoders that were added after that did
    not help: the files may come from a disk that is slower, or be videos that cannot be cut among decoders.
    """

    def __init__(self, *, window_s: float = WINDOW_S, segments: int = WINDOW_SEGMENTS) -> None:
        self._least_s, self._segments = window_s, segments
        self._window_s = window_s
        self._before: tuple[Rates, int] | None = None

    def is_due(self, rates: Rates) -> bool:
        """Whether `rates` are a stretch to go by."""
        return rates.seconds >= self._window_s and rates.segments >= self._segments

    def next(self, decoders: int, rates: Rates, *, most: int) -> int:
        """How many there are to be after a stretch in which there were `decoders`."""
        if self._before is not None:
            before, fewer = self._before
            if decoders > fewer and not helped(before, rates, decoders=fewer, added=decoders - fewer):
                self._window_s = min(2 * self._window_s, self._least_s * 2**_DOUBLINGS)
            else:
                self._window_s = self._least_s
        count = wanted(decoders, rates, most=most)
        self._before = (rates, decoders) if count > decoders else None
        return count


class Pace:
    """A stopwatch over one encoder: each moment since the last call is put down as worked, waited, or neither."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._mark = clock, clock()
        self.begin()

    def begin(self) -> None:
        """Starts a new stretch."""
        self._segments, self._waited_s, self._busy_s = 0, 0.0, 0.0
        self.skip()

    def worked(self) -> None:
        """The encoder was at work until now."""
        self._busy_s += self._lap()

    def waited(self, *, segments: int = 0) -> None:
        """The encoder waited for its decoders until now, and was given so many segments."""
        self._waited_s += self._lap()
        self._segments += segments

    def skip(self) -> None:
        """Until now it did something else."""
        self._lap()

    @property
    def rates(self) -> Rates:
        """The stretch so far."""
        return Rates(self._segments, self._waited_s, self._busy_s)

    def _lap(self) -> float:
        before, self._mark = self._mark, self._clock()
        return self._mark - before
