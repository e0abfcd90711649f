"""What an evaluation says, against definitions, slow loops and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echoprune.accuracy import wilson
from echoprune.evaluation import (
    Outcome,
    event_found,
    opponent,
    paired_difference,
    question_groups,
    result_rows,
)
from echoprune.evaluation_grid import DENSE, Setting

pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def drawn(
    p_both: float, p_gained: float, p_lost: float, *, n: int, seed: int
) -> tuple[list[bool], list[bool]]:
    random = np.random.default_rng(seed)
    kinds = random.choice(4, size=n, p=[p_both, p_gained, p_lost, 1 - p_both - p_gained - p_lost])
    return [k in (0, 1) for k in kinds], [k in (0, 2) for k in kinds]


@given(pairs)
def test_a_paired_difference_is_bounded_and_turns_with_its_sides(answers: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in answers], [b for _, b in answers]
    difference, low, high = paired_difference(first, second)
    assert difference == pytest.approx(np.mean(first) - np.mean(second))
    assert -1 <= low <= difference <= high <= 1 and low < high
    assert paired_difference(second, first) == pytest.approx((-difference, -high, -low))


def test_equal_answers_leave_less_doubt_the_more_there_are() -> None:
    reaches = [paired_difference([True] * n, [True] * n)[2] for n in (10, 100, 1000)]
    assert reaches[0] > 5 * reaches[1] > 20 * reaches[2] > 0


def test_without_correlation_it_joins_two_wilson_intervals() -> None:
    """8 of 10 and 5 of 10, each answer of one with each of the other: phi = 0, Newcombe's unpaired interval."""
    both = list(itertools.product([True] * 8 + [False] * 2, [True] * 5 + [False] * 5))
    difference, low, high = paired_difference([a for a, _ in both], [b for _, b in both])
    (p1, l1, u1), (p2, l2, u2) = wilson(80, 100), wilson(50, 100)
    assert p1 and l1 and u1 and p2 and l2 and u2
    assert difference == pytest.approx(0.3)
    assert low == pytest.approx(0.3 - math.hypot(p1 - l1, u2 - p2))
    assert high == pytest.approx(0.3 + math.hypot(u1 - p1, p2 - l2))


def test_a_correlation_above_zero_is_drawn_towards_it() -> None:
    """20, 12, 2 and 16 of 50 pairs, step by step: phi = (20 x 16 - 12 x 2 - 50 / 2) / sqrt(32 x 18 x 22 x 28)."""
    pairs = [(True, True)] * 20 + [(True, False)] * 12 + [(False, True)] * 2 + [(False, False)] * 16
    (_, l1, u1), (_, l2, u2) = wilson(32, 50), wilson(22, 50)
    below = (0.64 - l1) ** 2 - 2 * 0.454954 * (0.64 - l1) * (u2 - 0.44) + (u2 - 0.44) ** 2  # type: ignore[operator]
    above = (u1 - 0.64) ** 2 - 2 * 0.454954 * (u1 - 0.64) * (0.44 - l2) + (0.44 - l2) ** 2  # type: ignore[operator]
    found = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    assert found == pytest.approx((0.2, 0.2 - below**0.5, 0.2 + above**0.5), abs=1e-6)
    assert found == pytest.approx((0.2, 0.056156, 0.329207), abs=1e-6)


def test_it_agrees_with_a_bootstrap_of_many_pairs() -> None:
    first, second = drawn(0.6, 0.2, 0.1, n=1500, seed=1)
    random = np.random.default_rng(0)
    steps = np.array(first, int) - np.array(second, int)
    means = steps[random.integers(0, len(steps), (4000, len(steps)))].mean(axis=1)
    _, low, high = paired_difference(first, second)
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.004)


@pytest.mark.parametrize("shares", [(0.9, 0.05, 0.02), (0.3, 0.3, 0.1), (0.97, 0.02, 0.0)])
def test_it_covers_the_truth_as_often_as_it_says(shares: tuple[float, float, float]) -> None:
    true = shares[1] - shares[2]
    hits = 0
    for seed in range(1000):
        _, low, high = paired_difference(*drawn(*shares, n=80, seed=seed))
        hits += low <= true <= high
    # Where nearly all pairs are equal it says rather too little.
    assert hits >= 925


def test_what_are_no_pairs() -> None:
    for first, second in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="not pairs"):
            paired_difference(first, second)


def test_groups_are_labels_prefixes_and_all() -> None:
    labels = {
        "a": "event_order",
        "b": "static_kind",
        "c": "event_count",
        "d": None,
        "e": "eventful",
        "f": "event",
    }
    groups = question_groups(labels)
    assert list(groups) == ["event_count", "event_order", "eventful", "static_kind", "event", "static", "all"]
    assert groups["event"] == {"a", "c", "f"} and groups["static"] == {"b"} and groups["all"] == set(labels)
    assert groups["eventful"] == {"e"}
    assert list(question_groups({"a": "where"})) == ["where", "all"]


def outcome(correct: bool, *, found: bool | None = None, failed: bool = False) -> Outcome:
    return Outcome(correct, failed, 0 if failed else 100, 0 if failed else 130, found)


LOSSLESS = Setting("anchored", 96, "512", "all")
OTHER = Setting("uniform", 96, "512", "all")


def test_rows_against_a_plain_loop() -> None:
    answers = {
        LOSSLESS: {"a": outcome(True, found=True), "b": outcome(True, found=False), "c": outcome(True)},
        OTHER: {
            "a": outcome(True, found=True),
            "b": outcome(False, failed=True, found=False),
            "c": outcome(False),
        },
    }
    groups = {"event": frozenset("ab"), "all": frozenset("abc"), "nobody": frozenset("z")}
    rows = {(row.setting, row.group): row for row in result_rows(answers, groups, reference="anchored")}
    assert list(rows) == [(LOSSLESS, "event"), (LOSSLESS, "all"), (OTHER, "event"), (OTHER, "all")]
    whole = rows[OTHER, "all"]
    assert (whole.n, whole.correct, whole.failed, whole.accuracy) == (3, 1, 1, 1 / 3)
    assert (whole.accuracy, whole.ci_low, whole.ci_high) == wilson(1, 3)
    assert whole.against == str(LOSSLESS) == "anchored, 96 frames, budget 512, keep all"
    found = (whole.difference, whole.difference_low, whole.difference_high)
    assert found == paired_difference([True, False, False], [True, True, True])
    assert (whole.evidence_n, whole.evidence_within_2s) == (2, 0.5)
    assert (whole.visual_tokens, whole.prompt_tokens) == (100, 130), "failed answers saw nothing"
    assert rows[LOSSLESS, "all"].against is None and rows[LOSSLESS, "all"].difference is None
    assert rows[OTHER, "event"].difference == -0.5


def test_what_is_compared_with_what() -> None:
    pruned, longer = Setting("anchored", 96, "512", "0.25"), Setting("anchored", 320, "512", "all")
    fits, dense = Setting(DENSE, 16, "512", "all"), Setting(DENSE, 96, "all", "all")
    dense_pruned = Setting(DENSE, 96, "all", "0.25")
    small = Setting("anchored", 96, "128", "all")
    settings = [small, LOSSLESS, OTHER, pruned, longer, fits, dense, dense_pruned]
    found = {each: opponent(each, settings, reference="anchored") for each in settings}
    assert found == {
        LOSSLESS: None,
        OTHER: LOSSLESS,
        pruned: LOSSLESS,
        longer: None,
        fits: longer,
        dense: small,
        dense_pruned: dense,
        small: None,
    }
    assert opponent(OTHER, [OTHER, longer], reference="anchored") is None


def test_all_tokens_are_compared_with_the_fewest_whether_ratio_or_count() -> None:
    dense, ratio, count = (
        Setting(*each, "all")
        for each in ((DENSE, 96, "all"), ("anchored", 96, "0.5"), ("anchored", 96, "512"))
    )
    answers = {
        dense: {"a": Outcome(True, False, 6144, 6200, None)},
        ratio: {"a": Outcome(True, False, 3072, 3100, None)},
        count: {"a": Outcome(False, False, 512, 540, None)},
    }
    rows = {row.setting: row for row in result_rows(answers, {"all": frozenset("a")}, reference="anchored")}
    assert rows[dense].against == str(count), "0.5 is less than 512 as a number alone"


@pytest.mark.parametrize(
    ("moment", "found"),
    [
        ((4.0, 5.0), True),
        ((7.5, 8.5), True),
        ((0.5, 1.5), True),
        ((7.6, 8.5), False),
        ((0.4, 1.5), False),
        # They overlap, and show nothing: a quarter of a minute, and the whole video.
        ((7.0, 18.0), False),
        ((0.0, 160.0), False),
        (None, False),
    ],
)
def test_an_event_is_found_by_the_middle_of_a_moment(moment: tuple[float, float] | None, found: bool) -> None:
    assert event_found(moment, (3.0, 6.0)) is found


def test_where_there_is_no_one_event_nothing_can_be_found() -> None:
    assert event_found((4.0, 5.0), (None, None)) is None
    assert event_found((4.0, 5.0), (4.5, 58.8)) is None, "the first to the last of several"
    assert event_found((4.0, 5.0), (4.5, 14.5)) is True
