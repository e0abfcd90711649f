from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from echoprune.policies.spread import shared_out, spread, spread_places
from tests import policy_oracle


@given(size=st.integers(1, 500), data=st.data())
def test_middles_of_equal_parts(size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, size))
    found = spread(count, size).tolist()
    assert found == policy_oracle.middles(count, size)
    assert found == sorted(set(found)) and all(0 <= each < size for each in found)


@given(grid_hw=st.tuples(st.integers(1, 20), st.integers(1, 20)), data=st.data())
def test_places_are_the_oracles(grid_hw: tuple[int, int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, grid_hw[0] * grid_hw[1]))
    found = spread_places(count, grid_hw).tolist()
    assert found == policy_oracle.places(count, grid_hw)
    assert len(found) == count and found == sorted(set(found))


def test_places_lie_in_both_directions() -> None:
    assert spread_places(16, (16, 16)).tolist() == [
        row * 16 + column for row in (2, 6, 10, 14) for column in (2, 6, 10, 14)
    ]
    assert spread_places(1, (3, 5)).tolist() == [7]


@given(count=st.integers(0, 300), parts=st.integers(1, 40))
def test_shares_add_up_and_differ_by_one(count: int, parts: int) -> None:
    found = shared_out(count, parts)
    assert found == policy_oracle.shares(count, parts)
    assert sum(found) == count and max(found) - min(found) <= 1


def test_nothing_for_nobody() -> None:
    assert shared_out(0, 0) == []
