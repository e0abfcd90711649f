from __future__ import annotations

import pytest

from tests import policy_oracle
from tests.policy_cases import candidates, kept


@pytest.mark.parametrize("cells", [1, 2, 3, 4, 5, 6, 7, 8, 18])
@pytest.mark.parametrize("share", [0.03, 0.1, 0.25, 0.4, 0.475, 0.9, 1.0])
def test_it_keeps_what_the_oracle_keeps(cells: int, share: float) -> None:
    budget = max(1, int(cells * 12 * share))
    for levels in (0, 2):
        case = candidates(cells, (3, 4), budget=budget, seed=cells, dim=7, levels=levels)
        if levels == 2:
            # Whole numbers whose cosines are exact, so that ties are ties in both.
            case.vectors.clamp_(max=1)
            case.vectors[..., 1:] = 0
        assert kept("dycoke", case) == policy_oracle.dycoke(case.vectors, (3, 4), budget=budget)


def test_first_cells_of_windows_are_whole_and_the_others_share() -> None:
    """The authors' 47.5 %: 0.3 of three cells in four, with cells of 10 tokens."""
    found = kept("dycoke", candidates(8, (2, 5), budget=38))
    assert [sum(index // 10 == cell for index in found) for cell in range(8)] == [10, 3, 3, 3, 10, 3, 3, 3]


def test_below_a_quarter_the_stage_is_applied_again() -> None:
    """32 cells: the whole ones would be 8; of these the first and the fifth are whole, the others share."""
    found = kept("dycoke", candidates(32, (2, 5), budget=50))
    counts = {cell: sum(index // 10 == cell for index in found) for cell in range(32)}
    assert {cell: count for cell, count in counts.items() if count} == {
        0: 10, 4: 5, 8: 5, 12: 5, 16: 10, 20: 5, 24: 5, 28: 5,
    }  # fmt: skip
