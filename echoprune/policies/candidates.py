"""What a pruning policy is given: the stored tokens of a view, what is known of them, and the budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from echoprune.change import change_scores
from echoprune.errors import ModelError
from echoprune.prune import token_scores
from echoprune.stored import Stored

# As in echo.py: a vector this short counts as a zero vector, whose similarity to everything is 0.
ZERO_NORM = 2.0**-60


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The n stored tokens that a budget chooses among; what a policy does not use may be left out.

    `budget`: K >= 1, None for all. `relevance` (n,) float32: r of each, None without a question. `first`: of policies that
    choose by score; `correspondence_weight`, `echo_weight`: of the paper's. `grid_hw`: (h, w) of a cell, raster order.
    `seed`: of policies that draw. `vectors` (T, N, D) float32, bfloat16 or float16: all tokens of the view, n = T N.
    `query` (M, D): embeddings of the question's words. All on one device, but `vectors` and `query` on another.
    """

    stored: Stored
    budget: int | None
    relevance: torch.Tensor | None = field(default=None, repr=False)
    first: Literal["share", "whole"] = "share"
    correspondence_weight: float = 1.0
    echo_weight: float = 1.0
    grid_hw: tuple[int, int] = (1, 1)
    seed: int = 0
    vectors: torch.Tensor | None = field(default=None, repr=False)
    query: torch.Tensor | None = field(default=None, repr=False)

    @cached_property
    def paper_score(self) -> torch.Tensor:
        """(n,) float32 S = r - a c - b e; r alone in the view's first cell, r = 0 without a question."""
        return token_scores(
            self.stored.correspondence,
            self.stored.echo,
            self.stored.has_past,
            relevance=self.relevance,
            correspondence_weight=self.correspondence_weight,
            echo_weight=self.echo_weight,
        )

    @cached_property
    def change_score(self) -> torch.Tensor:
        """(n,) float32 S = (1 - c)(2 - e + r); r alone in the view's first cell, r = 0 without a question."""
        return change_scores(
            self.stored.correspondence, self.stored.echo, self.stored.has_past, relevance=self.relevance
        )

    @property
    def count(self) -> int:
        """How many tokens are to be kept: min(K, n)."""
        stored = len(self.stored.t)
        return stored if self.budget is None else min(self.budget, stored)

    def require_vectors(self) -> torch.Tensor:
        """`vectors`; ValueError where they are missing or not those of the whole view."""
        shape = (self.stored.cells, self.stored.tokens_per_cell)
        if self.vectors is None or self.vectors.shape[:2] != shape:
            found = None if self.vectors is None else tuple(self.vectors.shape)
            raise ValueError(f"this policy needs the vectors {(*shape, 'D')} of the view, got {found}")
        return self.vectors


def units(vectors: torch.Tensor) -> torch.Tensor:
    """The float32 unit vectors of (..., D); of a zero vector zeros. Raises ModelError for values that are not finite."""
    wide = vectors.float()
    norm = finite_norms(wide)[..., None]
    return wide * torch.where(norm > ZERO_NORM, norm.reciprocal(), 0.0)


def finite_norms(vectors: torch.Tensor) -> torch.Tensor:
    """The lengths (...) float32 of (..., D). Raises ModelError for values that are not finite."""
    norm: torch.Tensor = torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float32)
    bad = int((~norm.isfinite()).sum())
    if bad:
        raise ModelError(
            f"{bad} of {norm.numel()} tokens are not finite; check the checkpoint, or run it in float32"
        )
    return norm
