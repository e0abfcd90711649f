"""Doing something at most so often."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

# A snapshot looks at every video, or question, of all open shards: one for each event costs the square of a shard's.
SNAPSHOT_EVERY_S = 0.2


@dataclass
class Throttle:
    """Says when it is time again: at first, and then once `every_s` seconds are over."""

    every_s: float
    clock: Callable[[], float] = time.monotonic
    _next_s: float = float("-inf")

    def is_due(self) -> bool:
        """Whether it is time; if so, the seconds begin anew."""
        now = self.clock()
        if now < self._next_s:
            return False
        self._next_s = now + self.every_s
        return True
