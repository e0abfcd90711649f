"""The settings that an evaluation compares: policy x frames x budget x store keep, each once.

A budget that holds all that a store has of every video is no choice at all: it is the dense run, whatever the policy.
Pure bookkeeping; what is in the stores is asked through a function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from echoprune.choose import Budget
from echoprune.errors import ConfigError
from echoprune.prune import Keep

DENSE = "dense"
ALL = "all"


@dataclass(frozen=True, order=True)
class Setting:
    """One combination. `policy`: a name, or DENSE with the budget "all". `budget`, `keep`: as their options, in their shortest form."""

    policy: str
    frames: int
    budget: str
    keep: str

    @property
    def name(self) -> str:
        """A file name of its own."""
        keep = self.keep.replace("/", "-per-")
        return f"{self.policy}-frames-{self.frames}-budget-{self.budget}-keep-{keep}"

    def __str__(self) -> str:
        return f"{self.policy}, {self.frames} frames, budget {self.budget}, keep {self.keep}"


@dataclass(frozen=True)
class Grid:
    """What is run, and what it stands for.

    `shown`: each setting of the result with the one that answers for it, which is itself but for dense ones under a budget
    that they fit in. `left_out`: settings that cannot be, each with the reason. `dense`: how many settings are not run
    since the dense run is the same.
    """

    shown: dict[Setting, Setting]
    left_out: tuple[tuple[Setting, str], ...]
    dense: int

    @property
    def settings(self) -> list[Setting]:
        """The settings to be run, each once, the most frames and tokens first, so that the longest start early."""
        runs = set(self.shown.values())
        return sorted(runs, key=lambda each: (-each.frames, each.policy != DENSE, each.keep != ALL, each))


def make_grid(
    *,
    policies: Sequence[str],
    frames: Sequence[int],
    budgets: Sequence[str],
    keeps: Sequence[str],
    needs_all: Collection[str],
    fits: Callable[[int, str, str], bool],
) -> Grid:
    """All combinations that can be, each once.

    `budgets`, `keeps`: as from `budget_text` and `keep_text`. `needs_all`: policies that want every token, so a lossless
    store. `fits(frames, keep, budget)`: the budget holds all that this store has of every video.
    """
    shown: dict[Setting, Setting] = {}
    left_out: list[tuple[Setting, str]] = []
    dense = 0
    for keep in keeps:
        for count in frames:
            for budget in budgets:
                if budget == ALL or fits(count, keep, budget):
                    whole = Setting(DENSE, count, ALL, keep)
                    shown[replace(whole, budget=budget)] = whole
                    dense += len(policies) if budget != ALL else 0
                    continue
                for policy in policies:
                    setting = Setting(policy, count, budget, keep)
                    if policy in needs_all and keep != ALL:
                        left_out.append((setting, f"{policy} needs all tokens, and the store keeps {keep}"))
                    else:
                        shown[setting] = setting
    return Grid(shown, tuple(left_out), dense)


def budget_text(text: str) -> str:
    """The shortest form of a budget: "0.05" for "5%", "all" for all of them. Raises ConfigError for what is none."""
    budget = Budget.parse(text, option="--budgets")
    if budget.ratio is not None and budget.ratio < 1:
        return f"{budget.ratio.normalize():f}"
    return ALL if budget.tokens is None else str(budget.tokens)


def keep_text(text: str) -> str:
    """The shortest form of a store's keep, "all" for 1. Raises ConfigError for what is none."""
    keep = str(Keep.parse(text))
    return ALL if keep == "1" else keep


def listed(text: str, *, option: str) -> list[str]:
    """The values of a list separated by commas, each once, in order. Raises ConfigError if there is none."""
    values = list(dict.fromkeys(value.strip() for value in text.split(",") if value.strip()))
    if not values:
        raise ConfigError(f"{option} is {text!r}: give at least one value, several separated by commas")
    return values
