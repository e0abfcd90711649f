"""Pruning policies: which of a view's stored tokens a question's budget keeps. One file each; docs/policies.md compares.

A policy is a pure function of `Candidates`. To add one: a file with `choose`, an entry here, a name in
pipelines/answer_config.py, a row in docs/policies.md, and a slow oracle in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from echoprune import change
from echoprune.errors import ConfigError
from echoprune.policies import anchored, dycoke, evs, mmtok, paper, random_tokens, uniform, vidcom2
from echoprune.policies.candidates import Candidates
from echoprune.schema import CHANGE, NOVELTY

__all__ = ["POLICIES", "Candidates", "Policy", "Scoring", "policy"]


@dataclass(frozen=True)
class Scoring:
    """How a policy that chooses by score does it, and what follows for tokens that an index dropped.

    `first`: what becomes of the first cell by default (see `select`); without relevance that cell is whole and comes on
    top. `score`: (n,) float32 of the candidates. `rank_by`: what an index has to keep the highest of, so that a proof is
    possible: then a token with at most `highest_dropped` of that, in a later cell, has a score of `lowest` with a
    relevance of `r_needed(lowest, highest_dropped)` at least. `weighted`: it knows the two weights, and nothing is proved
    with others than 1.
    """

    first: Literal["share", "whole"]
    score: Callable[[Candidates], torch.Tensor]
    rank_by: str
    r_needed: Callable[[float, float], float]
    weighted: bool


@dataclass(frozen=True)
class Policy:
    """One way to choose. `choose`: indices into the stored tokens, int64, ascending, min(K, n) of them.

    `needs_all`: it compares every token of a view, so that a store which dropped some is refused. `needs_vectors`: it
    reads all of them, not their scores alone. `uses_query`: the question changes what is kept. `scoring`: of one that
    chooses by score and takes any store; None for others, which know neither `first` nor weights.
    """

    name: str
    summary: str
    needs_all: bool
    needs_vectors: bool
    uses_query: bool
    choose: Callable[[Candidates], torch.Tensor]
    scoring: Scoring | None = None

    @property
    def first(self) -> Literal["share", "whole"] | None:
        """What becomes of the first cell by default; None where `scoring` is."""
        return None if self.scoring is None else self.scoring.first


_BY_CHANGE = Scoring(
    first="whole",
    score=lambda candidates: candidates.change_score,
    rank_by=CHANGE,
    r_needed=change.r_needed,
    weighted=False,
)
_BY_PAPER = Scoring(
    first="share",
    score=lambda candidates: candidates.paper_score,
    rank_by=NOVELTY,
    r_needed=lambda lowest, highest_dropped: lowest - highest_dropped,
    weighted=True,
)


def _by_score(
    name: str, choose: Callable[[Candidates], torch.Tensor], scoring: Scoring, summary: str
) -> Policy:
    return Policy(name, summary, False, False, True, choose, scoring)


def _baseline(
    name: str,
    choose: Callable[[Candidates], torch.Tensor],
    summary: str,
    *,
    needs_vectors: bool = False,
    uses_query: bool = False,
) -> Policy:
    return Policy(name, summary, True, needs_vectors, uses_query, choose)


# By name; the default first.
POLICIES = {
    each.name: each
    for each in (
        _by_score(
            "anchored",
            anchored.choose,
            _BY_CHANGE,
            "what changed, the odd and the relevant of it first; the first cell whole",
        ),
        _by_score(
            "echoprune",
            paper.choose,
            _BY_PAPER,
            "the paper: r - c - e, the first cell takes its share",
        ),
        _baseline("uniform", uniform.choose, "whole cells, evenly spread"),
        _baseline("random", random_tokens.choose, "tokens drawn by --seed"),
        _baseline("evs", evs.choose, "what differs from its own place a cell ago"),
        _baseline("vidcom2", vidcom2.choose, "what stands out of its cell and video", needs_vectors=True),
        _baseline("dycoke", dycoke.choose, "what differs from a reference cell nearby", needs_vectors=True),
        _baseline(
            "mmtok",
            mmtok.choose,
            "what covers the question and the video together",
            needs_vectors=True,
            uses_query=True,
        ),
    )
}


def policy(name: str, *, option: str = "--policy") -> Policy:
    """The policy of that name; ConfigError for another, with the names there are. `option`: what messages call it."""
    if name not in POLICIES:
        raise ConfigError(f"{option} is {name!r}; give one of {', '.join(POLICIES)}")
    return POLICIES[name]
