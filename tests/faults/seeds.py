"""What a seed stands for: which run is disturbed, by what, and when. The same seed and steps, the same faults."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# Each at a random moment. "driver", "terminate": SIGKILL and SIGTERM to the command, which is then given again. "zombie":
# a worker stands still while its driver is killed and another one begins, and wakes up under that. "node": the second
# machine vanishes, and another one comes; "late": another one comes only once the run is over; "spot": it is told to go.
KINDS = {
    "index": ("encoder", "node", "driver", "decoder", "late", "zombie", "spot", "terminate"),
    "answer": ("node", "encoder", "zombie", "late", "driver", "spot", "terminate"),
}


@dataclass(frozen=True)
class Step:
    """A step of a run, as the hook calls it, and how often one process may be expected to come to it."""

    job: str
    name: str
    most: int


@dataclass(frozen=True)
class Fault:
    """`after`: the share of the shards that have a receipt, and `delay_s` more; of a step, the `nth` time it is come to."""

    kind: str
    after: float = 0.0
    delay_s: float = 0.0
    step: str = ""
    nth: int = 1

    def __str__(self) -> str:
        if self.kind == "step":
            return f"at '{self.step}' number {self.nth}"
        return f"{self.kind} at {self.after:.0%} + {self.delay_s:.1f} s"


@dataclass(frozen=True)
class Trial:
    seed: int
    job: str
    faults: tuple[Fault, ...]


def steps_of(job: str, trace: str) -> list[Step]:
    """The steps in the trace of an undisturbed run, by name."""
    times: dict[str, Counter[str]] = {}
    for line in trace.splitlines():
        process, name = line.split(" ", 1)
        times.setdefault(name, Counter())[process] += 1
    # Half of an equal share: how the shards fall to the workers is not the same each time.
    return [
        Step(job, name, max(1, sum(counts.values()) // (2 * len(counts))))
        for name, counts in sorted(times.items())
    ]


def trial(seed: int, steps: Sequence[Step]) -> Trial:
    """Even seeds go through the steps in turn, odd ones through the kinds, every other time with a second one."""
    chance = random.Random(seed)
    if seed % 2 == 0:
        step = steps[seed // 2 % len(steps)]
        fault = Fault("step", step=step.name, nth=chance.randint(1, step.most))
        return Trial(seed, step.job, (fault,))
    job = "answer" if seed % 4 == 3 else "index"
    first = KINDS[job][seed // 4 % len(KINDS[job])]
    # Once each: two dead encoders may be the same video's, which is a reason to leave it out.
    kinds = [first, *chance.sample([kind for kind in KINDS[job] if kind != first], chance.randint(0, 1))]
    faults = [Fault(kind, chance.uniform(0, 0.7), chance.uniform(0, 0.5)) for kind in kinds]
    # A run that began under a zombie goes on to its end.
    return Trial(seed, job, tuple(sorted(faults, key=lambda fault: (fault.kind == "zombie", fault.after))))
