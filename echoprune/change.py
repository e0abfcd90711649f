"""Change: what a token adds to its own place, and the score of the default policy, which is change and relevance in one.

With c and e as in `echo.py` and r as in `query.py`:

    change  = (1 - c)(2 - e)         what an index ranks by, question or not
    score S = (1 - c)(2 - e + r)     for tokens with a past;  S = r for those without

The paper adds up: 1 - c, 1 - e and r in one sum. At tau 0.5 over the whole cell, e is little more than likeness to the mean of
the last cell, and varies more than c (standard deviation 0.19 against 0.06, in stores of the reference model): the sum spends
most of a budget on whatever contrasts with its surroundings, again in each cell, and too little on places that a thing
has just left, where the background is no news to e. Here 1 - c is a factor: what its own place repeats counts
for nothing, however odd or relevant it is; of what changed, the odd and the relevant count up to three times as much.

Both are 0 or more, and relevance at most doubles a score. So a token far below all kept ones cannot have been kept for any
question: what `r_needed` proves about those that an index dropped.
"""

from __future__ import annotations

import torch

from echoprune.schema import CHANGE

# 1 - c of a token that repeats its place is a rounding error of this size; below it, a proof must not divide.
_ROUNDING = 1e-6


def change(correspondence: torch.Tensor, echo: torch.Tensor) -> torch.Tensor:
    """(1 - c)(2 - e), float32, 0 to 6, high = keep, in the shape of `correspondence` and `echo`."""
    return _factor(correspondence) * (2.0 - echo)


def rank(correspondence: torch.Tensor, echo: torch.Tensor, *, by: str) -> torch.Tensor:
    """What an index drops the lowest of, float32: the change, or the paper's novelty -c - e; `by`: one of `schema.RANKS`."""
    return change(correspondence, echo) if by == CHANGE else -correspondence - echo


def change_scores(
    correspondence: torch.Tensor,
    echo: torch.Tensor,
    has_past: torch.Tensor,
    *,
    relevance: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score S = (1 - c)(2 - e + r), float32, high = keep, in the shape of `correspondence` and `echo`.

    `has_past`, `relevance`: as for `prune.token_scores`; no relevance means r = 0, and S is the change.
    """
    if relevance is None:
        return torch.where(has_past, change(correspondence, echo), 0.0)
    if relevance.shape != correspondence.shape:
        raise ValueError(
            f"relevance {tuple(relevance.shape)} must have the shape {tuple(correspondence.shape)}"
        )
    related = relevance.to(correspondence.device, torch.float32)
    return torch.where(has_past, _factor(correspondence) * (2.0 - echo + related), related)


def r_needed(lowest: float, highest_dropped: float) -> float:
    """The lowest relevance with which a token of at most `highest_dropped` change can have a score of `lowest`.

    S = change + (1 - c) r, and 1 - c lies between change / 3 and change, as 2 - e does between 1 and 3: relevance that must
    lift a score counts at most change, relevance that may lower it at least a third of it. -1 where any will do.
    """
    lack = lowest / max(highest_dropped, _ROUNDING) - 1.0
    return lack if lack >= 0.0 else max(-1.0, 3.0 * lack)


def _factor(correspondence: torch.Tensor) -> torch.Tensor:
    """1 - c, which rounding may put below 0."""
    return (1.0 - correspondence).clamp(min=0.0)
