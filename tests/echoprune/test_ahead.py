from __future__ import annotations

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
