"""Policy `dycoke`, after the temporal stage of DyCoke (arXiv 2411.15024): what differs from a reference cell nearby.

    windows of four cells f0 f1 f2 f3, the last one shorter: f0 is whole, f1 and f2 are compared with f0, f3 with f2
    each other cell keeps the same number of tokens, those of the lowest cosine to the same place of its reference

That number follows from the budget; where it does not divide, cells that lie evenly keep one more. Official code names a
share instead, leaves the third cell of the last window whole, and loses an odd last cell. Whole first cells of windows
need a quarter of all tokens: for less, the stage is applied again to those cells alone, whose windows are then
sixteen cells long, and so on; of a single cell that is too large the places lie evenly.
"""

from __future__ import annotations

import torch

from echoprune.policies.candidates import Candidates, units
from echoprune.policies.spread import shared_out, spread_places

WINDOW = 4
# What the cells of a window are compared with, by their place in it.
REFERENCE = (0, 0, 0, 2)


def choose(candidates: Candidates) -> torch.Tensor:
    """Indices of the kept tokens, int64, ascending. Ties: the lower index wins. Raises ModelError if not finite."""
    vectors = candidates.require_vectors()
    cells, places, _ = vectors.shape
    sequence, count = list(range(cells)), candidates.count
    while count < len(sequence[::WINDOW]) * places and len(sequence) > 1:
        sequence = sequence[::WINDOW]
    heads = sequence[::WINDOW]
    if count < places:
        return heads[0] * places + spread_places(count, candidates.grid_hw)
    others = [i for i in range(len(sequence)) if i % WINDOW]
    shares = shared_out(count - len(heads) * places, len(others))
    kept = [torch.arange(head * places, (head + 1) * places) for head in heads]
    for i, share in zip(others, shares, strict=True):
        reference = sequence[i - i % WINDOW + REFERENCE[i % WINDOW]]
        cosine = (units(vectors[sequence[i]]) * units(vectors[reference])).sum(dim=-1)
        lowest = torch.sort(cosine + 0.0, stable=True).indices[:share].cpu()
        kept.append(sequence[i] * places + lowest)
    return torch.cat(kept).sort().values
