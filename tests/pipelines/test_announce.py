"""Telling before doing: order, errors, and a reader that goes away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from pipelines.announce import told


def test_what_is_told_is_taken_before_the_call_goes_on() -> None:
    log: list[str] = []

    def call(tell: Callable[[str], None]) -> None:
        for name in "abc":
            log.append(f"before {name}")
            tell(name)
            log.append(f"after {name}")

    for name in told(call):
        # Time in which a call that did not wait would go on.
        time.sleep(0.02)
        log.append(f"took {name}")
    assert log == [f"{what} {name}" for name in "abc" for what in ("before", "took", "after")]


def test_nothing_told() -> None:
    assert list(told(lambda tell: None)) == []


def test_an_error_comes_out_after_what_was_told_before_it() -> None:
    def call(tell: Callable[[int], None]) -> None:
        tell(1)
        raise MemoryError("too large")

    taken = []
    with pytest.raises(MemoryError, match="too large"):
        taken.extend(told(call))
    things = told(call)
    assert next(things) == 1
    with pytest.raises(MemoryError):
        next(things)


def test_a_reader_that_goes_away_ends_the_call() -> None:
    ended = threading.Event()

    def call(tell: Callable[[int], None]) -> None:
        try:
            for number in range(1000):
                try:
                    tell(number)
                except Exception:  # noqa: BLE001 - what a library in between might do
                    continue
        finally:
            ended.set()

    things = told(call)
    assert next(things) == 0
    things.close()
    assert ended.wait(timeout=5)
