"""Policy `anchored`, the default: what changed, the odd and the relevant of it first, with the first cell of the view whole.

    S = (1 - c)(2 - e + r);  the first cell whole, as far as half of the budget goes; the rest to the highest S of the others

What stands still from the start is in the first cell, and repeated in every later one: 1 - c is a factor, so that a
repetition counts for nothing, while the paper's sum r - c - e lets what is odd or relevant be kept again and again
(change.py). A budget below two cells would leave nothing for what happens later: hence the half.
"""

from __future__ import annotations

import torch

from echoprune.policies.candidates import Candidates
from echoprune.prune import select


def choose(candidates: Candidates) -> torch.Tensor:
    """Indices of the kept tokens, int64, ascending. Ties: the lower index wins.

    Where half of the budget is less than the first cell, its tokens of the highest r. Without relevance S = (1 - c)(2 - e),
    and the first cell is not counted. Raises ModelError if a score is NaN.
    """
    return select(
        candidates.change_score,
        candidates.stored.has_past,
        budget=candidates.count,
        cells=candidates.stored.cells,
        first="free" if candidates.relevance is None else candidates.first,
    )
