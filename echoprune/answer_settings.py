"""The settings of an answer run: all that decides an answer beside the question, the store and the model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from echoprune.choose import Budget
from echoprune.errors import ConfigError
from echoprune.models.answerer import Decoding
from echoprune.query import REDUCTIONS
from echoprune.templates import load_template

QUERIES = ("question", "question+options", "prompt")
RELEVANCE = (*REDUCTIONS, "off")
FIRST = ("share", "whole")


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """All that decides an answer beside the question, the store and the model; raises ConfigError for odd values.

    `budget`: see `Budget`; with `budget_includes_text` the text that comes with cells counts in it. `relevance`: how r is
    reduced over the words of the query, or "off". `query`: whose words those are. `template`: a name or a file, "auto"
    for multiple choice where there are options. `letters`: score options by log-probability. `batch`: prompts that are
    answered together; `batch_tokens`: tokens of such a batch, filled up to its longest prompt.
    """

    budget: str = "4096"
    budget_includes_text: bool = False
    relevance: str = "max"
    query: str = "question"
    first: Literal["share", "whole"] = "share"
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

    def __post_init__(self) -> None:
        Budget.parse(self.budget)
        self.decoding()
        for name, accepted in (("relevance", RELEVANCE), ("query", QUERIES), ("first", FIRST)):
            if getattr(self, name) not in accepted:
                raise ConfigError(f"--{name} is {getattr(self, name)!r}; give one of {', '.join(accepted)}")
        for name in ("correspondence_weight", "echo_weight"):
            if not 0 <= getattr(self, name) <= 1000:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} is {getattr(self, name)}; give a number from 0 to 1000")
        if self.batch < 1 or self.batch_tokens < 1:
            raise ConfigError(
                f"--batch is {self.batch} and --batch-tokens {self.batch_tokens}; give at least 1"
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

    @property
    def digest(self) -> str:
        """16 hex digits that change with any setting, the text of a template file included."""
        values = asdict(self)
        if self.template != "auto":
            values["template"] = load_template(self.template).digest
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
