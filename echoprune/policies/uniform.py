"""Policy `uniform`: whole cells, evenly spread over the view; what any other policy has to be better than."""

from __future__ import annotations

import torch

from echoprune.policies.candidates import Candidates
from echoprune.policies.spread import spread, spread_places


def choose(candidates: Candidates) -> torch.Tensor:
    """Indices of the kept tokens, int64, ascending.

    K // N whole cells; if K % N tokens remain, they are places of one more cell, spread over its rows and columns. All
    these cells together lie in the middles of equal parts of the view, and the one in part is the last of them.
    """
    stored, count = candidates.stored, candidates.count
    places = stored.tokens_per_cell
    whole, rest = divmod(count, places)
    cells = spread(whole + (rest > 0), stored.cells)
    picked = [(cells[:whole, None] * places + torch.arange(places)).flatten()]
    if rest:
        picked.append(cells[-1] * places + spread_places(rest, candidates.grid_hw))
    return torch.cat(picked)
