"""The choice at answer time: which of the stored tokens a question sees, and what the store's own pruning may have cost.

    stored tokens + budget --policy--> kept tokens + certificate

Which tokens is the policy's affair (policies/). What is added here: the budget as the user writes it, and the proof, where
there is one, that no token which the index dropped would have been kept.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction

import torch

from echoprune.errors import ConfigError
from echoprune.policies import Candidates, Policy, Scoring
from echoprune.stored import Stored

# Scores are sums of float32 products, 1e-5 off at most (tested against float64): a proof needs this much room.
_ROOM = 1e-5


@dataclass(frozen=True)
class Budget:
    """How many visual tokens the language model may see: `tokens`, or a `ratio` of all before pruning; neither: all."""

    tokens: int | None = None
    ratio: Decimal | None = None

    @classmethod
    def parse(cls, text: str, *, option: str = "--budget") -> Budget:
        """The meaning of "4096" (tokens), "0.05" or "5%" (of the original), or "all". Raises ConfigError otherwise.

        `option`: what messages call it.
        """
        if text == "all":
            return cls()
        if re.fullmatch(r"0*[1-9][0-9]{0,11}", text):
            return cls(tokens=int(text))
        if re.fullmatch(r"[0-9]{0,12}\.[0-9]{0,12}|[0-9]{1,3}(\.[0-9]{0,12})?%", text) and text != ".":
            ratio = Decimal(text[:-1]) / 100 if text.endswith("%") else Decimal(text)
            if 0 < ratio <= 1:
                return cls(ratio=ratio)
        raise ConfigError(
            f"{option} is {text!r}; give a number of tokens such as 4096, a share of the original such as 0.05 or 5%, "
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
class Chosen:
    """`indices` (K,) int64 into the stored tokens, ascending; `score` (K,) float32: their S.

    `r_needed`, `certified`: see `Answer`.
    """

    indices: torch.Tensor = field(repr=False)
    score: torch.Tensor = field(repr=False)
    r_needed: float | None
    certified: bool


def choose(candidates: Candidates, policy: Policy, *, reach: torch.Tensor | None = None) -> Chosen:
    """The tokens that `policy` keeps of `candidates`, with what is known of those that the index dropped.

    A budget of None keeps every stored token. `reach` (T,) float32: what the relevance of any token of a cell, stored or
    not, cannot exceed; 1 where it is not given.

    The proof, for policies that choose by a score which follows what the index ranked tokens by (`Scoring`): a dropped
    token has at most `highest_dropped` of that, so that it needs the relevance r_needed to reach the lowest score kept among
    tokens with a past. `certified` if no cell reaches that. A dropped token of the view's first cell, where r alone counts,
    is compared with the lowest r kept there. Without relevance r is 0. Of a view that is stored whole nothing can be missing.

    Raises ValueError for a policy that needs every token where some were dropped.
    """
    stored, scoring = candidates.stored, policy.scoring
    if policy.needs_all and not stored.complete:
        raise ValueError(f"policy {policy.name} needs every token of a view, and the index dropped some")
    score = candidates.paper_score if scoring is None else scoring.score(candidates)
    if candidates.budget is None:
        indices = torch.arange(len(score))
    else:
        indices = policy.choose(candidates).to(score.device)
    kept = score[indices]
    if stored.complete:
        return Chosen(indices, kept, None, True)
    if scoring is None or stored.highest_dropped is None or not _follows_the_index(candidates, scoring):
        return Chosen(indices, kept, None, False)
    lowest = _lowest_to_beat(stored, kept, stored.has_past[indices])
    needed = -1.0 if lowest is None else scoring.r_needed(lowest, stored.highest_dropped)
    if candidates.relevance is None:
        # Of the first cell all must be there; another dropped token enters only where it ranks as high as those kept.
        whole = int((stored.t == 0).sum()) == stored.tokens_per_cell
        return Chosen(indices, kept, needed, whole and needed > 0)
    return Chosen(indices, kept, needed, _beyond_reach(stored, needed, kept, indices, reach))


def _follows_the_index(candidates: Candidates, scoring: Scoring) -> bool:
    """Whether what the index dropped has low scores for that reason."""
    weights = (candidates.correspondence_weight, candidates.echo_weight)
    return candidates.stored.rank_by == scoring.rank_by and (not scoring.weighted or weights == (1.0, 1.0))


def _lowest_to_beat(stored: Stored, kept: torch.Tensor, later: torch.Tensor) -> float | None:
    """The lowest score kept among tokens with a past; None if there was room for more of them."""
    # With all of them kept, a dropped one would have had room, or the place of a token of the first cell.
    if not bool(later.any()) or int(later.sum()) == int(stored.has_past.sum()):
        return None
    return float(kept[later].min())


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
