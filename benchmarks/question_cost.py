"""What one question costs from the store, against decoding, encoding and a dense prefill of the same frames.

    python -m benchmarks.question_cost

A clip is rendered and indexed by `python -m jobs.cli index`; then one model answers the same question in both ways, one
new token each: plainly (the library's own class, every visual token) and from the store. Loading the model counts on
neither side. The default checkpoint is a random one of the real class with a small tower and two layers: its ratio is
none of a real model. `--model`, `--device` and `--side` measure one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.plain_call import PlainCall
from echoprune.answer import answer_questions
from echoprune.answer_settings import AnswerSettings
from echoprune.models import load_answerer
from echoprune.models.answerer import Answerer
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.question import Question
from echoprune.store import open_store
from echoprune.synth import render_archive
from pipelines.versions import versions

REPOSITORY = Path(__file__).parents[1]
QUESTION = "What moves through the picture, and when?"
FPS = 2


@dataclass(frozen=True)
class Cost:
    """One question answered in one way: seconds on the clock by stage, and of CPU over all.

    `read_s`: decoding, or opening the store, reading, scoring and choosing tokens. `encode_s`: patches and vision tower.
    `answer_s`: the language model, prompt to first new token.
    """

    name: str
    visual_tokens: int
    read_s: float
    encode_s: float
    answer_s: float
    cpu_s: float

    @property
    def all_s(self) -> float:
        """Seconds on the clock from the question to the first token of its answer."""
        return self.read_s + self.encode_s + self.answer_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Renders, indexes, asks in each way and prints the table."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="question-cost-") as name:
        work = Path(name)
        model = options.model
        if model is None:
            model = str(write_tiny_checkpoint("qwen2_5_vl", work / "model", dim=options.dim))
        size = (options.side, options.side)
        (clip,) = render_archive(work / "videos", videos=1, seconds=options.frames / FPS, seed=0, size=size)
        index_s = _index(work, clip.path, model, options)
        torch.set_num_threads(options.threads)
        answerer = load_answerer(model, device=options.device)
        costs = _costs(work / "store", clip.path, model, answerer, options)
    print("\n".join(_table(costs, index_s, answerer, options)))
    if options.json is not None:
        record = _record(options, costs, index_s, answerer)
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.question_cost", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--model", help="folder or hub id; default: a random Qwen2.5-VL of the width --dim")
    parser.add_argument("--dim", type=int, default=1024, help="token width of that random model (1024)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--frames", type=int, default=320, help="sampled frames, two a second (320)")
    parser.add_argument("--side", type=int, default=224, help="picture size, pixels; 224 is 64 tokens a cell")
    parser.add_argument("--keep", default="0.25", help="as of `index` (0.25)")
    parser.add_argument("--budget", default="0.05", help="as of `answer` (0.05)")
    parser.add_argument("--repeat", type=int, default=3, help="the quickest of so many calls counts (3)")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch (1: more wait for one another on a shared machine)"
    )
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


def _index(work: Path, video: Path, model: str, options: argparse.Namespace) -> float:
    """Seconds that the index run took, Ray's start included."""
    command = [sys.executable, "-m", "jobs.cli", "index", str(video), "--store", str(work / "store")]
    command += ["--model", model, "--keep", options.keep, "--device", options.device, "--fps", str(FPS)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    environment.pop("RAY_ADDRESS", None)
    started = time.perf_counter()
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"index ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def _costs(
    store: Path, video: Path, model: str, answerer: Answerer, options: argparse.Namespace
) -> list[Cost]:
    question = Question(question_id="q", video=video.name, question=QUESTION)
    call = PlainCall(
        str(video), model=model, answerer=answerer, settings=open_store(store).settings, text=QUESTION
    )
    ways: list[Callable[[], Cost]] = [
        lambda: _plain(call, answerer),
        lambda: _from_store("from the store, all of it", store, question, answerer, budget="all"),
        lambda: _from_store(
            f"from the store, budget {options.budget}", store, question, answerer, budget=options.budget
        ),
    ]
    return [min((way() for _ in range(options.repeat)), key=lambda cost: cost.all_s) for way in ways]


def _plain(call: PlainCall, answerer: Answerer) -> Cost:
    cpu = time.process_time()
    started = _now(answerer)
    frames = call.decode()
    decoded = _now(answerer)
    inputs = call.inputs(frames)
    prepared = _now(answerer)
    tower_s = call.generate(inputs, now=lambda: _now(answerer))
    ended = _now(answerer)
    return Cost(
        "plain, every token",
        call.visual_tokens(inputs),
        read_s=decoded - started,
        encode_s=prepared - decoded + tower_s,
        answer_s=ended - prepared - tower_s,
        cpu_s=time.process_time() - cpu,
    )


def _from_store(name: str, store: Path, question: Question, answerer: Answerer, *, budget: str) -> Cost:
    prepared: list[float] = []
    cpu = time.process_time()
    started = _now(answerer)
    (answer,) = answer_questions(
        [question],
        store=open_store(store),
        answerer=answerer,
        settings=AnswerSettings(budget=budget, max_new_tokens=1),
        on_batch=lambda ids: prepared.append(_now(answerer)),
    )
    ended = _now(answerer)
    cost = Cost(name, answer.visual_tokens, prepared[0] - started, 0.0, ended - prepared[0], 0.0)
    if answer.status != "ok":
        sys.exit(f"{name}: {answer.error}")
    return replace(cost, cpu_s=time.process_time() - cpu)


def _now(answerer: Answerer) -> float:
    """Seconds on the clock when the device has done all that it was given."""
    if answerer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _table(
    costs: Sequence[Cost], index_s: float, answerer: Answerer, options: argparse.Namespace
) -> list[str]:
    plain = costs[0]
    lines = [
        f"one question about {options.frames} frames of {options.side} x {options.side} pixels, one new token; "
        f"{answerer.family}, {answerer.dim}-wide, {_parameters(answerer) / 1e6:.0f} M parameters, {answerer.dtype}, "
        f"{answerer.device}, {options.threads} thread(s); seconds, quickest of {options.repeat}",
        f"{'':<32} {'visual tokens':>13} {'read':>8} {'encode':>8} {'answer':>8} {'all':>8} {'ratio':>7} "
        f"{'CPU':>8} {'ratio':>7}",
    ]
    lines += [
        f"{cost.name:<32} {cost.visual_tokens:>13,} {cost.read_s:>8.3f} {cost.encode_s:>8.3f} {cost.answer_s:>8.3f} "
        f"{cost.all_s:>8.3f} {f'1:{plain.all_s / cost.all_s:.1f}':>7} {cost.cpu_s:>8.3f} "
        f"{f'1:{plain.cpu_s / cost.cpu_s:.1f}':>7}"
        for cost in costs
    ]
    return [*lines, f"the index, once for all questions, took {index_s:.1f} s with Ray's start"]


def _parameters(answerer: Answerer) -> int:
    return sum(parameter.numel() for parameter in answerer.model.parameters())


def _record(
    options: argparse.Namespace, costs: Sequence[Cost], index_s: float, answerer: Answerer
) -> dict[str, Any]:
    machine = {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()}
    if answerer.device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        "versions": versions(),
        "options": {name: value for name, value in vars(options).items() if name != "json"},
        "model": {
            "family": answerer.family,
            "dim": answerer.dim,
            "parameters": _parameters(answerer),
            "dtype": str(answerer.dtype),
        },
        "index_s": index_s,
        "costs": [asdict(cost) | {"all_s": cost.all_s} for cost in costs],
        "ratio": costs[0].all_s / costs[-1].all_s,
    }


if __name__ == "__main__":
    sys.exit(main())
