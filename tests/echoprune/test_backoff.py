"""Waiting, giving up, and how many requests may be under way."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from echoprune.backoff import Backoff, ConcurrencyLimit, OutOfPatienceError, Verdict, persist


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Refused(Exception):
    pass


class Overloaded(Exception):
    pass


def judge(error: Exception) -> Verdict:
    if isinstance(error, Overloaded):
        return Verdict.SLOW_DOWN
    return Verdict.FINAL if isinstance(error, KeyError) else Verdict.AGAIN


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


def ask(
    call: Callable[[], str], clock: Clock, *, patience_s: float = 60.0, limit: ConcurrencyLimit | None = None,
    before: Callable[[], None] | None = None,
) -> str:  # fmt: skip
    return persist(
        call,
        backoff=Backoff(patience_s=patience_s, sleep=clock.sleep, clock=clock, uniform=random.Random(1).uniform),
        limit=limit or ConcurrencyLimit(4, clock=clock),
        errors=(Refused, Overloaded, KeyError),
        judge=judge,
        before=before,
    )  # fmt: skip


def test_what_passes_is_tried_until_it_succeeds() -> None:
    clock = Clock()
    assert ask(failing(*[Refused()] * 20), clock, patience_s=1000) == "done"
    assert len(clock.slept) == 20
    # Full jitter: between nothing and a bound that doubles up to 15 s.
    assert all(0 <= wait <= min(15.0, 0.1 * 2**i) for i, wait in enumerate(clock.slept))
    assert max(clock.slept) > 5 and len(set(clock.slept)) == 20


def test_two_clients_that_failed_together_do_not_wait_alike() -> None:
    first, second = ([Backoff().wait_s(i) for i in range(8)] for _ in range(2))
    assert first != second


def test_what_is_final_is_raised_at_once() -> None:
    clock = Clock()
    with pytest.raises(KeyError):
        ask(failing(Refused(), KeyError("gone")), clock)
    assert len(clock.slept) == 1


def test_an_error_that_nobody_named_is_not_judged() -> None:
    with pytest.raises(ZeroDivisionError):
        ask(failing(ZeroDivisionError()), Clock())


def test_patience_ends() -> None:
    clock = Clock()
    with pytest.raises(OutOfPatienceError, match=r"attempts within .* s, the last: no route") as caught:
        ask(failing(*[Refused("no route")] * 10_000), clock, patience_s=60)
    assert 40 < clock.now <= 60 and isinstance(caught.value.__cause__, Refused)


def test_before_is_asked_ahead_of_every_attempt_and_may_end_it() -> None:
    clock, asked = Clock(), []

    def before() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise ZeroDivisionError("the lease is another's")

    with pytest.raises(ZeroDivisionError):
        ask(failing(*[Refused()] * 10), clock, before=before)
    assert len(asked) == 3


def test_an_overload_halves_the_limit_once_and_success_raises_it_by_ones() -> None:
    clock = Clock()
    limit = ConcurrencyLimit(32, clock=clock)
    for _ in range(10):
        limit.slow_down()
    assert limit.limit == 16
    clock.now += 1
    limit.slow_down()
    assert limit.limit == 8
    for _ in range(8):
        limit.succeeded()
    assert limit.limit == 8 or limit.limit == 9
    before = limit.limit
    for _ in range(before + 1):
        limit.succeeded()
    assert before < limit.limit <= before + 2
    for _ in range(10_000):
        limit.succeeded()
    assert limit.limit == 32
    for _ in range(100):
        clock.now += 1
        limit.slow_down()
    assert limit.limit == 1


def test_an_overloaded_service_sees_fewer_requests() -> None:
    clock = Clock()
    limit = ConcurrencyLimit(8, clock=clock)
    assert ask(failing(Overloaded(), Refused()), clock, limit=limit) == "done"
    assert limit.limit == 4
    # Another kind of failure says nothing about load.
    assert ask(failing(Refused(), Refused()), clock, limit=limit) == "done"
    assert limit.limit == 4


def test_no_more_than_the_limit_are_under_way() -> None:
    limit = ConcurrencyLimit(3)
    most, now, guard = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal most, now
        with limit.slot():
            with guard:
                now += 1
                most = max(most, now)
            threading.Event().wait(0.01)
            with guard:
                now -= 1

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3
