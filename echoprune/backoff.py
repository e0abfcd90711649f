"""Trying again: how long to wait between attempts, when to give up, and how many requests to have under way.

Nothing here knows S3. Waiting times are random (full jitter), so that a thousand clients that failed together do not come
back together. The limit on requests falls by half when a service says that it is overloaded, and grows by about one for as
many successes as there are requests under way (AIMD, as TCP does).
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

T = TypeVar("T")


class Verdict(Enum):
    """What an error says about another attempt."""

    FINAL = "final"
    AGAIN = "again"
    SLOW_DOWN = "slow down"


class OutOfPatienceError(OSError):
    """A service did not answer for as long as was asked to try."""


# When patience ends for all of this process, whatever a Backoff has.
_ends_s = math.inf


@contextmanager
def hurried(most_s: float) -> Iterator[None]:
    """Within the block, in all threads, no attempt but the first begins later than `most_s` from now."""
    global _ends_s  # noqa: PLW0603
    before, _ends_s = _ends_s, min(_ends_s, time.monotonic() + most_s)
    try:
        yield
    finally:
        _ends_s = before


@dataclass(frozen=True)
class Backoff:
    """Waits of up to `first_s`, doubled with each attempt up to `most_s`; no attempt begins after `patience_s`."""

    patience_s: float = 180.0
    first_s: float = 0.1
    most_s: float = 15.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    # Seeded by the system: two processes that were started alike must not wait alike.
    uniform: Callable[[float, float], float] = field(default_factory=lambda: random.Random().uniform)

    def wait_s(self, attempt: int) -> float:
        """Seconds to wait after the attempt of that number, counted from 0."""
        return self.uniform(0.0, min(self.most_s, self.first_s * 2.0 ** min(attempt, 30)))


class ConcurrencyLimit:
    """How many requests may be under way at once; shared by the threads of a process."""

    # One overload refuses every request that is under way; it halves the limit once, not for each of them.
    _SETTLE_S = 0.5

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._limit = float(most)
        self._under_way = 0
        self._slowed_at = float("-inf")
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """The limit now, at least 1."""
        return max(1, int(self._limit))

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Waits until one more may be under way, and counts it within the block."""
        with self._changed:
            while self._under_way >= self.limit:
                self._changed.wait()
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def succeeded(self) -> None:
        """Says that a request was answered."""
        with self._changed:
            self._limit = min(float(self._most), self._limit + 1.0 / self._limit)
            self._changed.notify_all()

    def slow_down(self) -> None:
        """Says that the service is overloaded."""
        with self._changed:
            now = self._clock()
            if now - self._slowed_at >= self._SETTLE_S:
                self._slowed_at = now
                self._limit = max(1.0, self._limit / 2.0)


def persist(
    call: Callable[[], T],
    *,
    backoff: Backoff,
    limit: ConcurrencyLimit,
    errors: tuple[type[Exception], ...],
    judge: Callable[[Exception], Verdict],
    on_retry: Callable[[Exception, Verdict], None] = lambda error, verdict: None,
    before: Callable[[], None] | None = None,
) -> T:
    """What `call` returns, tried again after one of `errors` for as long as `judge` says so and `backoff` allows.

    `before` is called ahead of every attempt, outside of the limit, and may raise to end it. Raises what `call` raised
    where that is final, and OutOfPatienceError, with the last error as its cause, when the time is over.
    """
    begun = backoff.clock()
    attempt = 0
    while True:
        if before is not None:
            before()
        try:
            with limit.slot():
                result = call()
        except errors as error:
            verdict = judge(error)
            if verdict is Verdict.FINAL:
                raise
            if verdict is Verdict.SLOW_DOWN:
                limit.slow_down()
            waited_s = backoff.clock() - begun
            wait_s = backoff.wait_s(attempt)
            if waited_s + wait_s > backoff.patience_s or time.monotonic() + wait_s > _ends_s:
                raise OutOfPatienceError(
                    f"no success in {attempt + 1} attempts within {waited_s:.0f} s, the last: {_words(error)}"
                ) from error
            on_retry(error, verdict)
            backoff.sleep(wait_s)
            attempt += 1
        else:
            limit.succeeded()
            return result


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
