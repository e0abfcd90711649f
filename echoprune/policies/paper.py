"""Policy `echoprune`: the paper's rule.

S = r - c - e;  the first cell, which has no past, takes its share K // T by r alone, the others one global top-K
"""

from __future__ import annotations

import torch

from echoprune.policies.candidates import Candidates
from echoprune.prune import select


def choose(candidates: Candidates) -> torch.Tensor:
    """Indices of the kept tokens, int64, ascending; see `select`. Ties: the lower index wins.

    Without relevance S = -c - e, and the first cell is whole and not counted. Raises ModelError if a score is NaN.
    """
    return select(
        candidates.paper_score,
        candidates.stored.has_past,
        budget=candidates.count,
        cells=candidates.stored.cells,
        first="free" if candidates.relevance is None else candidates.first,
    )
