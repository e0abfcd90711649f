"""Turns at an encoder: in the order of asking, none behind a shard that failed, idle time counted once."""

from __future__ import annotations

import threading
import time

import pytest

from pipelines.turns import Turn, Turns


def waits(turn: Turn, had: list[str], name: str) -> threading.Thread:
    """A thread that waits for its turn, notes that and keeps it."""

    def wait() -> None:
        turn.wait()
        had.append(name)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_shards_have_it_in_the_order_of_asking_and_one_at_a_time() -> None:
    turns, had = Turns(), []
    first, second, third = turns.ask(), turns.ask(), turns.ask()
    threads = [waits(third, had, "third"), waits(second, had, "second")]
    first.wait()
    time.sleep(0.1)
    assert had == []
    first.give_up()
    threads[1].join(timeout=10)
    time.sleep(0.1)
    assert had == ["second"]
    second.give_up()
    threads[0].join(timeout=10)
    assert had == ["second", "third"]


@pytest.mark.parametrize("where", ["in its turn", "at its end"])
def test_none_has_it_that_waits_behind_one_that_failed(where: str) -> None:
    turns, had = Turns(), []
    at_it, waiting = turns.ask(), turns.ask()
    with pytest.raises(RuntimeError), at_it:
        at_it.wait()
        if where == "at its end":
            at_it.give_up()
            at_it, waiting = waiting, turns.ask()
            at_it.wait()
        thread = waits(waiting, had, "waiting")
        raise RuntimeError
    if where == "at its end":
        at_it.give_up()  # one that has its turn goes on with it
    thread.join(timeout=0.3)
    assert thread.is_alive() and had == []
    # Whoever comes later is not held up: a worker that does its shards one by one.
    turns.ask().wait()


def test_the_encoder_is_idle_while_a_shard_ends_and_no_other_one_has_its_turn() -> None:
    now = [0.0]
    turns = Turns(lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    first = turns.ask()
    passes(100.0)  # it encodes
    second = turns.ask()
    first.give_up()
    passes(10.0)  # the second one encodes
    second.give_up()
    passes(1.0)
    assert first.end() == 1.0
    passes(0.5)
    assert second.end() == 0.5
    passes(1000.0)  # nothing is to be done
    third = turns.ask()
    third.give_up()
    assert third.end() == 0.0
