"""One answerer, pinned to its GPU: takes shards of questions, answers them in order, commits each shard whole.

The model is loaded once; frames and decoders are nowhere. A question that cannot be asked is a failed row of the core's;
anything else that goes wrong ends the worker, and the scheduler decides by what it had in hand.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import pyarrow as pa
import torch

from echoprune import lease
from echoprune.answer import answer_questions, failed, provenance
from echoprune.answer_plan import AnswerShard
from echoprune.answer_run import build_answers
from echoprune.answer_settings import AnswerSettings
from echoprune.answered_videos import video_digest
from echoprune.fast.operations import try_out
from echoprune.models import load_answerer
from echoprune.question import Answer, Question
from echoprune.receipt import Receipt
from echoprune.s3_objects import s3_counts
from echoprune.s3_options import use_s3
from echoprune.shard import commit
from echoprune.storage import Storage
from echoprune.store import TokenStore, open_store
from pipelines.announce import told
from pipelines.answer_config import AnsweringConfig
from pipelines.crew import Crew
from pipelines.events import Event, QuestionDone, QuestionsStarted, ShardCommitted
from pipelines.versions import versions

log = logging.getLogger(__name__)

KILLED = "killed_worker"


@dataclass(frozen=True)
class AnswerJob:
    """All that a worker needs to know of the run."""

    config: AnsweringConfig
    settings: AnswerSettings
    extra: dict[str, pa.DataType]
    compute_dtype: str
    crew: Crew
    store: str
    out: str
    run_id: str
    lease_epoch: int


class AnswerWorker:
    """The actor class; see the module's docstring."""

    def __init__(self, job: AnswerJob) -> None:
        self._job = job
        use_s3(job.config.s3)
        self._storage = Storage(job.out)
        self._answerer: Any = None
        self._store: TokenStore | None = None
        self._digests: dict[str, str] = {}
        torch.set_num_threads(job.crew.threads)

    def load(self) -> None:
        """Loads the model, tries a GPU out and opens the store; raises ModelError or StoreError."""
        self._store = open_store(self._job.store)
        device = "cuda" if self._job.crew.gpus_each else "cpu"
        self._answerer = load_answerer(
            self._job.config.model,
            device=device,
            compute_dtype=self._job.compute_dtype,
            positions=self._job.settings.positions,
            empty_cells=self._job.settings.empty_cells,
            engine=self._job.settings.engine,
        )
        if device == "cuda" and self._job.settings.engine == "fast":
            try_out(torch.device(device))

    def run_shard(
        self, shard: AnswerShard, quarantined: Mapping[str, str], alone: frozenset[str] = frozenset()
    ) -> Generator[Event, None, None]:
        """Answers and commits one shard, telling what happens; raises what no answer can say."""
        assert self._store is not None
        started, begun, asked = datetime.now(UTC), time.perf_counter(), s3_counts()
        answers: list[Answer] = []

        def answer(tell: Callable[[Event], None]) -> None:
            for each in self._answers(shard.questions, quarantined, alone, tell):
                answers.append(self._with_digest(each))
                tell(_done(each))

        yield from told(answer)
        answered = time.perf_counter()
        with self._storage.tmp_dir() as folder:
            built = []
            # All that the shard held may have been superseded: then it has a receipt, and no file.
            if answers:
                built.append(
                    build_answers(
                        folder,
                        shard.shard_id,
                        answers,
                        extra=self._job.extra,
                        provenance=provenance(self._store, self._job.settings),
                        generation=shard.generation,
                    )
                )
            outcomes = Counter(each.status for each in answers)
            receipt = Receipt(
                shard_id=shard.shard_id,
                generation=shard.generation,
                files=tuple(file.entry for file in built),
                ok=outcomes["ok"],
                partial=outcomes["empty"],
                failed=outcomes["failed"],
                lease_epoch=self._job.lease_epoch,
                run_id=self._job.run_id,
                host=socket.gethostname(),
                started_at=started.isoformat(),
                finished_at=datetime.now(UTC).isoformat(),
                versions=versions(),
                config=self._job.config.as_dict(),
            )
            commit(self._storage, built, receipt, check_epoch=self._check_epoch)
        yield ShardCommitted(
            shard_id=shard.shard_id,
            bytes=sum(file.entry.size_bytes for file in built),
            wait_s=0.0,
            encode_s=answered - begun,
            commit_s=time.perf_counter() - answered,
            s3=s3_counts() - asked,
        )

    def _with_digest(self, answer: Answer) -> Answer:
        """The answer with the digest of its video, so that a later run can tell whether the store holds that one still."""
        assert self._store is not None
        if answer.video_id is None:
            return answer
        if answer.video_id not in self._digests:
            row = self._store.video(answer.video_id)
            self._digests[answer.video_id] = video_digest(row, self._store.settings)
        return replace(answer, video_digest=self._digests[answer.video_id])

    def _check_epoch(self) -> None:
        lease.check(self._storage, self._job.lease_epoch)

    def _answers(
        self,
        questions: Iterable[Question],
        quarantined: Mapping[str, str],
        alone: frozenset[str],
        tell: Callable[[Event], None],
    ) -> Iterator[Answer]:
        """The answers in order, each question announced before its turn, and each batch before it is answered.

        A video that is read ahead, and ends the worker, is blamed on the question in hand, which is asked alone then: with
        nothing read ahead beside it.
        """
        assert self._store is not None

        def how(question: Question) -> str:
            if question.question_id in quarantined and not question.error_class:
                return KILLED
            return question.question_id if question.question_id in alone else ""

        # Questions before and after one to be answered alone form the batches that they formed with it.
        for kind, part in groupby(questions, key=how):
            if kind == KILLED:
                message = "answering it killed the worker twice, by itself; the question is left out"
                yield from (failed(question, KILLED, message) for question in part)
                continue
            yield from answer_questions(
                part,
                store=self._store,
                answerer=self._answerer,
                settings=self._job.settings,
                on_batch=lambda ids: tell(QuestionsStarted(ids)),
                on_question=lambda question: tell(QuestionsStarted((question.question_id,))),
            )


def _done(answer: Answer) -> QuestionDone:
    return QuestionDone(
        answer.question.question_id,
        answer.status,
        answer.error_class,
        answer.error,
        tokens=answer.visual_tokens,
        new_tokens=answer.new_tokens,
    )
