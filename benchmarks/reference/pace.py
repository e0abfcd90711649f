"""The learning rate of a run that is to end at a given time or step, whatever the machine does until then."""

from __future__ import annotations

from dataclasses import dataclass

# Level for so much of a run, then straight down to nothing at its end.
_LEVEL = 0.4
# A further run begins lower: what is learnt must not be lost again.
_LOWER = 0.5


@dataclass(frozen=True)
class Pace:
    """A run of `budget_s` seconds, or of `steps` where that is None.

    `warm_up`: steps after which its peak is reached. `begun`: steps of the runs before it. `spent_s`: seconds of it that earlier
    calls took. `runs`: how many were before.
    """

    steps: int
    budget_s: float | None
    warm_up: int
    begun: int = 0
    spent_s: float = 0.0
    runs: int = 0

    def share(self, step: int, elapsed_s: float) -> float:
        """How much of the run is over, 0 to 1, after `step` steps in all and `elapsed_s` seconds of this call."""
        if self.budget_s is None:
            return min(1.0, (step - self.begun) / self.steps)
        return min(1.0, (self.spent_s + elapsed_s) / self.budget_s)

    def part(self, step: int, elapsed_s: float) -> float:
        """The learning rate of the next step, as a part of the recipe's."""
        fall = (1 - self.share(step, elapsed_s)) / (1 - _LEVEL)
        lower: float = _LOWER**self.runs
        return lower * min(1.0, (step - self.begun + 1) / self.warm_up, fall)
