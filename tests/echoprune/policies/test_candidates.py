from __future__ import annotations

import pytest
import torch

from echoprune.errors import ModelError
from echoprune.policies.candidates import units
from tests.policy_cases import candidates


def test_the_score_is_that_of_the_paper() -> None:
    case = candidates(correspondence_weight=0.5, echo_weight=2.0)
    stored, related = case.stored, case.relevance
    assert related is not None
    expected = related - 0.5 * stored.correspondence - 2.0 * stored.echo
    torch.testing.assert_close(case.paper_score[6:], expected[6:])
    torch.testing.assert_close(case.paper_score[:6], related[:6])
    novelty = candidates(relevance=None).paper_score
    assert not novelty[:6].any() and torch.equal(novelty[6:], -stored.correspondence[6:] - stored.echo[6:])


def test_the_default_policys_score_is_change_and_relevance_in_one() -> None:
    case = candidates(correspondence_weight=0.5, echo_weight=2.0)
    stored, related = case.stored, case.relevance
    assert related is not None
    expected = (1 - stored.correspondence) * (2 - stored.echo + related)
    torch.testing.assert_close(case.change_score[6:], expected[6:])
    torch.testing.assert_close(case.change_score[:6], related[:6])
    change = candidates(relevance=None).change_score
    assert not change[:6].any()
    torch.testing.assert_close(change[6:], ((1 - stored.correspondence) * (2 - stored.echo))[6:])


def test_the_count_is_the_budget_as_far_as_there_are_tokens() -> None:
    assert [candidates(budget=budget).count for budget in (1, 30, 31, None)] == [1, 30, 30, 30]


def test_unit_vectors_and_zeros() -> None:
    made = units(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]], dtype=torch.float32))
    torch.testing.assert_close(made, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ModelError, match="2 of 3 tokens are not finite"):
        units(torch.tensor([[float("nan")], [1.0], [float("-inf")]]))
