"""The keeper against the oracle, its invariants, budgets as text, and anchors."""

from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echoprune.data import EchoScores
from echoprune.errors import ConfigError, ModelError
from echoprune.prune import Keep, anchor_cells, select, select_tokens, token_scores
from tests import oracle

# Few distinct values, exact in float32 also when added: ties are everywhere, and the oracle's float64 agrees.
VALUES = [-1.0, -0.5, -0.25, -0.0, 0.0, 0.25, 0.5, 1.0]


@st.composite
def scored_videos(draw):
    cells, places = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    values = torch.tensor(VALUES)[torch.randint(len(VALUES), (3, cells, places), generator=generator)]
    values[:2, 0] = 0
    scores = EchoScores(correspondence=values[0], echo=values[1], has_past=torch.arange(cells) > 0)
    return scores, values[2]


@given(video=scored_videos(), budget=st.integers(0, 60), first=st.sampled_from(["share", "whole"]))
@settings(max_examples=300, deadline=None)
def test_the_choice_is_the_oracles(video, budget, first):
    scores, match = video
    c, e, r = (part.double().numpy() for part in (scores.correspondence, scores.echo, match))
    with_question = select_tokens(scores, budget=budget, relevance=match, first=first)
    assert with_question.dtype == torch.int64
    assert with_question.tolist() == oracle.keep_with_question(c, e, r, budget=budget, first=first)
    assert len(with_question) == min(budget, c.size)
    without = select_tokens(scores, budget=budget, first=first)
    assert without.tolist() == oracle.keep_without_question(c, e, budget=budget)


@given(video=scored_videos(), budget=st.integers(0, 60))
@settings(deadline=None)
def test_a_larger_budget_keeps_what_a_smaller_one_kept_without_a_question(video, budget):
    scores, _ = video
    smaller = set(select_tokens(scores, budget=budget).tolist())
    assert smaller <= set(select_tokens(scores, budget=budget + 1).tolist())


@given(video=scored_videos(), budget=st.integers(0, 60), first=st.sampled_from(["share", "whole"]))
@settings(deadline=None)
def test_a_larger_budget_keeps_what_a_smaller_one_kept_with_a_question(video, budget, first):
    # One more token of budget adds one to the first cell's share or one to the rest, never a swap.
    scores, match = video
    smaller = select_tokens(scores, budget=budget, relevance=match, first=first).tolist()
    larger = select_tokens(scores, budget=budget + 1, relevance=match, first=first).tolist()
    assert set(smaller) <= set(larger)


@given(data=st.data(), count=st.integers(1, 30), budget=st.integers(0, 40))
@settings(deadline=None)
def test_the_choice_follows_the_scores_wherever_they_stand(data, count, budget):
    score = torch.randperm(count, generator=torch.Generator().manual_seed(count)).float()
    has_past = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    order = torch.tensor(data.draw(st.permutations(range(count))))
    options = {"budget": budget, "cells": 4, "first": data.draw(st.sampled_from(["share", "whole", "free"]))}
    kept = select(score, has_past, **options)
    moved = select(score[order], has_past[order], **options)
    assert sorted(order[moved].tolist()) == kept.tolist()
    expected = min(budget, count)
    if options["first"] == "free":
        expected = int((~has_past).sum()) + min(budget, int(has_past.sum()))
    assert len(kept) == expected


@given(video=scored_videos(), budget=st.integers(0, 60), first=st.sampled_from(["share", "whole"]))
@settings(deadline=None)
def test_the_sparse_form_on_all_tokens_is_the_dense_form(video, budget, first):
    scores, match = video
    flat_past = scores.has_past[:, None].expand_as(match).flatten()
    score = token_scores(
        scores.correspondence.flatten(), scores.echo.flatten(), flat_past, relevance=match.flatten()
    )
    kept = select(score, flat_past, budget=budget, cells=len(scores.has_past), first=first)
    assert torch.equal(kept, select_tokens(scores, budget=budget, relevance=match, first=first))


def test_a_cell_in_the_middle_without_a_past_is_scored_by_relevance_alone():
    # A time range starts here: what the store holds for the cell is against a cell outside the range.
    correspondence, echo = torch.full((2, 2), 0.9), torch.full((2, 2), 0.5)
    match = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    score = token_scores(correspondence, echo, torch.tensor([[False], [True]]), relevance=match)
    torch.testing.assert_close(score, torch.tensor([[0.1, 0.2], [-1.1, -1.0]]))


def test_cells_without_a_past_share_one_quota():
    has_past = torch.tensor([False, True, False, True])
    scores = EchoScores(torch.zeros(4, 5), torch.zeros(4, 5), has_past)
    match = torch.arange(20.0).reshape(4, 5)
    # 2 of 4 cells have no past: 8 * 2 // 4 = 4 of the 10 tokens without one, then 4 of the others.
    kept = select_tokens(scores, budget=8, relevance=match).tolist()
    assert kept == [11, 12, 13, 14, 16, 17, 18, 19]
    everything_early = EchoScores(torch.zeros(4, 5), torch.zeros(4, 5), torch.zeros(4, dtype=torch.bool))
    assert select_tokens(everything_early, budget=3, relevance=match).tolist() == [17, 18, 19]
    nothing_early = EchoScores(torch.zeros(4, 5), torch.zeros(4, 5), torch.ones(4, dtype=torch.bool))
    assert select_tokens(nothing_early, budget=2, relevance=match).tolist() == [18, 19]
    assert select_tokens(nothing_early, budget=2).tolist() == [0, 1]


def test_weights_switch_the_terms_off():
    c = torch.tensor([[0.0, 0.0], [0.9, 0.1]])
    e = torch.tensor([[0.0, 0.0], [0.2, 0.8]])
    scores = EchoScores(c, e, torch.tensor([False, True]))
    assert select_tokens(scores, budget=1, echo_weight=0.0).tolist() == [0, 1, 3]
    assert select_tokens(scores, budget=1, correspondence_weight=0.0).tolist() == [0, 1, 2]


def test_a_video_without_cells_keeps_nothing():
    empty = EchoScores(torch.empty(0, 4), torch.empty(0, 4), torch.empty(0, dtype=torch.bool))
    assert select_tokens(empty, budget=3).tolist() == []
    assert select_tokens(empty, budget=3, relevance=torch.empty(0, 4)).tolist() == []


def test_scores_that_are_not_numbers_are_an_error_of_the_model():
    scores = EchoScores(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([False, True]))
    broken = torch.zeros(2, 3)
    broken[1, 1] = float("nan")
    with pytest.raises(ModelError, match="1 of 6"):
        select_tokens(scores, budget=2, relevance=broken)


def test_arguments_that_do_not_fit_are_refused():
    scores = EchoScores(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([False, True]))
    with pytest.raises(ValueError, match="got -1"):
        select_tokens(scores, budget=-1)
    for wrong in (2.5, 2.0, True, "2", None):
        with pytest.raises(ValueError, match="budget must be a whole number of tokens"):
            select_tokens(scores, budget=wrong)
    assert select_tokens(scores, budget=np.int64(1)).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        select_tokens(scores, budget=1, relevance=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="'share'"):
        select_tokens(scores, budget=1, relevance=torch.zeros(2, 3), first="last")
    with pytest.raises(ValueError, match="'share' or 'whole', got 'last'"):
        select_tokens(scores, budget=1, first="last")
    with pytest.raises(ValueError, match="has_past"):
        select(torch.zeros(3), torch.ones(2, dtype=torch.bool), budget=1, cells=1)


@pytest.mark.parametrize(
    ("text", "canonical", "budget"),
    [
        ("0.25", "0.25", 250),
        (".25", "0.25", 250),
        ("0.2500", "0.25", 250),
        ("1", "1", 1000),
        ("1.0", "1", 1000),
        ("0.29", "0.29", 290),
        ("0.0009", "0.0009", 0),
        ("0.9999999999999999999999999999999999", "0.9999999999999999999999999999999999", 999),
        ("64/cell", "64/cell", 640),
        ("064/cell", "64/cell", 640),
        ("all", "all", None),
    ],
)
def test_keep_is_read_exactly(text, canonical, budget):
    keep = Keep.parse(text)
    assert str(keep) == canonical
    assert Keep.parse(canonical) == keep
    assert keep.budget(10, 100) == budget


@given(hundredths=st.integers(1, 100), cells=st.integers(1, 50_000), places=st.integers(1, 4096))
@settings(deadline=None)
def test_ratios_are_floored_without_rounding(hundredths, cells, places):
    keep = Keep.parse(f"{hundredths / 100}")
    assert keep.budget(cells, places) == hundredths * cells * places // 100


@pytest.mark.parametrize(
    "text",
    ["0", "0.0", "-0.5", "1.5", "64", "abc", "nan", "inf", "", "1e-1", "25%", "0/cell", "-3/cell", "2.5/cell", "64/", "ALL",
     " 0.25", "٠.٢٥", "1_0/cell", "9" * 20 + "/cell"],
)  # fmt: skip
def test_any_other_keep_is_refused_with_the_cure(text):
    with pytest.raises(ConfigError, match=r"0\.25.*64/cell.*all"):
        Keep.parse(text)


def test_keep_made_by_hand_is_checked_too():
    with pytest.raises(ValueError, match="not both"):
        Keep(ratio=Decimal("0.5"), per_cell=3)
    with pytest.raises(ValueError, match="above 0"):
        Keep(ratio=Decimal(2))
    with pytest.raises(ValueError, match="at least 1"):
        Keep(per_cell=0)


@given(
    tenths=st.integers(1, 40),
    every=st.sampled_from([0.1, 0.3, 1.0, 2.5, 10.0, 1 / 3, 30.0]),
    cells=st.integers(1, 60),
)
@settings(deadline=None)
def test_anchors_are_the_first_cells_at_or_after_the_multiples(tenths, every, cells):
    times = np.arange(cells) * (tenths / 10)
    anchor = anchor_cells(times, every)
    expected, multiple = set(), 0
    while True:  # the definition, with the microsecond it allows
        at_or_after = [i for i, time in enumerate(times) if time + 1e-6 >= multiple * every]
        if not at_or_after:
            break
        expected.add(at_or_after[0])
        multiple += 1
    assert set(np.flatnonzero(anchor).tolist()) == expected


def test_anchors_survive_the_rounding_of_times():
    times = np.cumsum(np.full(36_000, 0.1)) - 0.1  # an hour in steps of 0.1 s, off by up to 1e-8 s
    assert np.flatnonzero(anchor_cells(times, 30.0)).tolist() == list(range(0, 36_000, 300))


def test_anchors_at_the_edges():
    assert anchor_cells(np.array([0.0, 1.0, 2.0]), 0.0).tolist() == [True, False, False]
    assert anchor_cells(np.array([0.0, 100.0, 100.5]), 30.0).tolist() == [True, True, False]
    assert anchor_cells(np.array([]), 30.0).tolist() == []
    for every_s in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="anchor"):
            anchor_cells(np.array([0.0]), every_s)
