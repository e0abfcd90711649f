"""An evaluation from end to end: questions, stores, the grid of settings, answers, result.

videos --run_index--> a store per frames and keep --answerers--> a file of answers per setting --> table and picture
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any

import ray

from echoprune.answer_settings import AnswerSettings
from echoprune.errors import ConfigError, StoreError
from echoprune.evaluation import ResultRow, question_groups, result_rows
from echoprune.evaluation_folder import (
    MARKER,
    RESULT_FILE,
    EvalRun,
    answers_name,
    create_evaluation,
    outcomes,
    read_answers,
    result_bytes,
    store_name,
)
from echoprune.evaluation_grid import Grid, Setting, budget_text, keep_text, listed, make_grid
from echoprune.evaluation_picture import draw_evaluation
from echoprune.evaluation_questions import Scorable, scorable
from echoprune.evaluation_table import markdown
from echoprune.lease import Lease
from echoprune.models import auto_dtype, model_settings
from echoprune.models.identity import answering_digest
from echoprune.policies import POLICIES, policy
from echoprune.questions import question_key, read_questions
from echoprune.s3_options import use_s3
from echoprune.sources import list_sources
from echoprune.storage import Storage
from pipelines.evaluate_config import EvalConfig
from pipelines.evaluate_stores import budget_fits, index_stores
from pipelines.evaluate_worker import EvalJob, EvalTask, EvalWorker
from pipelines.events import Event, QuestionsStarted, ShardCommitted
from pipelines.maintain import new_run_id
from pipelines.ray_session import session
from pipelines.schedule import Scheduler
from pipelines.versions import versions

log = logging.getLogger(__name__)

# As an index run takes with its default --in-flight-mb.
OBJECT_STORE_BYTES = (2 * 256 + 128) << 20

OnProgress = Callable[[dict[str, Any]], None]


def run_evaluate(config: EvalConfig, *, on_progress: OnProgress) -> tuple[dict[str, Any], list[ResultRow]]:
    """The report, also in run_report.json, and the rows of eval.parquet, after all that `config.out` lacks was done.

    Raises ConfigError or StoreMismatchError before anything ran, StoreError or ModelError when the run broke. What was
    written stands.
    """
    started = time.monotonic()
    use_s3(config.s3)
    policies = listed(config.policies, option="--policies")
    for name in policies:
        policy(name, option="--policies")
    if config.reference not in policies:
        raise ConfigError(
            f"--reference is {config.reference!r}: give one of the --policies, {', '.join(policies)}"
        )
    budgets = list(dict.fromkeys(map(budget_text, listed(config.budgets, option="--budgets"))))
    keeps = list(dict.fromkeys(map(keep_text, listed(config.keeps, option="--keeps"))))
    asked = scorable(
        read_questions(config.questions),
        list_sources(config.paths, s3=config.s3_inputs),
        by=config.by,
        where=f"questions {config.questions}",
    )
    settings = AnswerSettings(
        budget_includes_text=True,
        letters=config.letters,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        batch=config.batch,
        batch_tokens=config.batch_tokens,
    )
    run_id = new_run_id()
    with ExitStack() as until:
        ray_session = until.enter_context(ExitStack())
        run = _eval_run(config, asked, partial(_connect, config, ray_session))
        storage = create_evaluation(config.out, run)
        lease = until.enter_context(Lease.acquire(storage, run_id=run_id, option="--out"))
        # Ray ends before the lease is given up: no worker may write after that.
        until.enter_context(ray_session)
        storage.clear_tmp()
        stores = [(count, keep) for keep in keeps for count in config.frame_counts()]
        index_stores(
            config,
            stores,
            asked.videos,
            storage,
            partial(_connect, config, ray_session),
            compute_dtype=run.compute_dtype,
            # As of an index run that is told the same.
            stored_dtype="auto" if config.compute_dtype != "auto" else model_settings(config.model).dtype,
            on_progress=on_progress,
        )
        grid = make_grid(
            policies=policies,
            frames=config.frame_counts(),
            budgets=budgets,
            keeps=keeps,
            needs_all={name for name, each in POLICIES.items() if each.needs_all},
            fits=budget_fits(config, asked, storage, stores),
        )
        for setting, reason in grid.left_out:
            log.info("left out: %s (%s)", setting, reason)
        there = set(storage.names("answers"))
        todo = [each for each in grid.settings if answers_name(each) not in there]
        if todo:
            with ray_session:
                _connect(config, ray_session)
                job = EvalJob(
                    model=config.model,
                    compute_dtype=run.compute_dtype,
                    device="cuda" if _gpus(config) else "cpu",
                    threads=_threads(config),
                    questions=asked.questions,
                    settings=settings,
                    out=storage.url,
                    s3=config.s3,
                    lease_epoch=lease.epoch,
                )
                _answer(config, job, grid, todo, storage, on_progress=on_progress)
        report = {
            "run_id": run_id,
            "finished_at": datetime.now(UTC).isoformat(),
            "elapsed_s": time.monotonic() - started,
            "versions": versions(),
            "config": config.as_dict(),
            "questions": len(asked.questions),
            "videos": len(asked.videos),
            "settings": {"done": len(todo), "before": len(grid.settings) - len(todo)},
            "same_as_dense": grid.dense,
            "left_out": [{"setting": str(each), "reason": reason} for each, reason in grid.left_out],
        }
        return _result(config, asked, grid, storage, report)


def _eval_run(config: EvalConfig, asked: Scorable, connect: Callable[[], None]) -> EvalRun:
    # The limit of pixels is checked with it, before anything is written.
    own = model_settings(config.model, max_pixels=config.max_pixels or None)
    storage, compute_dtype = Storage(config.out), config.compute_dtype
    if compute_dtype == "auto" and storage.exists(MARKER):
        compute_dtype = EvalRun.from_json(
            storage.read_bytes(MARKER), where=storage.url_of(MARKER)
        ).compute_dtype
    elif compute_dtype == "auto":
        connect()
        compute_dtype = auto_dtype(own.dtype, gpu=_gpus(config) > 0)
    pinned = (
        "letters",
        "max_new_tokens",
        "seed",
        "batch",
        "batch_tokens",
        "max_pixels",
        "anchor_every",
    )
    return EvalRun(
        model_digest=answering_digest(config.model),
        compute_dtype=compute_dtype,
        videos=_digest(asked.videos),
        questions=_digest([question_key(question) for question in asked.questions]),
        settings={name: getattr(config, name) for name in pinned},
    )


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]


def _connect(config: EvalConfig, until: ExitStack) -> None:
    """Ray, connected until the end of `until`; nothing happens where it is already."""
    until.enter_context(session(config.address, object_store_bytes=OBJECT_STORE_BYTES))


def _gpus(config: EvalConfig) -> int:
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if config.device == "cuda" and not gpus:
        raise ConfigError("--device cuda, but Ray finds no GPU in this cluster: use --device cpu or auto")
    return 0 if config.device == "cpu" else gpus


def _threads(config: EvalConfig) -> int:
    """CPU cores of each answerer. Raises ConfigError where there are fewer cores than answerers."""
    cpus = int(ray.cluster_resources().get("CPU", 1))
    count = config.workers * max(1, _gpus(config))
    if count > cpus:
        raise ConfigError(
            f"--workers {config.workers} makes {count} answerers for {cpus} CPU cores: lower it"
        )
    return max(1, cpus // count)


def _answer(
    config: EvalConfig,
    job: EvalJob,
    grid: Grid,
    todo: Sequence[Setting],
    storage: Storage,
    *,
    on_progress: OnProgress,
) -> None:
    """Answers the settings `todo` on the connected Ray."""
    each, before = len(job.questions), len(grid.settings) - len(todo)
    started: Counter[str] = Counter()
    done: set[str] = set()
    begun = time.monotonic()

    def on_event(shard_id: str, event: Event) -> None:
        if isinstance(event, QuestionsStarted):
            started[shard_id] = min(each, started[shard_id] + len(event.question_ids))
        elif isinstance(event, ShardCommitted):
            started.pop(shard_id, None)
            done.add(shard_id)
        answered = len(done) * each + sum(started.values())
        on_progress(
            {
                "stage": "answer",
                "steps_done": before * each + answered,
                "steps": len(grid.settings) * each,
                "settings_done": before + len(done),
                "settings": len(grid.settings),
                "questions_per_s": answered / max(1e-9, time.monotonic() - begun),
            }
        )

    def make_worker() -> Any:
        # Ray counts GPUs in ten-thousandths.
        share = math.floor(10_000 / config.workers) / 10_000 if job.device == "cuda" else 0
        options = {"num_cpus": job.threads, "num_gpus": share, "max_restarts": 0, "max_task_retries": 0}
        return ray.remote(EvalWorker).options(**options).remote(job)

    tasks = [EvalTask(each, storage.url_of(store_name(each.frames, each.keep))) for each in todo]
    scheduler = Scheduler(
        make_worker=make_worker,
        workers=config.workers * max(1, _gpus(config)),
        on_event=on_event,
        what="question",
        worker_name="answerer",
    )
    scheduler.run(tasks)


def _result(
    config: EvalConfig, asked: Scorable, grid: Grid, storage: Storage, report: dict[str, Any]
) -> tuple[dict[str, Any], list[ResultRow]]:
    """Writes table, picture and report from the files of answers."""
    tables = {setting: read_answers(storage, setting) for setting in grid.settings}
    for setting, table in tables.items():
        if len(table) != len(asked.questions):
            raise StoreError(
                f"{storage.url_of(answers_name(setting))} has {len(table)} of {len(asked.questions)} answers: remove it "
                "and run again"
            )
    errors = Counter(
        name for table in tables.values() for name in table["error_class"].to_pylist() if name is not None
    )
    found = {setting: outcomes(table) for setting, table in tables.items()}
    rows = result_rows(
        {shown: found[own] for shown, own in grid.shown.items()},
        question_groups(asked.labels),
        reference=config.reference,
    )
    report |= {"answers": sum(map(len, tables.values())), "errors": dict(sorted(errors.items()))}
    storage.write_bytes(RESULT_FILE, result_bytes(rows))
    storage.write_bytes("eval.md", markdown(rows, grid.left_out).encode())
    with storage.tmp_dir() as folder:
        draw_evaluation(rows, folder / "eval.png", reference=config.reference)
        storage.put_file(folder / "eval.png", "eval.png")
    storage.write_bytes("run_report.json", (json.dumps(report, indent=2) + "\n").encode())
    return report, rows
