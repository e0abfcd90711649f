from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests import policy_oracle
from tests.policy_cases import candidates, kept


@given(
    cells=st.integers(1, 12),
    grid_hw=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    budget=st.integers(1, 320),
)
def test_it_keeps_what_the_oracle_keeps(cells: int, grid_hw: tuple[int, int], budget: int) -> None:
    case = candidates(cells, grid_hw, budget=budget, dim=1)
    assert kept("uniform", case) == policy_oracle.uniform(cells, grid_hw, budget=budget)


def test_whole_cells_in_the_middles_of_equal_parts() -> None:
    """160 cells, 16 of them whole: the fifth of each ten."""
    found = kept("uniform", candidates(160, (4, 4), budget=256, dim=1))
    assert sorted({index // 16 for index in found}) == list(range(5, 160, 10))
    assert len(found) == 256
