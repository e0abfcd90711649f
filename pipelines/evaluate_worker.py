"""One answerer of an evaluation: takes settings, answers all questions under each, puts the answers in one file.

The model is loaded once for all settings. Batches, not questions, are told to the driver: a grid of 80 settings has
tens of thousands of questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch

from echoprune import lease
from echoprune.answer import answer_questions, failed
from echoprune.answer_settings import AnswerSettings
from echoprune.evaluation_folder import answers_bytes, answers_name
from echoprune.evaluation_grid import DENSE, Setting
from echoprune.models import load_answerer
from echoprune.question import Answer, Question
from echoprune.s3_options import S3Options, use_s3
from echoprune.storage import Storage
from echoprune.store import TokenStore, open_store
from pipelines.announce import told
from pipelines.answer_worker import KILLED
from pipelines.events import Event, QuestionsStarted, ShardCommitted


@dataclass(frozen=True)
class EvalTask:
    """One setting to be answered, from the store at `store`."""

    setting: Setting
    store: str

    @property
    def shard_id(self) -> str:
        """What the scheduler knows it by."""
        return self.setting.name


@dataclass(frozen=True)
class EvalJob:
    """All that a worker needs to know. `questions`: those about one video one after another. `settings`: what all share."""

    model: str
    compute_dtype: str
    device: str
    threads: int
    questions: tuple[Question, ...]
    settings: AnswerSettings
    out: str
    s3: S3Options
    lease_epoch: int


class EvalWorker:
    """The actor class; see the module's docstring."""

    def __init__(self, job: EvalJob) -> None:
        self._job = job
        use_s3(job.s3)
        self._storage = Storage(job.out)
        self._answerer: Any = None
        torch.set_num_threads(job.threads)

    def load(self) -> None:
        """Loads the model; raises ModelError."""
        self._answerer = load_answerer(
            self._job.model, device=self._job.device, compute_dtype=self._job.compute_dtype
        )

    def run_shard(
        self, task: EvalTask, quarantined: Mapping[str, str], alone: frozenset[str] = frozenset()
    ) -> Generator[Event, None, None]:
        """Answers all questions under one setting and writes its file, telling what happens."""
        begun = time.perf_counter()
        store = open_store(task.store)
        answers: list[Answer] = []

        def answer(tell: Callable[[Event], None]) -> None:
            answers.extend(self._answers(task, store, quarantined, alone, tell))

        yield from told(answer)
        answered = time.perf_counter()
        content = answers_bytes(task.setting, answers)
        check = partial(lease.check, self._storage, self._job.lease_epoch)
        self._storage.write_bytes(answers_name(task.setting), content, before=check)
        now = time.perf_counter()
        yield ShardCommitted(task.shard_id, len(content), 0.0, answered - begun, now - answered)

    def _answers(
        self,
        task: EvalTask,
        store: TokenStore,
        quarantined: Mapping[str, str],
        alone: frozenset[str],
        tell: Callable[[Event], None],
    ) -> Iterator[Answer]:
        """The answers in order; questions that kill the worker are told by setting, since another may bear them."""
        setting = task.setting
        settings = replace(self._job.settings, budget=setting.budget)
        if setting.policy != DENSE:
            settings = replace(settings, policy=setting.policy)

        def item(question_id: str) -> str:
            return f"{question_id} ({setting.name})"

        def how(question: Question) -> str:
            name = item(question.question_id)
            return KILLED if name in quarantined else name if name in alone else ""

        for kind, part in groupby(self._job.questions, key=how):
            if kind == KILLED:
                message = "answering it killed the worker twice, by itself; the question is left out"
                yield from (failed(question, KILLED, message) for question in part)
                continue
            yield from answer_questions(
                part,
                store=store,
                answerer=self._answerer,
                settings=settings,
                on_batch=lambda ids: tell(QuestionsStarted(tuple(map(item, ids)))),
            )
