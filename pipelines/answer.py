"""An answer run, or a caption run, from end to end: store, model, questions, plan, workers, report.

questions -> plan (frozen) -> lease -> workers take shards -> receipts -> run_report.json. The driver sees questions and
counts, never tensors.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from echoprune.accuracy import accuracy
from echoprune.answer import require_tokens
from echoprune.answer_plan import AnswerPlan, PlannedShard, extend_plan, load_plan
from echoprune.answer_run import AnswerRun, answer_run, create_answers, with_engine
from echoprune.answer_schema import answers_schema
from echoprune.answer_settings import AnswerSettings
from echoprune.answer_store import open_answers
from echoprune.answered_videos import require_same_videos
from echoprune.captions import caption_questions, parse_window
from echoprune.errors import ConfigError
from echoprune.lease import Lease, check
from echoprune.models import fingerprint, model_settings
from echoprune.models.identity import answering_digest
from echoprune.question import Question
from echoprune.questions import QuestionFile, read_questions
from echoprune.receipt import sweep
from echoprune.s3_options import use_s3
from echoprune.storage import Storage
from echoprune.store import TokenStore, open_store
from echoprune.templates import AUTO, template_names
from pipelines.answer_config import AnswerConfig, AnsweringConfig, CaptionConfig
from pipelines.answer_tally import AnswerTally
from pipelines.answer_worker import AnswerJob, AnswerWorker
from pipelines.chosen import answer_dtype_of, engine_of
from pipelines.crew import Crew, crew, nodes_alive, start_worker
from pipelines.drive import OnProgress, drive
from pipelines.maintain import new_run_id
from pipelines.ray_session import joins, session
from pipelines.run_end import reported, sweep_leftovers
from pipelines.schedule import Scheduler
from pipelines.versions import versions

log = logging.getLogger(__name__)

# Questions and counts alone travel through it; Ray takes no less than 75 MB.
OBJECT_STORE_BYTES = 128 << 20
# Families whose tokens have no places in time and space: positions may be counted anew there.
COMPACT_FAMILIES = ("llava_onevision",)


@dataclass(frozen=True)
class _Asked:
    """What is to be answered, and what the answers' folder must have been made with.

    `questions` is emptied once they are planned: from then on the plan has them, in a tenth of the memory.
    """

    questions: list[Question]
    store: TokenStore
    extra: dict[str, pa.DataType]
    run: AnswerRun
    settings: AnswerSettings
    by: tuple[str, ...]


def run_answer(config: AnswerConfig, *, on_progress: OnProgress) -> dict[str, Any]:
    """Answers what `config.out` lacks of its plan and of `config.questions`; returns the report, also in run_report.json.

    Raises ConfigError or StoreMismatchError before anything ran, StoreError or ModelError when the run broke. What was
    committed stands.
    """
    use_s3(config.s3)
    settings = _settings(config)
    store = _matching_store(config, settings)
    file = read_questions(config.questions)
    by = config.by or ("kind",)
    _check_columns(by, file)
    run = _answer_run(config, settings, store, job="answer", extra=file.extra)
    asked = _Asked(list(file.questions), store, file.extra, run, settings, by)
    del file
    return _run(config, asked, on_progress=on_progress)


def run_captions(config: CaptionConfig, *, on_progress: OnProgress) -> dict[str, Any]:
    """Captions each window of the store's videos that `config.out` lacks; otherwise as `run_answer`."""
    use_s3(config.s3)
    settings = _settings(config)
    window_s = parse_window(config.window)
    store = _matching_store(config, settings)
    windows = caption_questions(
        store, window_s=window_s, template=config.template, videos=config.videos or None
    )
    # The template is the run's: it may be a file, which a question's own prompt may not.
    questions = [replace(window, prompt=None) for window in windows]
    if not questions:
        raise ConfigError(f"{store.storage.url} holds no video to caption: index some first")
    run = _answer_run(config, settings, store, job="caption", extra={}, window_s=window_s)
    return _run(config, _Asked(questions, store, {}, run, settings, ()), on_progress=on_progress)


def _settings(config: AnsweringConfig) -> AnswerSettings:
    """The settings that the options mean, a template file by its absolute path: workers may run in another folder."""
    values = config.settings_values()
    if config.template not in (AUTO, *template_names()) and Path(config.template).is_file():
        values["template"] = str(Path(config.template).absolute())
    return AnswerSettings(**values)


def _matching_store(config: AnsweringConfig, settings: AnswerSettings) -> TokenStore:
    """The store, if the model is the one whose tokens it holds and takes the options; otherwise an error.

    Raises StoreMismatchError, or ConfigError: before the folder of the answers is pinned to what cannot be answered.
    """
    store = open_store(config.store)
    family = model_settings(config.model).family
    if config.positions == "compact" and family not in COMPACT_FAMILIES:
        raise ConfigError(
            f"--positions compact is not for {family}, whose tokens have places in time and space: give original, or auto"
        )
    store.settings.require_model(fingerprint(config.model), config.model)
    require_tokens(store, settings)
    return store


def _check_columns(by: Sequence[str], file: QuestionFile) -> None:
    """Raises ConfigError for a column that the answers cannot be grouped by, before hours are spent on them."""
    try:
        empty = answers_schema(file.extra).empty_table()
    except ValueError as error:
        raise ConfigError(f"{error}: rename them in the question file") from error
    accuracy(empty, by=by)


def _answer_run(
    config: AnsweringConfig,
    settings: AnswerSettings,
    store: TokenStore,
    *,
    job: str,
    extra: dict[str, pa.DataType],
    window_s: float | None = None,
) -> AnswerRun:
    own_dtype = model_settings(config.model).dtype
    return answer_run(
        settings,
        job=job,
        model_fingerprint=store.settings.model_fingerprint,
        model_digest=answering_digest(config.model),
        compute_dtype=own_dtype if config.compute_dtype == "auto" else config.compute_dtype,
        store_digest=store.settings.digest,
        extra=extra,
        window_s=window_s,
    )


def _run(config: AnsweringConfig, asked: _Asked, *, on_progress: OnProgress) -> dict[str, Any]:
    run_id = new_run_id()
    with ExitStack() as ray_session:
        # Before a new folder is made: wrong options of the cluster must not leave an empty one behind.
        people = None if Storage(config.out).names() else _connect(config, ray_session)
        compute_dtype = answer_dtype_of(config, people, own=asked.run.compute_dtype)
        made_by, settings = with_engine(
            replace(asked.run, compute_dtype=compute_dtype), asked.settings, engine_of(config, people)
        )
        asked = replace(asked, run=made_by, settings=settings)
        storage = create_answers(config.out, asked.run)
        with Lease.acquire(storage, run_id=run_id, option="--out") as lease:
            receipts = sweep(storage, check_epoch=partial(check, storage, lease.epoch)).receipts
            require_same_videos(open_answers(storage.url), asked.store)
            extend_plan(
                storage,
                asked.questions,
                extra=asked.extra,
                shard_questions=config.shard_questions,
                batch=config.batch,
            )
            asked.questions.clear()
            plan = load_plan(storage)
            shards = plan.pending(receipts, retry_failed=config.retry_failed)
            todo = sum(map(len, shards))
            tally = AnswerTally(questions=todo, done_before=len(plan) - todo)
            started_at = datetime.now(UTC)
            quarantined: set[str] = set()

            def work() -> None:
                if shards:
                    # Ray ends before the lease is given up: no worker may write after that.
                    with ray_session:
                        job = AnswerJob(
                            config=config,
                            settings=asked.settings,
                            extra=asked.extra,
                            compute_dtype=asked.run.compute_dtype,
                            crew=people or _connect(config, ray_session),
                            store=Storage(config.store).url,
                            out=storage.url,
                            run_id=run_id,
                            lease_epoch=lease.epoch,
                        )
                        scheduler = _run_shards(
                            job, shards, tally, name=asked.run.job, on_progress=on_progress
                        )
                    quarantined.update(scheduler.quarantined)
                    rewritten = any(shard.generation for shard in shards)
                    sweep_leftovers(storage, lease, deaths=scheduler.deaths, rewritten=rewritten)

            def report() -> dict[str, Any]:
                return {
                    "run_id": run_id,
                    "host": socket.gethostname(),
                    "started_at": started_at.isoformat(),
                    "finished_at": datetime.now(UTC).isoformat(),
                    "versions": versions(),
                    "config": config.as_dict(),
                    "run": tally.report(),
                    "quarantined": sorted(quarantined),
                    **_standing(plan, storage, extra=asked.extra, by=asked.by),
                }

            return reported(storage, lease, work, report)


def _connect(config: AnsweringConfig, until: ExitStack) -> Crew:
    """The actors that there is room for on Ray, which is connected until the end of `until`."""
    until.enter_context(session(config.address, object_store_bytes=OBJECT_STORE_BYTES))
    return crew(
        nodes_alive(),
        encoders=config.workers,
        decoders=0,
        device=config.device,
        may_join=joins(config.address),
        option="--workers",
    )


def _run_shards(
    job: AnswerJob,
    shards: list[PlannedShard],
    tally: AnswerTally,
    *,
    name: str,
    on_progress: OnProgress,
) -> Scheduler:
    """Runs the shards on the connected Ray; returns who ran them."""
    people = job.crew
    log.info("%d answerers", people.encoders)
    return drive(
        shards,
        lambda: start_worker(AnswerWorker, job, people),
        tally,
        job=name,
        people=people,
        fixed=job.config.workers is not None,
        of=tally.questions,
        max_failed=job.config.max_failed,
        on_progress=on_progress,
        what="question",
        worker_name="answerer",
    )


def _standing(
    plan: AnswerPlan, storage: Storage, *, extra: dict[str, pa.DataType], by: Sequence[str]
) -> dict[str, Any]:
    """How the whole folder stands after the run: answers by status, failed ones by class, accuracy by columns."""
    answers = open_answers(storage.url)
    names = list(dict.fromkeys(["status", "error_class", "answer", "correct", *by]))
    # Before the first shard is done nothing says which further columns there are.
    table = answers.table(names) if answers.receipts else answers_schema(extra).empty_table().select(names)
    status, errors = _counts(table["status"]), _counts(table["error_class"])
    counts = {name: status[name] for name in ("ok", "empty", "failed")}
    scored = accuracy(table, by=by).to_pylist() if by else []
    return {
        # A run that broke may have left rows that were superseded.
        "answers": counts | {"missing": max(0, len(plan) - len(table))},
        "errors": dict(sorted(errors.items())),
        "accuracy": scored if scored and scored[-1]["n"] else [],
    }


def _counts(column: pa.ChunkedArray) -> Counter[str]:
    """How often each value is there, nulls left out."""
    return Counter({row["values"]: row["counts"] for row in pc.value_counts(column.drop_null()).to_pylist()})
