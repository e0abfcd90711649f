"""Where the milliseconds of one question from the store go, call by call.

    python -m benchmarks.question_steps --device cuda --released --engine fast

A store of one video with random tokens, 160 cells of 256 of which a quarter is kept, opened anew for each question; one new
token at a budget of 5 %. Of the median of `--repeat` questions, with each number of `--readers` and `--switch-ms`: when each call began and
ended, in which thread.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks import store_rate
from benchmarks.measure import Spent, device_of, write_record
from benchmarks.released import write_checkpoint
from echoprune import prepare, store, store_files, stored_video
from echoprune.answer import answer_questions
from echoprune.answer_settings import AnswerSettings
from echoprune.models import load_answerer
from echoprune.models.answerer import Answerer
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.question import Question
from echoprune.store import TokenStore, open_store
from echoprune.stored_video import StoredVideo

STEPS: tuple[tuple[Any, str], ...] = (
    (TokenStore, "video"),
    (TokenStore, "cells"),
    (TokenStore, "tokens"),
    (TokenStore, "_token_set"),
    (TokenStore, "_read"),
    (store, "_room"),
    (store_files._Reader, "_parts"),
    (store_files._Reader, "_read"),
    (StoredVideo, "__init__"),
    (StoredVideo, "reach"),
    (StoredVideo, "scores"),
    (StoredVideo, "gather"),
    (Answerer, "skeleton"),
    (Answerer, "embed"),
    (Answerer, "place"),
    (Answerer, "generate"),
    (stored_video, "relevance"),
    (prepare, "score"),
    (prepare, "choose_for"),
    (prepare, "with_tokens"),
    (prepare, "cell_mass"),
    (prepare, "moments"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table for each compression and number of readers."""
    options = _parser().parse_args(arguments)
    device = device_of(options.device)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="question-steps-") as name:
        work = Path(name)
        model = str(
            write_checkpoint(work / "model", device=device)
            if options.released
            else write_tiny_checkpoint("qwen2_5_vl", work / "model", dim=store_rate.DIM)
        )
        torch.set_num_threads(1)
        answerer = load_answerer(model, device=options.device, engine=options.engine)
        for compression in options.compression.split(","):
            folder = work / compression
            store_rate.write(
                folder,
                store_rate.URI,
                options.cells,
                compression=compression,
                model_fingerprint=answerer.fingerprint,
            )
            ways = itertools.product(options.readers.split(","), options.switch_ms.split(","))
            for readers, switch_ms in ways:
                store_files.READERS = int(readers)
                sys.setswitchinterval(float(switch_ms) / 1e3)
                way = f"{compression}, {readers} readers, switch {switch_ms} ms"
                found = results[way] = ask(folder, answerer, options)
                print(f"{way}: read {found['read']:.2f}, all {found['all']:.2f} ms")
                for title, thread, begin, end in found["calls"]:
                    print(f"  {begin:7.2f} to {end:7.2f} {end - begin:7.2f} ms  {thread:<16} {title}")
                sys.stdout.flush()
                write_record(options.json, vars(options), results)
            if options.profile:
                profile(folder, answerer)
    return 0


def ask(folder: Path, answerer: Answerer, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of the median question: "read" until its prompt is ready, "all" to its answer; "calls" in their order."""
    rounds: list[dict[str, Any]] = []
    for _ in range(options.repeat + 1):
        spent, ready = Spent(), list[float]()
        with ExitStack() as until:
            for owner, name in STEPS:
                spent.watch(owner, name, until)
            began = _now(answerer)
            opened = open_store(folder)
            spent.spans.append(("open_store", "MainThread", began, time.perf_counter()))
            answered(opened, answerer, lambda ids, ready=ready: ready.append(_now(answerer)))
            ended = _now(answerer)
        calls = sorted(
            (
                [title, thread, 1e3 * (begin - began), 1e3 * (end - began)]
                for title, thread, begin, end in spent.spans
            ),
            key=lambda call: call[2],
        )
        rounds.append({"read": 1e3 * (ready[0] - began), "all": 1e3 * (ended - began), "calls": calls})
    middle = statistics.median_low(each["all"] for each in rounds[1:])
    return next(each for each in rounds[1:] if each["all"] == middle)


def answered(opened: TokenStore, answerer: Answerer, on_batch: Callable[[tuple[str, ...]], None]) -> None:
    """Answers one question; `on_batch` is called when its prompt is ready."""
    settings = AnswerSettings(budget="0.05", max_new_tokens=1, engine=answerer.engine, batch=1)
    question = Question(question_id="0", video=Path(store_rate.URI).name, question="What moves, and when?")
    (answer,) = answer_questions(
        [question], store=opened, answerer=answerer, settings=settings, on_batch=on_batch
    )
    if answer.status != "ok":
        sys.exit(answer.error)


def profile(folder: Path, answerer: Answerer) -> None:
    """Prints where Python is until the prompt is ready, by function, of all threads from 3.12 on; being watched makes it longer."""
    watched = cProfile.Profile()
    watched.enable()
    answered(open_store(folder), answerer, lambda _: watched.disable())
    for order in ("cumulative", "tottime"):
        pstats.Stats(watched).sort_stats(order).print_stats(60)


def _now(answerer: Answerer) -> float:
    if answerer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.question_steps", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--cells", type=int, default=160, help="of the video, 64 tokens of each kept (160)")
    parser.add_argument("--compression", default="zstd,none", help="of the store, by commas (zstd,none)")
    parser.add_argument("--readers", default="4,8,16", help="threads that read at most, by commas (4,8,16)")
    parser.add_argument(
        "--switch-ms", default="5", help="after which a thread that waits for Python gets it, by commas (5)"
    )
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--engine", default="library", choices=("library", "fast"))
    parser.add_argument("--released", action="store_true", help="a model of Qwen2.5-VL-7B's shape")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--profile", action="store_true", help="also print where Python is, by function")
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


if __name__ == "__main__":
    sys.exit(main())
