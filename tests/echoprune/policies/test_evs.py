from __future__ import annotations

import pytest

from tests import policy_oracle
from tests.policy_cases import candidates, kept


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("budget", [1, 5, 6, 7, 17, 30])
@pytest.mark.parametrize("seed", range(5))
def test_it_keeps_what_the_oracle_keeps(seed: int, budget: int, levels: int) -> None:
    case = candidates(budget=budget, seed=seed, levels=levels)
    c = case.stored.correspondence.double().view(5, 6).numpy()
    assert kept("evs", case) == policy_oracle.evs(c, budget=budget)


def test_the_first_cell_comes_first_and_needs_no_vectors() -> None:
    found = kept("evs", candidates(budget=10, vectors=None, query=None, relevance=None))
    assert found[:6] == list(range(6))
    assert kept("evs", candidates(budget=4)) == [0, 1, 2, 3]
