"""Made-up candidates for pruning policies, small enough for slow oracles."""

from __future__ import annotations

from typing import Any

import torch

from echoprune.policies import POLICIES, Candidates
from echoprune.stored import Stored


def candidates(
    cells: int = 5,
    grid_hw: tuple[int, int] = (2, 3),
    *,
    budget: int | None = 7,
    seed: int = 0,
    dim: int = 6,
    words: int = 3,
    levels: int = 0,
    **changes: Any,
) -> Candidates:
    """All tokens of a view of `cells`; `levels` > 0: vectors of so many whole numbers from 0, so that many are alike or zero."""
    random = torch.Generator().manual_seed(seed)
    each = grid_hw[0] * grid_hw[1]
    if levels:
        vectors = torch.randint(0, levels, (cells, each, dim), generator=random).float()
        scores = torch.randint(0, levels, (3, cells * each), generator=random).float() / levels
    else:
        vectors = torch.randn((cells, each, dim), generator=random)
        scores = torch.rand((3, cells * each), generator=random)
    stored = Stored(
        t=torch.arange(cells).repeat_interleave(each),
        correspondence=scores[0],
        echo=scores[1],
        cells=cells,
        tokens_per_cell=each,
        highest_dropped=None,
    )
    given: dict[str, Any] = {
        "stored": stored,
        "budget": budget,
        "relevance": scores[2],
        "grid_hw": grid_hw,
        "seed": seed,
        "vectors": vectors,
        "query": torch.randn((words, dim), generator=random),
    }
    return Candidates(**(given | changes))


def kept(name: str, given: Candidates) -> list[int]:
    """What the policy keeps of them."""
    return POLICIES[name].choose(given).tolist()
