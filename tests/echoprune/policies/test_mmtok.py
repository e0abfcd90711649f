from __future__ import annotations

import pytest
import torch

from echoprune.policies import mmtok
from tests import policy_oracle
from tests.policy_cases import candidates, kept


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("segment_cells", [1, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_it_keeps_what_the_oracle_keeps(
    seed: int, segment_cells: int, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 cells are one segment: then this is the official objective, but for the features."""
    monkeypatch.setattr(mmtok, "SEGMENT_TOKENS", segment_cells * 12)
    for budget in (1, 9, 40):
        case = candidates(8, (3, 4), budget=budget, seed=seed, dim=10, **({} if asked else {"query": None}))
        expected = policy_oracle.mmtok(case.vectors, case.query, budget=budget, segment_cells=segment_cells)
        assert kept("mmtok", case) == expected


def test_words_are_covered_first() -> None:
    random = torch.Generator().manual_seed(2)
    query = torch.randn((4, 32), generator=random)
    vectors = torch.randn((6, 12, 32), generator=random)
    for word, (cell, place) in enumerate([(0, 3), (2, 11), (2, 1), (5, 0)]):
        vectors[cell, place] = query[word]
    case = candidates(6, (3, 4), budget=4, dim=32, vectors=vectors, query=query)
    assert kept("mmtok", case) == [3, 25, 35, 60]


def test_segments_grow_shorter_where_there_are_too_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is n times a segment: with room for n x 24 similarities two cells of 12 are one."""
    monkeypatch.setattr(mmtok, "SIMILARITIES", 8 * 12 * 24 + 5)
    case = candidates(8, (3, 4), budget=20, dim=10)
    expected = policy_oracle.mmtok(case.vectors, case.query, budget=20, segment_cells=2)
    assert kept("mmtok", case) == expected
    monkeypatch.setattr(mmtok, "SIMILARITIES", 1)
    assert len(kept("mmtok", case)) == 20
