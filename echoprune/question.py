"""A question about a stored video, and its answer: what `answer` reads and writes, one row each.

A caption is an answer too: its question is a template over a window of time. Reading question files is in
questions.py, the columns of the answers table in answer_schema.py, answering in answer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

ANSWER_STATUSES = ("ok", "empty", "failed")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question as it was asked.

    `video`: an id, a uri, a path or a file name. `options`: the choices of a multiple-choice question, without their
    letters. `answer`: what is right, a letter or an option's text for multiple choice. `kind`: any label, to score
    by. `start_s`, `end_s`: only cells that begin in [start_s, end_s) are looked at, seconds from the first presented
    frame; either may be None. `prompt`: the name of a template, or the whole text for the model, instead of the run's
    template. `extra`: the further columns of its row, passed through. `error_class`, `error`: why the row is no
    question, "" if it is one; such a row becomes a failed answer.
    """

    question_id: str
    video: str
    question: str
    options: tuple[str, ...] = ()
    answer: str | None = None
    kind: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    prompt: str | None = None
    extra: Mapping[str, object] = field(default_factory=dict)
    error_class: str = ""
    error: str = ""


@dataclass(frozen=True)
class Evidence:
    """A moment that the kept tokens point to: [start_s, end_s) seconds, `score` its share of all of them, 0 to 1."""

    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one question. `status`: one of ANSWER_STATUSES.

    "empty" is a caption of a window in which nothing is stored; "failed" has `error_class` and `error`. `video_digest`: of the video as the store held it
    (answered_videos.py), None where no run has set it. `finish`: "eos"
    or "length". `parsed_choice`: a letter, None if unsure. `choice_logprobs`: of each option's letter, if asked for.
    `correct`: None without `question.answer`. `kept` (K, 3) int32: (t, h, w) of the tokens that the model saw, in the
    video's whole grid. `original_tokens`: T x N of the video or range before any pruning; `stored_tokens`: those of
    them in the store; `visual_tokens` = K; `timestamp_tokens`: text tokens that come with cells; `prompt_tokens`: all.
    `r_needed`: the relevance that a dropped token would have needed to be kept, None if none was dropped or the
    weights of the score differ from the index's; `certified`: no dropped token can have been kept. `template`,
    `template_hash`: of the prompt.
    """

    question: Question
    status: str
    error_class: str = ""
    error: str = ""
    video_id: str | None = None
    uri: str | None = None
    video_digest: str | None = None
    raw_text: str = ""
    finish: str = ""
    parsed_choice: str | None = None
    choice_logprobs: tuple[float, ...] | None = None
    correct: bool | None = None
    evidence: tuple[Evidence, ...] = ()
    kept: npt.NDArray[np.int32] = field(
        default_factory=lambda: np.empty((0, 3), np.int32), repr=False, compare=False
    )
    original_tokens: int = 0
    stored_tokens: int = 0
    visual_tokens: int = 0
    timestamp_tokens: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    r_needed: float | None = None
    certified: bool = False
    template: str = ""
    template_hash: str = ""

    def __post_init__(self) -> None:
        if self.status not in ANSWER_STATUSES:
            raise ValueError(f"status must be one of {ANSWER_STATUSES}, got {self.status!r}")
        if (self.status == "failed") != bool(self.error_class):
            raise ValueError(f"a {self.status} answer does not go with error_class {self.error_class!r}")
        if self.kept.ndim != 2 or self.kept.shape[1] != 3:
            raise ValueError(f"kept must be (K, 3), got {self.kept.shape}")
