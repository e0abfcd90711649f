"""Whose turn it is at the encoder: the shards of a worker have it one after another, in the order in which they came.

A shard has it while its videos are encoded, and its thread alone asks the encoder, and the decoders, for anything. It gives the
turn up when all of them have been asked for, so that what is left of it is written and committed while the next shard's are encoded.
A shard that fails gives up nothing: its worker is ended, and what waits here waits for that. Else the next shard would go on
with an encoder that may be broken, and be blamed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType


class Turns:
    """The turns at one encoder."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.changed = threading.Condition()
        # The first one has its turn.
        self.asked: deque[Turn] = deque()
        self.ending = 0
        self._clock, self._mark, self._idle_s = clock, clock(), 0.0

    def ask(self) -> Turn:
        """The turn behind all that were asked for before."""
        turn = Turn(self)
        with self.changed:
            self.lap()
            self.asked.append(turn)
        return turn

    def lap(self) -> None:
        """Puts the time since the last call down as idle if no shard had its turn while one was ending; under `changed`."""
        now = self._clock()
        if self.ending and not self.asked:
            self._idle_s += now - self._mark
        self._mark = now

    def taken_idle_s(self) -> float:
        """Idle seconds since the last call; under `changed`."""
        self.lap()
        taken, self._idle_s = self._idle_s, 0.0
        return taken


class Turn:
    """One shard's turn, as a context from when it is asked for: `wait`, `give_up`, `end`. A block that raises has failed."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._is_ending = False

    def wait(self) -> None:
        """Returns when it has come: never, if a shard before has failed."""
        turns = self._turns
        with turns.changed:
            turns.changed.wait_for(lambda: bool(turns.asked) and turns.asked[0] is self)

    def give_up(self) -> None:
        """The next shard may have it; this one has its end to come."""
        with self._turns.changed:
            self._turns.lap()
            self._turns.asked.remove(self)
            self._turns.ending += 1
            self._is_ending = True
            self._turns.changed.notify_all()

    def end(self) -> float:
        """The shard is done: the seconds since it gave the turn up in which the encoder had nothing to do, counted for one shard alone."""
        with self._turns.changed:
            idle_s = self._turns.taken_idle_s()
            self._turns.ending -= 1
            self._is_ending = False
        return idle_s

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        turns = self._turns
        with turns.changed:
            if self._is_ending:
                turns.ending -= 1
            if kind is None:
                return
            # One that has its turn goes on with it, whatever becomes of it.
            at_it = [each for each in list(turns.asked)[:1] if each is not self]
            turns.asked.clear()
            turns.asked.extend(at_it)
