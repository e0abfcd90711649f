from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from echoprune.change import change, change_scores, r_needed, rank
from echoprune.schema import RANKS
from tests import oracle

similarities = st.floats(-1.0, 1.0, width=32)


def columns(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    c, e, r = (2 * torch.rand((4, 5), generator=random) - 1 for _ in range(3))
    return c, e, r


def test_change_and_scores_are_those_of_the_formula() -> None:
    c, e, r = columns()
    expected = oracle.change(c.double().numpy(), e.double().numpy())
    np.testing.assert_allclose(change(c, e), expected, atol=1e-6)
    past = torch.tensor([[False], [True], [True], [True]])
    scores = change_scores(c, e, past, relevance=r)
    expected = oracle.change(*(each.double().numpy() for each in (c, e, r)))
    np.testing.assert_allclose(scores[1:], expected[1:], atol=1e-6)
    assert torch.equal(scores[0], r[0]) and scores.dtype == torch.float32
    novelty = change_scores(c, e, past)
    assert torch.equal(novelty[1:], change(c, e)[1:]) and not novelty[0].any()


def test_relevance_of_another_shape_is_a_mistake() -> None:
    c, e, r = columns()
    with pytest.raises(ValueError, match=r"relevance \(20,\) must have the shape \(4, 5\)"):
        change_scores(c, e, torch.ones(4, 1, dtype=torch.bool), relevance=r.flatten())


def test_a_repetition_counts_for_nothing_however_odd_and_relevant() -> None:
    """Also one that rounding makes better than perfect."""
    c = torch.tensor([1.0, 1.0 + 2**-23])
    assert not change_scores(
        c, torch.full((2,), -1.0), torch.ones(2, dtype=torch.bool), relevance=torch.ones(2)
    ).any()


def test_what_an_index_ranks_by() -> None:
    c, e, _ = columns()
    assert torch.equal(rank(c, e, by="change"), change(c, e))
    assert torch.equal(rank(c, e, by="novelty"), -c - e)
    assert set(RANKS) == {"change", "novelty"}


@given(c=similarities, e=similarities, r=similarities, share=st.floats(0.0, 1.0), more=st.floats(0.0, 1.0))
@example(c=0.0, e=-1.0, r=-0.3, share=1.0, more=0.0)
@example(c=0.0, e=1.0, r=1.0, share=1.0, more=0.0)
def test_no_token_reaches_a_score_with_less_than_the_relevance_it_is_said_to_need(
    c: float, e: float, r: float, share: float, more: float
) -> None:
    """A token reaches its own score, and any below: so it has the relevance needed for that.

    The highest change that was dropped is that of the token itself, or more. The first example is where the bound that
    holds for positive relevance, S <= change (1 + r), says too much.
    """
    own = (1.0 - c) * (2.0 - e)
    score = (1.0 - c) * (2.0 - e + r)
    # A score below the least change that counts proves nothing; it may be all rounding.
    assert r >= r_needed(share * score, own + more) - 1e-6


def test_the_relevance_needed_is_finite_where_nothing_that_was_dropped_had_changed() -> None:
    assert r_needed(0.5, 0.25) == 1.0
    assert r_needed(0.9, 1.0) == pytest.approx(-0.3)
    assert 1 < r_needed(0.5, 0.0) < math.inf
    # Such scores are rounding errors: nothing is proved by them.
    assert r_needed(0.0, 0.0) == -1.0
