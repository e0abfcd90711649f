from __future__ import annotations

from dataclasses import replace

import torch

from tests.policy_cases import candidates, kept


def test_it_depends_on_the_seed_and_the_number_of_tokens_alone() -> None:
    case = candidates(seed=4)
    other = replace(
        candidates(seed=5), seed=4, grid_hw=(1, 6), query=None, relevance=torch.zeros(30), vectors=None
    )
    assert kept("random", case) == kept("random", other)
    assert len({tuple(kept("random", replace(case, seed=seed))) for seed in range(20)}) == 20


def test_the_global_generator_is_neither_used_nor_moved() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    kept("random", candidates())
    assert torch.equal(torch.rand(3), expected)


def test_a_smaller_budget_keeps_a_part_of_it() -> None:
    larger = kept("random", candidates(budget=20))
    assert set(kept("random", candidates(budget=9))) < set(larger)


def test_each_token_is_as_likely() -> None:
    counts = torch.zeros(30)
    draws = 3000
    for seed in range(draws):
        counts[kept("random", replace(CASE, seed=seed))] += 1
    # 6 of 30: 600 of 3,000, with a deviation of sqrt(3,000 x 0.2 x 0.8) = 22; five of them.
    assert float((counts - draws * 0.2).abs().max()) < 110


CASE = candidates(budget=6)
