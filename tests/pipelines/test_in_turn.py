"""Calls that follow one another: their order, how many wait, and what one that raises does to the others."""

from __future__ import annotations

import threading
import time

import pytest

from pipelines.in_turn import InTurn

MOST = 4
LANES = {"choose": MOST, "write": 2}


@pytest.mark.parametrize("beside", [False, True])
def test_calls_are_done_in_order_by_one(beside: bool) -> None:
    started, done, by = [], [], set()

    def call(number: int) -> int:
        time.sleep(0.001 * (number % 3))
        done.append(number)
        by.add(threading.get_ident())
        return number

    turn = InTurn(LANES, beside=beside, start=lambda: started.append(threading.get_ident()))
    asked = [turn.ask("choose", lambda number=number: call(number)) for number in range(50)]
    assert [each.result() for each in asked] == done == list(range(50))
    turn.close()
    assert len(by) == 1
    assert (by == {threading.get_ident()}) != beside
    assert started == (list(by) if beside else [])


def test_so_many_wait_at_most() -> None:
    turn, go, asked = InTurn(LANES, beside=True), threading.Event(), []

    def ask() -> None:
        for _ in range(MOST + 5):
            asked.append(turn.ask("choose", go.wait))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.3)
    assert len(asked) == MOST
    go.set()
    asking.join(timeout=10)
    assert len(asked) == MOST + 5
    turn.close()


def test_after_one_that_raised_none_is_done_and_who_asks_is_told() -> None:
    turn, done, go = InTurn(LANES, beside=True), [], threading.Event()

    def broken() -> None:
        go.wait()
        raise OSError("disk full")

    first = turn.ask("choose", broken)
    later = turn.ask("choose", lambda: done.append(1))
    go.set()
    for each in (first, later):
        with pytest.raises(OSError, match="disk full"):
            each.result()
    with pytest.raises(OSError, match="disk full"):
        turn.ask("choose", lambda: done.append(2))
    assert done == []
    turn.close()


def test_at_once_what_is_raised_comes_to_who_asks() -> None:
    with pytest.raises(OSError, match="disk full"):
        InTurn(LANES, beside=False).ask("write", lambda: (_ for _ in ()).throw(OSError("disk full")))


def test_the_end_waits_for_the_call_that_is_done_and_for_no_other() -> None:
    turn, begun, done = InTurn(LANES, beside=True), threading.Event(), []

    def slow() -> None:
        begun.set()
        time.sleep(0.3)
        done.append("slow")

    turn.ask("choose", slow)
    turn.ask("choose", lambda: done.append("waiting"))
    begun.wait()
    turn.close()
    assert done == ["slow"]


def test_lanes_do_not_wait_for_one_another_but_where_a_call_does() -> None:
    turn, go, done = InTurn(LANES, beside=True), threading.Event(), []
    slow = turn.ask("write", go.wait)
    chosen = [turn.ask("choose", lambda number=number: done.append(number)) for number in range(3)]

    def write() -> None:
        chosen[-1].result()
        done.append("written")

    written = turn.ask("write", write)
    for each in chosen:
        each.result(timeout=10)
    assert done == [0, 1, 2] and not slow.done()
    go.set()
    written.result(timeout=10)
    assert done == [0, 1, 2, "written"]
    turn.close()


@pytest.mark.parametrize(("first", "other"), [("choose", "write"), ("write", "choose")])
def test_what_one_lane_raised_stops_the_other_and_says_what_for(first: str, other: str) -> None:
    turn, begun, go = InTurn(LANES, beside=True), threading.Event(), threading.Event()

    def broken() -> None:
        begun.set()
        go.wait()
        raise OSError("disk full")

    failed = turn.ask(first, broken, of="a")

    def wait() -> None:
        failed.result()

    waits = turn.ask(other, wait, of="b")
    begun.wait()
    assert turn.raised_for is None
    go.set()
    with pytest.raises(OSError, match="disk full"):
        waits.result(timeout=10)
    with pytest.raises(OSError, match="disk full"):
        turn.ask(other, lambda: None)
    assert turn.raised_for == "a"
    turn.close()


def test_the_end_leaves_no_lane_waiting_for_another() -> None:
    turn, go = InTurn(LANES, beside=True), threading.Event()
    turn.ask("choose", go.wait)
    never = turn.ask("choose", lambda: None)
    waits = turn.ask("write", never.result)
    closing = threading.Thread(target=turn.close)
    closing.start()
    go.set()
    closing.join(timeout=10)
    assert not closing.is_alive() and never.cancelled() and waits.done()
