from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from echoprune import choose as choosing
from echoprune.change import rank
from echoprune.choose import Budget, Chosen
from echoprune.errors import ConfigError
from echoprune.policies import POLICIES, Candidates
from echoprune.prune import Keep
from echoprune.stored import Stored
from tests import oracle, policy_oracle

BY_SCORE = ("echoprune", "anchored")
# What an index ranks by so that it follows the policy's score.
OWN_RANK = {"echoprune": "novelty", "anchored": "change"}


def choose(
    stored: Stored,
    *,
    budget: int | None,
    policy: str = "echoprune",
    reach: torch.Tensor | None = None,
    **given: Any,
) -> Chosen:
    """What a policy chooses, `first` being its own unless it is given."""
    given = {"first": POLICIES[policy].first} | given
    return choosing.choose(Candidates(stored=stored, budget=budget, **given), POLICIES[policy], reach=reach)


@pytest.mark.parametrize(
    ("text", "original", "count"),
    [
        ("4096", 100, 4096),
        ("1", 100, 1),
        ("0.29", 100, 29),
        ("5%", 1000, 50),
        ("0.5%", 1000, 5),
        (".05", 1000, 50),
        ("0.001", 10, 1),
        ("1.0", 77, 77),
        ("100%", 77, 77),
        ("all", 77, None),
    ],
)
def test_what_a_budget_means(text: str, original: int, count: int | None) -> None:
    assert Budget.parse(text).count(original) == count


@pytest.mark.parametrize(
    "text", ["0", "0.0", "-1", "1.5", "101%", "", "many", "1e3", "4096.", ".", "nan", "5 %"]
)
def test_budgets_that_mean_nothing(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--budget is .*4096"):
        Budget.parse(text)


def scores(seed: int, cells: int, places: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    c, e, r = (torch.rand((cells, places), generator=random) for _ in range(3))
    c[0] = e[0] = 0
    return c, e, r


def index_of(
    c: torch.Tensor, e: torch.Tensor, *, keep: str, first_cell: int = 0, rank_by: str = "novelty"
) -> tuple[Stored, torch.Tensor]:
    """What an index with `keep` stores of the cells from `first_cell` on, and the flat indices of it there."""
    cells, places = c.shape
    budget = Keep.parse(keep).budget(cells, places)
    if budget is None:
        held, dropped = list(range(cells * places)), None
    else:
        held = oracle.keep_without_question(c.double().numpy(), e.double().numpy(), budget=budget, by=rank_by)
        ranked = rank(c, e, by=rank_by).flatten()
        left = sorted(set(range(cells * places)) - set(held))
        dropped = float(ranked[left].max()) if left else None
    flat = torch.tensor([i for i in held if i >= first_cell * places], dtype=torch.int64)
    stored = Stored(
        t=flat // places - first_cell,
        correspondence=c.flatten()[flat],
        echo=e.flatten()[flat],
        cells=cells - first_cell,
        tokens_per_cell=places,
        highest_dropped=dropped,
        rank_by=rank_by,
    )
    return stored, flat - first_cell * places


@pytest.mark.parametrize("policy", BY_SCORE)
@pytest.mark.parametrize("first", ["share", "whole", "auto"])
@pytest.mark.parametrize("budget", [1, 5, 17, 60])
def test_a_lossless_store_gives_the_oracles_choice(first: str, budget: int, policy: str) -> None:
    c, e, r = scores(1, 6, 10)
    stored, _ = index_of(c, e, keep="all")
    own = {"echoprune": "share", "anchored": "whole"}[policy]
    given = {} if first == "auto" else {"first": first}
    first = own if first == "auto" else first
    chosen = choose(stored, budget=budget, policy=policy, relevance=r.flatten(), **given)
    keep = {"echoprune": oracle.keep_with_question, "anchored": policy_oracle.anchored}[policy]
    expected = keep(c.double().numpy(), e.double().numpy(), r.double().numpy(), budget=budget, first=first)
    assert chosen.indices.tolist() == expected
    assert chosen.certified and chosen.r_needed is None
    assert len(chosen.indices) == min(budget, 60)


@pytest.mark.parametrize("policy", BY_SCORE)
def test_without_relevance_the_first_cell_is_whole_and_not_counted(policy: str) -> None:
    c, e, _ = scores(2, 6, 10)
    stored, _ = index_of(c, e, keep="all")
    chosen = choose(stored, budget=7, policy=policy)
    assert chosen.indices.tolist() == oracle.keep_without_question(
        c.double().numpy(), e.double().numpy(), budget=7, by=OWN_RANK[policy]
    )


def exact(
    c: torch.Tensor,
    e: torch.Tensor,
    r: torch.Tensor | None,
    *,
    budget: int | None,
    first_cell: int,
    policy: str,
) -> list[int]:
    stored, flat = index_of(c, e, keep="all", first_cell=first_cell)
    related = None if r is None else r[first_cell:].flatten()
    return flat[choose(stored, budget=budget, policy=policy, relevance=related).indices].tolist()


@settings(max_examples=400)
@given(
    seed=st.integers(0, 10_000),
    cells=st.integers(2, 7),
    places=st.integers(1, 6),
    keep=st.sampled_from(["0.1", "0.25", "0.5", "2/cell"]),
    budget=st.one_of(st.none(), st.integers(1, 30)),
    first_cell=st.integers(0, 3),
    asked=st.booleans(),
    spread=st.sampled_from([0.05, 0.3, 1.0]),
    signed=st.booleans(),
    policy=st.sampled_from(BY_SCORE),
    rank_by=st.sampled_from(["own", "novelty", "change"]),
)
@example(
    # All that is stored of the second cell is kept, and the first fills the room that dropped tokens would have had.
    seed=0,
    cells=2,
    places=5,
    keep="0.1",
    budget=3,
    first_cell=0,
    asked=True,
    spread=0.05,
    signed=False,
    policy="echoprune",
    rank_by="own",
)
def test_what_is_certified_is_the_exact_choice(
    seed: int,
    cells: int,
    places: int,
    keep: str,
    budget: int | None,
    first_cell: int,
    asked: bool,
    spread: float,
    signed: bool,
    policy: str,
    rank_by: str,
) -> None:
    """A certificate is a promise about tokens that are gone: here they are at hand to check it.

    `signed`: similarities below 0 too.
    """
    rank_by = OWN_RANK[policy] if rank_by == "own" else rank_by
    c, e, r = scores(seed, cells, places)
    if signed:
        c[1:], e[1:], r = 2 * c[1:] - 1, 2 * e[1:] - 1, 2 * r - 1
    r = r * spread
    first_cell = min(first_cell, cells - 1)
    stored, flat = index_of(c, e, keep=keep, first_cell=first_cell, rank_by=rank_by)
    if len(flat) == 0:
        return
    related = r.flatten()[flat + first_cell * places] if asked else None
    reach = r[first_cell:].amax(dim=1)
    chosen = choose(stored, budget=budget, policy=policy, relevance=related, reach=reach if asked else None)
    if chosen.certified:
        assert flat[chosen.indices].tolist() == exact(
            c, e, r if asked else None, budget=budget, first_cell=first_cell, policy=policy
        )


def certified(keep: str, spread: float, budget: int, policy: str) -> Chosen:
    c, e, r = scores(4, 20, 16)
    stored, flat = index_of(c, e, keep=keep, rank_by=OWN_RANK[policy])
    related = (r * spread).flatten()[flat]
    reach = (r * spread).amax(dim=1)
    return choose(stored, budget=budget, policy=policy, relevance=related, reach=reach)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - set(BY_SCORE)))
def test_policies_that_need_every_token_are_refused_where_some_are_gone(name: str) -> None:
    c, e, r = scores(3, 6, 10)
    stored, _ = index_of(c, e, keep="0.5")
    with pytest.raises(ValueError, match=f"{name} needs every token"):
        choose(stored, budget=5, policy=name, first="share")
    whole, _ = index_of(c, e, keep="all")
    everything = choose(whole, budget=None, policy=name, first="share", relevance=r.flatten())
    assert len(everything.indices) == 60
    assert (everything.r_needed, everything.certified) == (None, True)


@pytest.mark.parametrize("policy", BY_SCORE)
def test_certificates_are_given_where_relevance_cannot_turn_the_order(policy: str) -> None:
    small = certified("0.5", 0.01, 20, policy)
    assert small.certified
    assert small.r_needed is not None and small.r_needed > 0.01
    assert not certified("0.1", 1.0, 30, policy).certified


def test_change_is_certified_whatever_is_asked_where_an_index_kept_much_more_than_the_budget() -> None:
    """With nothing known of the relevance of what was dropped but that it is 1 at most, which doubles a score at most."""
    c, e, r = scores(4, 20, 16)
    stored, flat = index_of(c, e, keep="0.5", rank_by="change")
    found = choose(stored, budget=20, policy="anchored", relevance=r.flatten()[flat])
    assert found.certified and found.r_needed is not None and found.r_needed > 1


@pytest.mark.parametrize("policy", BY_SCORE)
@pytest.mark.parametrize("asked", [True, False])
def test_a_store_that_ranked_by_another_measure_proves_nothing(policy: str, asked: bool) -> None:
    c, e, r = scores(7, 8, 9)
    for rank_by in OWN_RANK.values():
        stored, flat = index_of(c, e, keep="0.5", rank_by=rank_by)
        related = r.flatten()[flat] * 0.001 if asked else None
        reach = torch.full((8,), 0.001) if asked else None
        chosen = choose(stored, budget=12, policy=policy, relevance=related, reach=reach)
        if rank_by == OWN_RANK[policy]:
            assert chosen.certified and chosen.r_needed is not None
        else:
            assert (chosen.r_needed, chosen.certified) == (None, False)


def test_r_needed_is_the_lowest_kept_score_above_the_highest_dropped_novelty() -> None:
    c, e, r = scores(5, 8, 9)
    stored, flat = index_of(c, e, keep="0.25")
    related = r.flatten()[flat]
    chosen = choose(stored, budget=10, relevance=related)
    later = chosen.score[stored.t[chosen.indices] > 0]
    assert stored.highest_dropped is not None
    assert chosen.r_needed == pytest.approx(float(later.min()) - stored.highest_dropped)


def test_r_needed_of_the_default_policy_is_what_lifts_the_highest_dropped_change_to_the_lowest_kept_score() -> (
    None
):
    c, e, r = scores(5, 8, 9)
    stored, flat = index_of(c, e, keep="0.25", rank_by="change")
    chosen = choose(stored, budget=10, policy="anchored", relevance=r.flatten()[flat])
    later = chosen.score[stored.t[chosen.indices] > 0]
    assert stored.highest_dropped is not None and chosen.r_needed is not None
    assert stored.highest_dropped * (1 + chosen.r_needed) == pytest.approx(float(later.min()), rel=1e-5)


@pytest.mark.parametrize("policy", BY_SCORE)
def test_room_that_is_left_would_have_taken_any_token(policy: str) -> None:
    c, e, r = scores(6, 8, 9)
    stored, flat = index_of(c, e, keep="0.25", rank_by=OWN_RANK[policy])
    for budget in (None, len(flat)):
        chosen = choose(stored, budget=budget, policy=policy, relevance=r.flatten()[flat])
        assert (chosen.r_needed, chosen.certified) == (-1.0, False)
        assert len(chosen.indices) == len(flat)


def test_other_weights_than_the_indexs_prove_nothing() -> None:
    c, e, r = scores(7, 8, 9)
    stored, flat = index_of(c, e, keep="0.25")
    chosen = choose(stored, budget=4, relevance=r.flatten()[flat] * 0.001, echo_weight=0.5)
    assert (chosen.r_needed, chosen.certified) == (None, False)


def test_weights_are_factors() -> None:
    c, e, r = scores(8, 5, 7)
    stored, _ = index_of(c, e, keep="all")
    chosen = choose(
        stored, budget=14, relevance=r.flatten(), first="whole", correspondence_weight=0.0, echo_weight=2.0
    )
    score = np.where(np.arange(35) < 7, r.flatten(), (r - 2 * e).flatten())
    np.testing.assert_allclose(chosen.score, score[chosen.indices], atol=1e-6)
    assert math.isclose(float(chosen.score[7:].min()), sorted(score[7:].tolist())[-7], rel_tol=1e-6)
