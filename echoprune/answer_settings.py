"""The settings of an answer run: all that decides an answer beside the question, the store and the model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from echoprune.choose import Budget
from echoprune.errors import ConfigError
from echoprune.models.answerer import ENGINES, Decoding
from echoprune.policies import POLICIES, policy
from echoprune.query import REDUCTIONS
from echoprune.schema import CHANGE
from echoprune.templates import load_template

QUERIES = ("question", "question+options", "prompt")
RELEVANCE = (*REDUCTIONS, "off")
FIRST = ("auto", "share", "whole")
# What generates text; answers of before there was another do not name it.
LIBRARY = "library"


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """All that decides an answer beside the question, the store and the model; raises ConfigError for odd values.

    `budget`: see `Budget`; with `budget_includes_text` the text that comes with cells counts in it. `relevance`: how r is
    reduced over the words of the query, or "off". `query`: whose words those are. `template`: a name or a file, "auto"
    for multiple choice where there are options. `letters`: score options by log-probability. `batch`: prompts that are
    answered together; `batch_tokens`: tokens of such a batch, filled up to its longest prompt. `engine`: what generates
    text, see `Answerer.generate`; with the fast one others join a batch as texts end. `policy`: what chooses the
    tokens, see policies/; `first`: "auto" is the policy's own.
    """

    budget: str = "4096"
    budget_includes_text: bool = False
    relevance: str = "max"
    query: str = "question"
    policy: str = "anchored"
    first: Literal["auto", "share", "whole"] = "auto"
    correspondence_weight: float = 1.0
    echo_weight: float = 1.0
    template: str = "auto"
    letters: bool = False
    positions: str = "auto"
    empty_cells: str = "drop"
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    batch: int = 8
    batch_tokens: int = 65536
    engine: str = LIBRARY

    def __post_init__(self) -> None:
        Budget.parse(self.budget)
        self.decoding()
        for name, accepted in (
            ("relevance", RELEVANCE),
            ("query", QUERIES),
            ("first", FIRST),
            ("engine", ENGINES),
        ):
            if getattr(self, name) not in accepted:
                raise ConfigError(f"--{name} is {getattr(self, name)!r}; give one of {', '.join(accepted)}")
        for name in ("correspondence_weight", "echo_weight"):
            if not 0 <= getattr(self, name) <= 1000:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} is {getattr(self, name)}; give a number from 0 to 1000")
        self._require_use()
        if self.batch < 1 or self.batch_tokens < 1:
            raise ConfigError(
                f"--batch is {self.batch} and --batch-tokens {self.batch_tokens}; give at least 1"
            )

    def _require_use(self) -> None:
        """Raises ConfigError for an option that the policy would ignore."""
        by_score = {name: each.scoring for name, each in POLICIES.items() if each.scoring is not None}
        policy(self.policy)
        weighted = [name for name, scoring in by_score.items() if scoring.weighted]
        for option, value, unused, taking in (
            ("--first", self.first, "auto", list(by_score)),
            ("--correspondence-weight", self.correspondence_weight, 1.0, weighted),
            ("--echo-weight", self.echo_weight, 1.0, weighted),
            ("--relevance", "max" if self.relevance == "off" else self.relevance, "max", list(by_score)),
        ):
            if value != unused and self.policy not in taking:
                raise ConfigError(
                    f"{option} is {value}, which --policy {self.policy} does not use: leave it out, or give a policy "
                    f"that does ({', '.join(taking)})"
                )

    def decoding(self) -> Decoding:
        """How text is generated."""
        return Decoding(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
        )

    def named(self) -> dict[str, Any]:
        """The settings by name; the engine where it is not the library's, what the policy scores by where that was another."""
        values = asdict(self)
        if self.engine == LIBRARY:
            del values["engine"]
        scoring = policy(self.policy).scoring
        if scoring is not None and scoring.rank_by == CHANGE:
            # Before, `anchored` added up r - c - e: a folder that began so must not go on with another rule.
            values["score"] = CHANGE
        return values

    @property
    def digest(self) -> str:
        """16 hex digits that change with any setting, the text of a template file included."""
        values = self.named()
        if self.template != "auto":
            values["template"] = load_template(self.template).digest
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
