"""The choice at answer time: which of the stored tokens a question sees, and what the store's own pruning may have cost.

    S = r - a c - b e       over the stored tokens; the budget is exact

The rule is that of prune.py, over the tokens that are left. What is added here: the budget as the user writes it, and
the proof, where there is one, that no token which the index dropped would have been kept.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Literal

import torch

from echoprune.errors import ConfigError
from echoprune.prune import select, token_scores

# Scores are sums of float32 products, 1e-5 off at most (tested against float64): a proof needs this much room.
_ROOM = 1e-5


@dataclass(frozen=True)
class Budget:
    """How many visual tokens the language model may see: `tokens`, or a `ratio` of all before pruning; neither: all."""

    tokens: int | None = None
    ratio: Decimal | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The meaning of "4096" (tokens), "0.05" or "5%" (of the original), or "all". Raises ConfigError otherwise."""
        if text == "all":
            return cls()
        if re.fullmatch(r"0*[1-9][0-9]{0,11}", text):
            return cls(tokens=int(text))
        if re.fullmatch(r"[0-9]{0,12}\.[0-9]{0,12}|[0-9]{1,3}(\.[0-9]{0,12})?%", text) and text != ".":
            ratio = Decimal(text[:-1]) / 100 if text.endswith("%") else Decimal(text)
            if 0 < ratio <= 1:
                return cls(ratio=ratio)
        raise ConfigError(
            f"--budget is {text!r}; give a number of tokens such as 4096, a share of the original such as 0.05 or 5%, "
            "or all"
        )

    def count(self, original: int) -> int | None:
        """K for a view of `original` tokens: floor of the ratio, at least 1; None for all."""
        if self.tokens is not None:
            return self.tokens
        if self.ratio is not None:
            return max(1, math.floor(Fraction(self.ratio) * original))
        return None


@dataclass(frozen=True)
class Stored:
    """The stored tokens of a view as far as a choice needs them.

    `t` (n,) int64: cell of each within the view; `correspondence`, `echo` (n,) float32. `cells`, `tokens_per_cell`:
    T and N before pruning. `highest_dropped`: the highest novelty among all tokens that the index dropped from the
    video, None if it dropped none.
    """

    t: torch.Tensor = field(repr=False)
    correspondence: torch.Tensor = field(repr=False)
    echo: torch.Tensor = field(repr=False)
    cells: int
    tokens_per_cell: int
    highest_dropped: float | None

    @property
    def has_past(self) -> torch.Tensor:
        """(n,) bool: the token is not of the view's first cell."""
        return self.t > 0

    @property
    def complete(self) -> bool:
        """Nothing of the view was dropped."""
        return len(self.t) == self.cells * self.tokens_per_cell


@dataclass(frozen=True)
class Chosen:
    """`indices` (K,) int64 into the stored tokens, ascending; `score` (K,) float32: their S.

    `r_needed`, `certified`: see `Answer`.
    """

    indices: torch.Tensor = field(repr=False)
    score: torch.Tensor = field(repr=False)
    r_needed: float | None
    certified: bool


def choose(
    stored: Stored,
    *,
    budget: int | None,
    relevance: torch.Tensor | None = None,
    first: Literal["share", "whole"] = "share",
    correspondence_weight: float = 1.0,
    echo_weight: float = 1.0,
    reach: torch.Tensor | None = None,
) -> Chosen:
    """The tokens that `budget` keeps of a view, with what is known of those that the index dropped.

    `relevance` (n,) float32 of the stored tokens; None: S = -a c - b e, the first cell whole and not counted. `first`:
    see `select`. `budget` None: every stored token. `reach` (T,) float32: what the relevance of any token of a cell,
    stored or not, cannot exceed; 1 where it is not given.

    The proof: a dropped token has novelty at most `highest_dropped`, so that it needs r >= r_needed = (lowest S kept
    among tokens with a past) - highest_dropped to be kept. `certified` if no cell reaches that. A dropped token of the
    view's first cell, where r alone counts, is compared with the lowest r kept there. Without relevance r is 0.
    """
    score = token_scores(
        stored.correspondence,
        stored.echo,
        stored.has_past,
        relevance=relevance,
        correspondence_weight=correspondence_weight,
        echo_weight=echo_weight,
    )
    if budget is None:
        indices = torch.arange(len(score))
    else:
        indices = select(
            score,
            stored.has_past,
            budget=budget,
            cells=stored.cells,
            first="free" if relevance is None else first,
        )
    kept = score[indices]
    if stored.complete:
        return Chosen(indices, kept, None, True)
    if stored.highest_dropped is None or correspondence_weight != 1.0 or echo_weight != 1.0:
        return Chosen(indices, kept, None, False)
    needed = _needed(stored, kept, stored.has_past[indices])
    if relevance is None:
        # Of the first cell all must be there; another dropped token enters only where its novelty reaches the kept.
        whole = int((stored.t == 0).sum()) == stored.tokens_per_cell
        return Chosen(indices, kept, needed, whole and needed > 0)
    return Chosen(indices, kept, needed, _beyond_reach(stored, needed, kept, indices, reach))


def _needed(stored: Stored, kept: torch.Tensor, later: torch.Tensor) -> float:
    """The lowest relevance with which a dropped token would have been kept; -1, the lowest there is, if there was room."""
    # With all of them kept, a dropped one would have had room, or the place of a token of the first cell.
    if not bool(later.any()) or int(later.sum()) == int(stored.has_past.sum()):
        return -1.0
    return float(kept[later].min()) - float(stored.highest_dropped or 0.0)


def _beyond_reach(
    stored: Stored, needed: float, kept: torch.Tensor, indices: torch.Tensor, reach: torch.Tensor | None
) -> bool:
    ceiling = torch.ones(stored.cells) if reach is None else reach.clamp(max=1.0)
    dropped = torch.bincount(stored.t, minlength=stored.cells) < stored.tokens_per_cell
    if bool(dropped[0]):
        of_first = kept[stored.t[indices] == 0]
        # With fewer stored than its share the first cell would have had other tokens, whatever their relevance.
        if len(of_first) == int((stored.t == 0).sum()) or float(of_first.min()) <= float(ceiling[0]) + _ROOM:
            return False
    dropped[0] = False
    return not bool((ceiling[dropped] + _ROOM >= needed).any())
