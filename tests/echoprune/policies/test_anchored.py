from __future__ import annotations

import numpy as np
import pytest
import torch

from echoprune.policies import Candidates
from echoprune.stored import Stored
from tests import oracle, policy_oracle
from tests.policy_cases import candidates, kept


@pytest.mark.parametrize("first", ["share", "whole"])
@pytest.mark.parametrize("budget", [1, 6, 7, 13, 30])
@pytest.mark.parametrize("seed", range(5))
def test_the_oracles_choice(seed: int, budget: int, first: str) -> None:
    case = candidates(budget=budget, seed=seed, first=first)
    c, e, r = (
        each.double().view(5, 6).numpy()
        for each in (case.stored.correspondence, case.stored.echo, case.relevance)
    )
    found = kept("anchored", case)
    assert found == policy_oracle.anchored(c, e, r, budget=budget, first=first)
    if first == "whole":
        assert sum(index < 6 for index in found) == min(6, (budget + 1) // 2)


def test_without_a_question_the_first_cell_comes_on_top() -> None:
    case = candidates(budget=7, relevance=None)
    c, e = (each.double().view(5, 6).numpy() for each in (case.stored.correspondence, case.stored.echo))
    assert kept("anchored", case) == oracle.keep_without_question(c, e, budget=7, by="change")


def test_what_stands_still_takes_no_budget_and_what_left_is_seen() -> None:
    """The case that the paper's sum loses: a thing in contrast to its surroundings in all cells, another that comes and goes.

    Place 0 is background, on 1 something stands, on 2 something is in cell 3 alone: in cell 4 there is background again.
    """
    cells, places = 8, 3
    c = torch.full((cells, places), 0.999)
    e = torch.tensor([0.85, 0.25, 0.85]).repeat(cells, 1)
    r = torch.tensor([0.0, 0.4, 0.0]).repeat(cells, 1)
    c[3, 2], e[3, 2], r[3, 2] = 0.1, 0.2, 0.1
    c[4, 2], e[4, 2] = 0.1, 0.8
    c[0] = e[0] = 0
    case = Candidates(
        stored=Stored(
            t=torch.arange(cells).repeat_interleave(places),
            correspondence=c.flatten(),
            echo=e.flatten(),
            cells=cells,
            tokens_per_cell=places,
            highest_dropped=None,
        ),
        budget=5,
        relevance=r.flatten(),
        first="whole",
    )
    assert kept("anchored", case) == [0, 1, 2, 3 * places + 2, 4 * places + 2]
    # The paper's rule gives the three that are left to the one that comes and to the one that stands, twice.
    paper = oracle.keep_with_question(c.numpy(), e.numpy(), r.numpy(), budget=5, first="whole")
    assert 4 * places + 2 not in paper and sum(index % places == 1 for index in paper) > 1
    assert np.unique(paper).tolist() == paper
