"""Policy `evs`, after "Efficient Video Sampling" (arXiv 2510.14624): what differs from its own place a cell ago.

    d[t,i] = 1 - c[t,i];  d[0,i] = 255: the first cell before all others;  the K highest d

It needs no vectors: a store has c. Official code keeps at least one cell's worth, K >= N; here K is the budget, and one
below N keeps the first K places of the first cell.
"""

from __future__ import annotations

import torch

from echoprune.policies.candidates import Candidates
from echoprune.prune import highest

FIRST_CELL = 255.0


def choose(candidates: Candidates) -> torch.Tensor:
    """Indices of the kept tokens, int64, ascending. Ties: the lower index wins. Raises ModelError for a NaN."""
    stored = candidates.stored
    change = torch.where(stored.has_past, 1.0 - stored.correspondence, FIRST_CELL)
    return highest(change, candidates.count)
