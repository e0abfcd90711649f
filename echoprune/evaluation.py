"""What an evaluation says: accuracy with its interval, per group of questions, and differences between settings.

Two settings answer the same questions, so that their difference is a paired one. Pure functions; questions count as
independent, although those about one video are not quite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from echoprune.accuracy import wilson
from echoprune.evaluation_grid import ALL, DENSE, Setting

PREFIXES = ("event", "static")
EVERYTHING = "all"
# Half a cell's length and the encoder's own blur: what a person would call the same moment.
NEAR_S = 2.0
# Longer, and it is a stretch from the first of several events to the last: most of a video, which any moment is near to.
LONGEST_EVENT_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """What became of one question under one setting. `found`: as of `event_found`."""

    correct: bool
    failed: bool
    visual_tokens: int
    prompt_tokens: int
    found: bool | None


@dataclass(frozen=True)
class ResultRow:
    """One row of eval.parquet: a setting on a group of questions.

    `n` questions, `correct` and `failed` of them (a failed answer is not right); `accuracy` = correct / n within
    [`ci_low`, `ci_high`], 95 % after Wilson. `against`: the setting that it is compared with, in words, and `difference`
    = accuracy - its accuracy within [`difference_low`, `difference_high`], 95 % and paired; None where there is none.
    `visual_tokens`, `prompt_tokens`: means of the answers that did not fail. `evidence_n` questions have times of an event of
    10 s at most, and `evidence_within_2s` is the share of them whose top moment is within 2 s of the event.
    """

    policy: str
    frames: int
    budget: str
    keep: str
    group: str
    n: int
    correct: int
    accuracy: float
    ci_low: float
    ci_high: float
    failed: int
    against: str | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    visual_tokens: float | None
    prompt_tokens: float | None
    evidence_n: int
    evidence_within_2s: float | None

    @property
    def setting(self) -> Setting:
        """The setting that it is about."""
        return Setting(self.policy, self.frames, self.budget, self.keep)


def question_groups(labels: Mapping[str, str | None]) -> dict[str, frozenset[str]]:
    """Question ids by group: each label, then "event" and "static" for labels that begin so, then "all".

    `labels`: of each question; None counts in "all" alone. A label that is "event" itself is a part of that group.
    """
    groups: dict[str, frozenset[str]] = {}
    for label in sorted({label for label in labels.values() if label is not None}):
        if label not in (*PREFIXES, EVERYTHING):
            groups[label] = frozenset(each for each, own in labels.items() if own == label)
    for prefix in PREFIXES:
        members = frozenset(
            each for each, own in labels.items() if own is not None and f"{own}_".startswith(f"{prefix}_")
        )
        if members:
            groups[prefix] = members
    groups[EVERYTHING] = frozenset(labels)
    return groups


def result_rows(
    outcomes: Mapping[Setting, Mapping[str, Outcome]],
    groups: Mapping[str, frozenset[str]],
    *,
    reference: str,
) -> list[ResultRow]:
    """A row for each setting and group, in the order of both. `outcomes`: by question id, the same ids in each setting."""
    rows = []
    by_tokens = sorted(outcomes, key=lambda each: _mean_tokens(outcomes[each].values()))
    for setting, answers in outcomes.items():
        other = opponent(setting, by_tokens, reference=reference)
        for group, members in groups.items():
            ids = sorted(members & answers.keys())
            if ids:
                mine = [answers[each] for each in ids]
                theirs = None if other is None else [outcomes[other][each] for each in ids]
                rows.append(_row(setting, group, mine, other, theirs))
    return rows


def opponent(setting: Setting, settings: Sequence[Setting], *, reference: str) -> Setting | None:
    """The setting among `settings`, those of fewest visual tokens first, that `setting` is compared with; None if none.

    a policy                      the policy `reference` under the same frames, budget and keep
    `reference` on a pruned store the same on the lossless one: what the index lost
    dense under a budget          `reference` at the most frames under the same budget: what more frames are worth
    dense without a budget        on a pruned store the lossless one; on that, `reference` with the fewest tokens
    """
    if setting.policy not in (DENSE, reference):
        candidates = [replace(setting, policy=reference)]
    elif setting.policy == reference or (setting.budget == ALL and setting.keep != ALL):
        candidates = [replace(setting, keep=ALL)]
    else:
        same_store = [each for each in settings if (each.policy, each.keep) == (reference, setting.keep)]
        if setting.budget == ALL:
            budgets = [each for each in same_store if each.frames == setting.frames]
            candidates = budgets[:1]
        else:
            longer = [each for each in same_store if each.budget == setting.budget]
            candidates = sorted(longer, key=lambda each: -each.frames)[:1]
    return next((each for each in candidates if each in settings and each != setting), None)


def _mean_tokens(outcomes: Iterable[Outcome]) -> float:
    """Mean visual tokens of the answers that did not fail: a ratio and a count are not told apart by their numbers."""
    spent = [each.visual_tokens for each in outcomes if not each.failed]
    return sum(spent) / len(spent) if spent else math.inf


def _row(
    setting: Setting,
    group: str,
    mine: Sequence[Outcome],
    other: Setting | None,
    theirs: Sequence[Outcome] | None,
) -> ResultRow:
    correct = [each.correct for each in mine]
    share, low, high = wilson(sum(correct), len(correct))
    assert share is not None and low is not None and high is not None
    difference, difference_low, difference_high = (
        (None, None, None)
        if theirs is None
        else paired_difference(correct, [each.correct for each in theirs])
    )
    answered = [each for each in mine if not each.failed]
    found = [each.found for each in mine if each.found is not None]
    return ResultRow(
        setting.policy,
        setting.frames,
        setting.budget,
        setting.keep,
        group,
        len(mine),
        sum(correct),
        share,
        low,
        high,
        len(mine) - len(answered),
        None if other is None else str(other),
        difference,
        difference_low,
        difference_high,
        _mean([each.visual_tokens for each in answered]),
        _mean([each.prompt_tokens for each in answered]),
        len(found),
        _mean(found),
    )


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float, float]:
    """Accuracy of `first` less that of `second` on the same questions (n >= 1), and its 95 % interval, in [-1, 1].

    Newcombe's score interval for paired shares (Statistics in Medicine 17 (1998), 2635, method 10): Wilson's two
    intervals joined by the correlation of the pairs. It needs no seed, and is not empty where no pair differs, which a
    bootstrap's is.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} answers are not pairs")
    pairs = list(zip(first, second, strict=True))
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    gained, lost = pairs.count((True, False)), pairs.count((False, True))
    n = len(pairs)
    p1, l1, u1 = _interval(both + gained, n)
    p2, l2, u2 = _interval(both + lost, n)
    phi = _correlation(both, gained, lost, neither)
    below = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    above = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    difference = (gained - lost) / n
    # Rounding may leave -1e-18 below a root.
    low, high = difference - math.sqrt(max(0.0, below)), difference + math.sqrt(max(0.0, above))
    return (difference, max(-1.0, low), min(1.0, high))


def _interval(correct: int, n: int) -> tuple[float, float, float]:
    share, low, high = wilson(correct, n)
    assert share is not None and low is not None and high is not None
    return share, low, high


def _correlation(both: int, gained: int, lost: int, neither: int) -> float:
    """Phi of the four counts, its numerator drawn towards 0 by half the number of pairs where it is positive."""
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if margins == 0:
        return 0.0
    product = float(both * neither - gained * lost)
    if product > 0:
        product = max(0.0, product - (both + gained + lost + neither) / 2)
    return product / math.sqrt(margins)


def event_found(moment: tuple[float, float] | None, event: tuple[float | None, float | None]) -> bool | None:
    """Whether the middle of the stretch `moment` lies in `event` widened by NEAR_S on both sides; no moment does not.

    The middle, since a moment as wide as the video overlaps everything. None where `event` has no times, or lasts longer
    than LONGEST_EVENT_S.
    """
    start_s, end_s = event
    if start_s is None or end_s is None or end_s - start_s > LONGEST_EVENT_S:
        return None
    return moment is not None and start_s - NEAR_S <= sum(moment) / 2 <= end_s + NEAR_S


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
