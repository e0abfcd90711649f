from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from echoprune.choose import Budget, Chosen, Stored, choose
from echoprune.errors import ConfigError
from echoprune.prune import Keep
from tests import oracle


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
    c: torch.Tensor, e: torch.Tensor, *, keep: str, first_cell: int = 0
) -> tuple[Stored, torch.Tensor]:
    """What an index with `keep` stores of the cells from `first_cell` on, and the flat indices of it there."""
    cells, places = c.shape
    budget = Keep.parse(keep).budget(cells, places)
    if budget is None:
        held, dropped = list(range(cells * places)), None
    else:
        held = oracle.keep_without_question(c.double().numpy(), e.double().numpy(), budget=budget)
        novelty = (-c - e).flatten()
        left = sorted(set(range(cells * places)) - set(held))
        dropped = float(novelty[left].max()) if left else None
    flat = torch.tensor([i for i in held if i >= first_cell * places], dtype=torch.int64)
    stored = Stored(
        t=flat // places - first_cell,
        correspondence=c.flatten()[flat],
        echo=e.flatten()[flat],
        cells=cells - first_cell,
        tokens_per_cell=places,
        highest_dropped=dropped,
    )
    return stored, flat - first_cell * places


@pytest.mark.parametrize("first", ["share", "whole"])
@pytest.mark.parametrize("budget", [1, 5, 17, 60])
def test_a_lossless_store_gives_the_oracles_choice(first: str, budget: int) -> None:
    c, e, r = scores(1, 6, 10)
    stored, _ = index_of(c, e, keep="all")
    chosen = choose(stored, budget=budget, relevance=r.flatten(), first=first)  # type: ignore[arg-type]
    expected = oracle.keep_with_question(
        c.double().numpy(), e.double().numpy(), r.double().numpy(), budget=budget, first=first
    )
    assert chosen.indices.tolist() == expected
    assert chosen.certified and chosen.r_needed is None
    assert len(chosen.indices) == min(budget, 60)


def test_without_relevance_the_first_cell_is_whole_and_not_counted() -> None:
    c, e, _ = scores(2, 6, 10)
    stored, _ = index_of(c, e, keep="all")
    chosen = choose(stored, budget=7)
    assert chosen.indices.tolist() == oracle.keep_without_question(
        c.double().numpy(), e.double().numpy(), budget=7
    )


def exact(
    c: torch.Tensor, e: torch.Tensor, r: torch.Tensor | None, *, budget: int | None, first_cell: int
) -> list[int]:
    stored, flat = index_of(c, e, keep="all", first_cell=first_cell)
    related = None if r is None else r[first_cell:].flatten()
    return flat[choose(stored, budget=budget, relevance=related).indices].tolist()


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
) -> None:
    """A certificate is a promise about tokens that are gone: here they are at hand to check it."""
    c, e, r = scores(seed, cells, places)
    r = r * spread
    first_cell = min(first_cell, cells - 1)
    stored, flat = index_of(c, e, keep=keep, first_cell=first_cell)
    if len(flat) == 0:
        return
    related = r.flatten()[flat + first_cell * places] if asked else None
    reach = r[first_cell:].amax(dim=1)
    chosen = choose(stored, budget=budget, relevance=related, reach=reach if asked else None)
    if chosen.certified:
        assert flat[chosen.indices].tolist() == exact(
            c, e, r if asked else None, budget=budget, first_cell=first_cell
        )


def certified(keep: str, spread: float, budget: int) -> Chosen:
    c, e, r = scores(4, 20, 16)
    stored, flat = index_of(c, e, keep=keep)
    related = (r * spread).flatten()[flat]
    return choose(stored, budget=budget, relevance=related, reach=(r * spread).amax(dim=1))


def test_certificates_are_given_where_relevance_cannot_turn_the_order() -> None:
    small = certified("0.5", 0.01, 20)
    assert small.certified
    assert small.r_needed is not None and small.r_needed > 0.01
    assert not certified("0.1", 1.0, 30).certified


def test_r_needed_is_the_lowest_kept_score_above_the_highest_dropped_novelty() -> None:
    c, e, r = scores(5, 8, 9)
    stored, flat = index_of(c, e, keep="0.25")
    related = r.flatten()[flat]
    chosen = choose(stored, budget=10, relevance=related)
    later = chosen.score[stored.t[chosen.indices] > 0]
    assert stored.highest_dropped is not None
    assert chosen.r_needed == pytest.approx(float(later.min()) - stored.highest_dropped)


def test_room_that_is_left_would_have_taken_any_token() -> None:
    c, e, r = scores(6, 8, 9)
    stored, flat = index_of(c, e, keep="0.25")
    for budget in (None, len(flat)):
        chosen = choose(stored, budget=budget, relevance=r.flatten()[flat])
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
        stored, budget=9, relevance=r.flatten(), first="whole", correspondence_weight=0.0, echo_weight=2.0
    )
    score = np.where(np.arange(35) < 7, r.flatten(), (r - 2 * e).flatten())
    np.testing.assert_allclose(chosen.score, score[chosen.indices], atol=1e-6)
    assert math.isclose(float(chosen.score[7:].min()), sorted(score[7:].tolist())[-2], rel_tol=1e-6)
