from __future__ import annotations

import os
import signal
import threading
import time
from itertools import count

import pytest

from echoprune.ahead import ahead


def test_results_come_in_order_from_several_threads() -> None:
    met = threading.Barrier(3, timeout=20)

    def call(item: int) -> int:
        met.wait()  # passes only while three are at work
        time.sleep(0.01 * (2 - item % 3))
        return 10 * item

    assert list(ahead(call, range(9), threads=3)) == [10 * item for item in range(9)]
    assert list(ahead(call, [], threads=3)) == []
    with pytest.raises(ValueError, match="at least 1, got 0"):
        next(ahead(call, [1], threads=0))


def test_no_more_is_begun_than_may_wait() -> None:
    begun: list[int] = []
    results = ahead(lambda item: begun.append(item) or item, count(), threads=2)
    for taken in range(5):
        assert next(results) == taken
        time.sleep(0.05)
        assert len(begun) <= taken + 1 + 2
    results.close()
    before = list(begun)
    time.sleep(0.05)
    assert begun == before


def test_an_error_comes_in_its_place_and_ends_it() -> None:
    begun: list[int] = []

    def call(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise KeyError("two")
        return item

    results = ahead(call, count(), threads=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(KeyError, match="two"):
        next(results)
    assert max(begun) <= 4 and list(results) == []


def test_threads_stay_for_the_next_call() -> None:
    def name(_: int) -> str:
        return threading.current_thread().name

    # One that has just given its result may not be counted as idle yet: then there is another, but not for every call.
    names = {each for _ in range(100) for each in ahead(name, range(3), threads=3)}
    assert len(names) < 20


def test_when_it_is_closed_nothing_is_under_way() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def call(item: int) -> int:
        if item == 1:
            begun.set()
            assert go_on.wait(20)
            ended.set()
        return item

    results = ahead(call, count(), threads=2)
    assert next(results) == 0 and begun.wait(20)
    threading.Timer(0.1, go_on.set).start()
    results.close()
    assert ended.is_set()


def _ended(child: int) -> tuple[int, int]:
    """The process and its status; killed if it does not end in time."""
    began = time.monotonic()
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() - began > 20:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)
        time.sleep(0.01)
    return found


def test_a_forked_process_has_threads_of_its_own() -> None:
    assert list(ahead(abs, [1, 2], threads=2)) == [1, 2]
    child = os.fork()
    if child == 0:
        os._exit(0 if list(ahead(abs, [-3, -4], threads=2)) == [3, 4] else 1)
    assert _ended(child) == (child, 0)


def test_an_interrupt_leaves_nothing_under_way() -> None:
    begun, ended = threading.Event(), threading.Event()

    def call(item: int) -> int:
        begun.set()
        time.sleep(0.6)
        ended.set()
        return item

    def interrupt() -> None:
        assert begun.wait(20)
        # A signal to the main thread, which waits for the first result.
        os.kill(os.getpid(), signal.SIGUSR1)

    def raised(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, raised)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            next(ahead(call, [0], threads=1))
        assert ended.is_set()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_forked_process_does_not_wait_for_its_parents_calls() -> None:
    go_on = threading.Event()
    results = ahead(lambda item: item if item == 0 else go_on.wait(20), count(), threads=2)
    assert next(results) == 0
    child = os.fork()
    if child == 0:
        results.close()
        os._exit(0)
    assert _ended(child) == (child, 0)
    go_on.set()
    results.close()
