"""Where the milliseconds of one question from the store go, call by call.

    python -m benchmarks.question_steps --device cuda --released --engine fast

A store of one video with random tokens, 160 cells of 256 of which a quarter is kept, opened anew for each question; one new
token at a budget of 5 %. Steps are those of the question's own thread but for `tokens`, which another one reads meanwhile.
Medians over `--repeat` questions, with each number of `--readers`.
"""

from __future__ import annotations

import argparse
import cProfile
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
from echoprune import prepare, store_files
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
    (StoredVideo, "__init__"),
    (StoredVideo, "reach"),
    (StoredVideo, "scores"),
    (StoredVideo, "gather"),
    (Answerer, "skeleton"),
    (Answerer, "embed"),
    (Answerer, "place"),
    (Answerer, "generate"),
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
            for readers in (int(each) for each in options.readers.split(",")):
                store_files.READERS = readers
                found = results[f"{compression}, {readers} readers"] = ask(folder, answerer, options)
                print(f"{compression}, {readers} readers:", flush=True)
                for title, ms in found.items():
                    print(f"  {title:<28} {ms:7.2f} ms", flush=True)
            if options.profile:
                profile(folder, answerer)
                write_record(options.json, vars(options), results)
    return 0


def ask(folder: Path, answerer: Answerer, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds by step, of the median question by its total; "read": until the prompt is ready, "all": to its answer."""
    rounds: list[dict[str, float]] = []
    for _ in range(options.repeat + 1):
        spent, ready = Spent(), list[float]()
        with ExitStack() as until:
            for owner, name in STEPS:
                spent.watch(owner, name, until)
            began = _now(answerer)
            store = open_store(folder)
            opened = time.perf_counter()
            answered(store, answerer, lambda ids, ready=ready: ready.append(_now(answerer)))
            ended = _now(answerer)
        found = {"open_store": opened - began, "read": ready[0] - began, "all": ended - began}
        rounds.append({title: 1e3 * value for title, value in (found | spent.seconds).items()})
    middle = statistics.median_low(each["all"] for each in rounds[1:])
    return next(each for each in rounds[1:] if each["all"] == middle)


def answered(store: TokenStore, answerer: Answerer, on_batch: Callable[[tuple[str, ...]], None]) -> None:
    """Answers one question; `on_batch` is called when its prompt is ready."""
    settings = AnswerSettings(budget="0.05", max_new_tokens=1, engine=answerer.engine, batch=1)
    question = Question(question_id="0", video=Path(store_rate.URI).name, question="What moves, and when?")
    (answer,) = answer_questions(
        [question], store=store, answerer=answerer, settings=settings, on_batch=on_batch
    )
    if answer.status != "ok":
        sys.exit(answer.error)


def profile(folder: Path, answerer: Answerer) -> None:
    """Prints where the question's own thread is until its prompt is ready, by function; being watched makes it longer."""
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
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--engine", default="library", choices=("library", "fast"))
    parser.add_argument("--released", action="store_true", help="a model of Qwen2.5-VL-7B's shape")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--profile", action="store_true", help="also print where Python is, by function")
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


if __name__ == "__main__":
    sys.exit(main())
