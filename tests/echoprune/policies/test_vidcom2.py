from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from echoprune.policies import vidcom2
from tests import policy_oracle
from tests.policy_cases import candidates, kept


@pytest.mark.parametrize("budget", [1, 4, 13, 37, 60, 95, 96])
@pytest.mark.parametrize("seed", range(6))
def test_it_keeps_what_the_oracle_keeps(seed: int, budget: int) -> None:
    case = candidates(8, (3, 4), budget=budget, seed=seed, dim=9)
    assert kept("vidcom2", case) == policy_oracle.vidcom2(case.vectors, budget=budget)


def test_unlike_cells_get_more() -> None:
    """Five cells of one picture with a little noise, one of another."""
    random = torch.Generator().manual_seed(1)
    picture = torch.randn((12, 16), generator=random)
    vectors = picture + 0.05 * torch.randn((6, 12, 16), generator=random)
    vectors[3] = torch.randn((12, 16), generator=random)
    case = candidates(6, (3, 4), budget=24, dim=16, vectors=vectors)
    found = kept("vidcom2", case)
    counts = [sum(index // 12 == cell for index in found) for cell in range(6)]
    assert max(counts) == counts[3] > max(counts[:3] + counts[4:])
    assert found == policy_oracle.vidcom2(vectors, budget=24)


def test_quotas_are_met_exactly_from_both_sides() -> None:
    case = candidates(8, (3, 4), dim=9)
    to_video, _ = vidcom2.similarities(case.vectors)
    over, under = [], []
    for budget in range(1, 97):
        total = int(vidcom2.cell_quotas(to_video, budget=budget).sum())
        over += [budget] if total > budget else []
        under += [budget] if total < budget else []
        assert len(kept("vidcom2", replace(case, budget=budget))) == budget
    assert 4 in over and under


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = candidates(8, (3, 4), budget=30, dim=9)
    whole = kept("vidcom2", case)
    monkeypatch.setattr(vidcom2, "CHUNK_BYTES", 3 * 4 * 12 * 9)
    assert kept("vidcom2", case) == whole
