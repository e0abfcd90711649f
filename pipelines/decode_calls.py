"""The calls of decode actors that are under way: whose one is, how many are not answered, and waiting for one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from pipelines.decode_process import DecodeProcess


class DecodeCalls:
    """Those of the actors that `up()` gives by now."""

    def __init__(self, up: Callable[[], Sequence[DecodeProcess]]) -> None:
        self._up = up
        self._answered: set[Any] = set()

    def owner(self, ref: Any) -> DecodeProcess:
        """The actor whose call `ref` is."""
        return next(decoder for decoder in self._up() if any(call[0] == ref for call in decoder.calls))

    def pending(self) -> dict[DecodeProcess, int]:
        """How many calls each actor has not answered yet; never waits."""
        calls = [ref for decoder in self._up() for ref, _, _ in decoder.calls]
        self._answered.intersection_update(calls)
        unknown = [ref for ref in calls if ref not in self._answered]
        if unknown:
            self._answered.update(
                ray.wait(unknown, num_returns=len(unknown), timeout=0, fetch_local=False)[0]
            )
        return {
            decoder: sum(ref not in self._answered for ref, _, _ in decoder.calls) for decoder in self._up()
        }

    def forget(self, ref: Any) -> None:
        """Lets go of an answer that was taken, and of the memory that it is in."""
        self._answered.discard(ref)

    def comes(self, ref: Any, deadline: float) -> bool:
        """Whether `ref` is answered; waits for that, or for any other answer, until `deadline` of time.monotonic() at most."""
        calls = (call[0] for decoder in self._up() for call in decoder.calls)
        others = [other for other in calls if other not in self._answered and other != ref]
        left_s = max(0.0, deadline - time.monotonic())
        ready, _ = ray.wait([ref, *others], num_returns=1, timeout=left_s, fetch_local=False)
        return ref in ready or bool(ray.wait([ref], timeout=0, fetch_local=False)[0])

    def fetch_ahead(self) -> None:
        """Has what is decoded on other nodes brought here while the encoder works; never waits."""
        away = [ref for each in self._up() if not each.home for ref, _, _ in each.calls]
        if away:
            ray.wait(away, num_returns=len(away), timeout=0, fetch_local=True)
