"""The stored tokens of a view as far as a choice among them needs them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from echoprune.schema import NOVELTY


@dataclass(frozen=True)
class Stored:
    """The stored tokens of a view as far as a choice needs them, in the order of cells and of places within them.

    `t` (n,) int64: cell of each within the view; `correspondence`, `echo` (n,) float32. `cells`, `tokens_per_cell`:
    T and N before pruning. `rank_by`: what the index kept the highest of, see `change.rank`; `highest_dropped`: the highest
    of that among all tokens that it dropped from the video, None if it dropped none.
    """

    t: torch.Tensor = field(repr=False)
    correspondence: torch.Tensor = field(repr=False)
    echo: torch.Tensor = field(repr=False)
    cells: int
    tokens_per_cell: int
    highest_dropped: float | None
    rank_by: str = NOVELTY

    @property
    def has_past(self) -> torch.Tensor:
        """(n,) bool: the token is not of the view's first cell."""
        return self.t > 0

    @property
    def complete(self) -> bool:
        """Nothing of the view was dropped."""
        return len(self.t) == self.cells * self.tokens_per_cell
