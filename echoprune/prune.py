"""Which tokens a budget keeps: one keeper over flat candidates, and what the user writes as a budget.

With r the relevance (`query.py`), c and e the correspondence and echo (`echo.py`) of a token:

    score  S = r - c - e      for tokens with a past;  S = r for those without, whose c and e mean nothing

One global top-K over the whole video, not one per cell; the first cell competes with itself alone, since nothing
before it could explain it. `select_tokens` works on all tokens of a video, `select` on whichever are at hand, such
as those of a store. `topk.py` makes the same choice for a video too long for memory.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Integral
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from echoprune.data import EchoScores, FloatArray
from echoprune.errors import ConfigError, ModelError

First = Literal["share", "whole", "free"]

# Below the tick of every container's clock (1/90,000 s), above the rounding of times of days (1e-11 s).
SAME_INSTANT_S = 1e-6


def token_scores(
    correspondence: torch.Tensor,
    echo: torch.Tensor,
    has_past: torch.Tensor,
    *,
    relevance: torch.Tensor | None = None,
    correspondence_weight: float = 1.0,
    echo_weight: float = 1.0,
) -> torch.Tensor:
    """Score S = r - a c - b e, float32, high = keep, in the shape of `correspondence` and `echo`.

    `has_past` bool, of a shape that broadcasts to theirs: where it is false, S = r. `relevance` in their shape;
    none means r = 0, and S is the novelty. The two weights are a and b. Under a time range the caller passes
    `has_past` false for the first cell of the range, whatever is stored for it.
    """
    novelty = -correspondence_weight * correspondence - echo_weight * echo
    novelty = torch.where(has_past, novelty, 0.0)
    if relevance is None:
        return novelty
    if relevance.shape != correspondence.shape:
        raise ValueError(
            f"relevance {tuple(relevance.shape)} must have the shape {tuple(correspondence.shape)}"
        )
    return relevance.to(correspondence.device, torch.float32) + novelty


def select(
    score: torch.Tensor,
    has_past: torch.Tensor,
    *,
    budget: int,
    cells: int,
    first: First = "share",
    first_cells: int = 1,
) -> torch.Tensor:
    """Indices of the kept candidates, int64, ascending.

    `score` (n,) float32 as from `token_scores`; `has_past` (n,) bool. `budget` K >= 0 counts exactly: min(K, n)
    are kept. `cells`: T of the video or time range that K was made for, before any pruning; `first_cells`: how
    many of them are without a past. With n0 candidates without a past, of which these are chosen by their own
    scores before the others compete for the rest of the budget:

        first = "share":  min(n0, K, max(1, K * first_cells // T)), so K // T for the one first cell of a video
        first = "whole":  as much as its share, and all of it that half of K has room for: min(n0, max(share, ceil(K / 2)))
        first = "free":   all n0, not counted in K

    Where the candidates with a past run out, more of the first are kept. Ties: the lower index wins.

    Raises ModelError if a score is NaN.
    """
    if score.ndim != 1 or score.shape != has_past.shape or has_past.dtype != torch.bool:
        raise ValueError(
            f"score and has_past must be (n,) and bool (n,), got {tuple(score.shape)} and "
            f"{has_past.dtype} {tuple(has_past.shape)}"
        )
    _check_budget(budget)
    if cells < 1 or not 0 <= first_cells <= cells:
        raise ValueError(f"cells {cells} and first_cells {first_cells} do not fit each other")
    _require_defined(score)
    has_past = has_past.to(score.device)
    (later,) = has_past.nonzero(as_tuple=True)
    (early,) = (~has_past).nonzero(as_tuple=True)
    if first == "free":
        quota = len(early)
        room = budget
    elif first in ("share", "whole"):
        share = max(1, budget * first_cells // cells)
        quota = min(budget, share if first == "share" else max(share, (budget + 1) // 2))
        quota = min(len(early), max(quota, budget - len(later)))
        room = budget - quota
    else:
        raise ValueError(f"first must be 'share', 'whole' or 'free', got {first!r}")
    kept = torch.cat([early[_best(score[early], quota)], later[_best(score[later], room)]])
    return kept.sort().values


def select_tokens(
    echo: EchoScores,
    *,
    budget: int,
    relevance: torch.Tensor | None = None,
    first: Literal["share", "whole"] = "share",
    correspondence_weight: float = 1.0,
    echo_weight: float = 1.0,
) -> torch.Tensor:
    """Flat indices t * N + i of the kept tokens of a whole video, int64, ascending, on the scores' device.

    With `relevance` (T, N): min(`budget`, T * N) tokens by S = r - c - e, `first` saying how many of the first
    cell are certain: its share K // T, or all N as far as half of the budget goes. Without: the first cell whole and not
    counted, whatever `first` says, and `budget` further tokens by S = -c - e. The weights are factors of c and e.
    Ties: the lower index wins. A cell may keep nothing.

    Raises ModelError if a score is NaN.
    """
    if first not in ("share", "whole"):
        raise ValueError(f"first must be 'share' or 'whole', got {first!r}")
    _check_budget(budget)
    cells = len(echo.has_past)
    if cells == 0:
        return torch.empty(0, dtype=torch.int64, device=echo.echo.device)
    score = token_scores(
        echo.correspondence,
        echo.echo,
        echo.has_past[:, None],
        relevance=relevance,
        correspondence_weight=correspondence_weight,
        echo_weight=echo_weight,
    )
    return select(
        score.flatten(),
        echo.has_past[:, None].expand_as(score).flatten(),
        budget=budget,
        cells=cells,
        first="free" if relevance is None else first,
        first_cells=int((~echo.has_past).sum()),
    )


def highest(score: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the min(`count`, n) highest of `score` (n,), int64, ascending; of equal ones the lower index wins.

    Raises ModelError if a score is NaN.
    """
    _require_defined(score)
    return _best(score, count).sort().values


def _require_defined(score: torch.Tensor) -> None:
    undefined = int(score.isnan().sum())
    if undefined:
        raise ModelError(
            f"{undefined} of {len(score)} token scores are NaN; check the checkpoint and the question"
        )


def _check_budget(budget: object) -> None:
    if isinstance(budget, bool) or not isinstance(budget, Integral) or int(budget) < 0:
        raise ValueError(f"budget must be a whole number of tokens, 0 or more, got {budget!r}")


def _best(score: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the min(`count`, n) highest scores, in no order; of equal ones the lower index."""
    if not 0 < count < len(score):
        return torch.arange(max(0, min(count, len(score))), device=score.device)
    # The lowest that is kept, then who is above it and the first of its equals: a sixth of a stable sort's time, 0.1 ms for 512 or
    # 9,000 of 10,240.
    lowest = torch.topk(score, count, sorted=False).values.min()
    (above,) = (score > lowest).nonzero(as_tuple=True)
    (equal,) = (score == lowest).nonzero(as_tuple=True)
    return torch.cat([above, equal[: count - len(above)]])


@dataclass(frozen=True)
class Keep:
    """How many tokens an index keeps of each video: a `ratio`, a number `per_cell`, or (neither given) all.

    `ratio`: in (0, 1], of all tokens. Made from the user's text by `Keep.parse`; `str` gives it back in its
    shortest form.
    """

    ratio: Decimal | None = None
    per_cell: int | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None and self.per_cell is not None:
            raise ValueError(f"give a ratio or a number per cell, not both: {self.ratio}, {self.per_cell}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1, got {self.ratio}")
        if self.per_cell is not None and self.per_cell < 1:
            raise ValueError(f"per_cell must be at least 1, got {self.per_cell}")

    @classmethod
    def parse(cls, text: str) -> Keep:
        """The meaning of "0.25", "64/cell" or "all".

        Raises ConfigError for anything else.
        """
        if text == "all":
            return cls()
        if re.fullmatch(r"0*[1-9][0-9]{0,8}/cell", text):
            return cls(per_cell=int(text.removesuffix("/cell")))
        if re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text) and 0 < Decimal(text) <= 1:
            return cls(ratio=Decimal(text))
        raise ConfigError(
            f"keep is {text!r}; give a ratio above 0 and at most 1 such as 0.25, a number of tokens such as 64/cell, "
            "or all"
        )

    def budget(self, cells: int, tokens_per_cell: int) -> int | None:
        """K for a video of T `cells` of N tokens: floor(ratio x T x N) or per_cell x T; None for all."""
        if self.per_cell is not None:
            return self.per_cell * cells
        if self.ratio is not None:
            # In fractions: 0.29 x 100 is 28.999999999999996 in floating point.
            return math.floor(Fraction(self.ratio) * cells * tokens_per_cell)
        return None

    def __str__(self) -> str:
        if self.per_cell is not None:
            return f"{self.per_cell}/cell"
        if self.ratio is not None:
            text = f"{self.ratio:f}"
            return text.rstrip("0").rstrip(".") if "." in text else text
        return "all"


def anchor_cells(cell_times_s: FloatArray, every_s: float) -> npt.NDArray[np.bool_]:
    """(T,) bool: the first cell, and the first cell at or after each multiple of `every_s` seconds.

    `cell_times_s` (T,) ascending from 0. A time within a microsecond below a multiple counts as that multiple.
    `every_s` = 0: the first cell alone.

    Raises ConfigError for an `every_s` that is negative or not finite.
    """
    if not (math.isfinite(every_s) and every_s >= 0):
        raise ConfigError(
            f"anchor interval is {every_s} s; give a number of seconds above 0, or 0 for no anchors"
        )
    anchor = np.zeros(len(cell_times_s), dtype=np.bool_)
    anchor[:1] = True
    if every_s > 0:
        interval = np.floor((cell_times_s + SAME_INSTANT_S) / every_s)
        anchor[1:] = interval[1:] > interval[:-1]
    return anchor
