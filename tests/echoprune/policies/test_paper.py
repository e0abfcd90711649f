from __future__ import annotations

import pytest

from tests import oracle
from tests.policy_cases import candidates, kept


@pytest.mark.parametrize("first", ["share", "whole"])
@pytest.mark.parametrize("budget", [1, 4, 7, 29, 30])
@pytest.mark.parametrize("seed", range(5))
def test_it_keeps_what_the_oracle_keeps(seed: int, budget: int, first: str) -> None:
    case = candidates(budget=budget, seed=seed, first=first)
    c, e, r = (
        each.double().view(5, 6).numpy()
        for each in (case.stored.correspondence, case.stored.echo, case.relevance)
    )
    assert kept("echoprune", case) == oracle.keep_with_question(c, e, r, budget=budget, first=first)


def test_without_a_question_the_first_cell_comes_on_top() -> None:
    case = candidates(budget=7, relevance=None)
    c, e = (each.double().view(5, 6).numpy() for each in (case.stored.correspondence, case.stored.echo))
    assert kept("echoprune", case) == oracle.keep_without_question(c, e, budget=7)
