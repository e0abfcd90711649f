"""Calls that follow one another: their order, how many wait, and what one that raises does to the others."""

from __future__ import annotations

import threading
import time

import pytest

from pipelines.in_turn import MOST, InTurn


@pytest.mark.parametrize("beside", [False, True])
def test_calls_are_done_in_order_by_one(beside: bool) -> None:
    started, done, by = [], [], set()

    def call(number: int) -> int:
        time.sleep(0.001 * (number % 3))
        done.append(number)
        by.add(threading.get_ident())
        return number

    turn = InTurn(beside=beside, start=lambda: started.append(threading.get_ident()))
    asked = [turn.ask(lambda number=number: call(number)) for number in range(50)]
    assert [each.result() for each in asked] == done == list(range(50))
    turn.close()
    assert len(by) == 1
    assert (by == {threading.get_ident()}) != beside
    assert started == (list(by) if beside else [])


def test_so_many_wait_at_most() -> None:
    turn, go, asked = InTurn(beside=True), threading.Event(), []

    def ask() -> None:
        for _ in range(MOST + 5):
            asked.append(turn.ask(go.wait))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.3)
    assert len(asked) == MOST
    go.set()
    asking.join(timeout=10)
    assert len(asked) == MOST + 5
    turn.close()


def test_after_one_that_raised_none_is_done_and_who_asks_is_told() -> None:
    turn, done, go = InTurn(beside=True), [], threading.Event()

    def broken() -> None:
        go.wait()
        raise OSError("disk full")

    first = turn.ask(broken)
    later = turn.ask(lambda: done.append(1))
    go.set()
    for each in (first, later):
        with pytest.raises(OSError, match="disk full"):
            each.result()
    with pytest.raises(OSError, match="disk full"):
        turn.ask(lambda: done.append(2))
    assert done == []
    turn.close()


def test_at_once_what_is_raised_comes_to_who_asks() -> None:
    with pytest.raises(OSError, match="disk full"):
        InTurn(beside=False).ask(lambda: (_ for _ in ()).throw(OSError("disk full")))


def test_the_end_waits_for_the_call_that_is_done_and_for_no_other() -> None:
    turn, begun, done = InTurn(beside=True), threading.Event(), []

    def slow() -> None:
        begun.set()
        time.sleep(0.3)
        done.append("slow")

    turn.ask(slow)
    turn.ask(lambda: done.append("waiting"))
    begun.wait()
    turn.close()
    assert done == ["slow"]
