"""What one question costs from the store, against decoding, encoding and a dense prefill of the same frames.

    python -m benchmarks.question_cost

A clip is rendered and indexed by `python -m jobs.cli index`; then one model answers about it: plainly (the library's own
class, every visual token), densely by this package (frames decoded and encoded, every token), and from the store; with
each number of new tokens, and with so many questions about the clip at a time. Decoding and encoding are then done once by
this package, and once a question by the plain call, which is asked one by one: 16 prompts of 40,960 tokens do not fit
together. Loading the model counts on no side. The default checkpoint is a random one of the real class with a small tower
and two layers: its ratio is none of a real model. `--model`, `--device` and `--side` measure one.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import device_of
from benchmarks.plain_call import PlainCall
from benchmarks.released import write_checkpoint
from echoprune.answer import answer_questions
from echoprune.answer_settings import AnswerSettings
from echoprune.data import Frames
from echoprune.models import load_answerer, load_encoder
from echoprune.models.answerer import Answerer, Decoding
from echoprune.models.encoder import Encoder
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.question import Question
from echoprune.schema import COMPRESSIONS
from echoprune.store import open_store
from echoprune.synth import render_archive
from pipelines.versions import versions

REPOSITORY = Path(__file__).parents[1]
QUESTION = "What moves through the picture, and when?"
FPS = 2
PLAIN = "plain, every token"


@dataclass(frozen=True)
class Cost:
    """Some questions answered in one way: seconds on the clock by stage, and of CPU over all.

    `read_s`: decoding, or opening the store, reading, scoring and choosing tokens. `encode_s`: patches and vision tower.
    `answer_s`: the language model, prompts to last new tokens.
    """

    name: str
    questions: int
    new_tokens: int
    visual_tokens: int
    read_s: float
    encode_s: float
    answer_s: float
    cpu_s: float

    @property
    def each_s(self) -> float:
        """Seconds on the clock of one question."""
        return (self.read_s + self.encode_s + self.answer_s) / self.questions


def main(arguments: Sequence[str] | None = None) -> int:
    """Renders, indexes, asks in each way and prints the table."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="question-cost-") as name:
        work = Path(name)
        model = options.model
        if options.released:
            # In memory where there is room: 16 GB, written and read again.
            model = str(write_checkpoint(work / "model", device=device_of(options.device)))
        elif model is None:
            model = str(write_tiny_checkpoint("qwen2_5_vl", work / "model", dim=options.dim))
        size = (options.side, options.side)
        (clip,) = render_archive(work / "archive", videos=1, seconds=options.frames / FPS, seed=0, size=size)
        index_s = {
            each: _index(work, clip.path, model, each, options) for each in options.compression.split(",")
        }
        torch.set_num_threads(options.threads)
        answerer = load_answerer(model, device=options.device, engine=options.engine)
        quickest: dict[tuple[str, int, int], Cost] = {}
        costs: list[Cost] = []
        stores = {each: work / each for each in index_s}
        for cost in _costs(stores, clip.path, model, answerer, options):
            way = (cost.name, cost.questions, cost.new_tokens)
            quickest[way] = min(quickest.get(way, cost), cost, key=lambda each: each.each_s)
            costs = list(quickest.values())
            # A run that is cut off leaves what it had.
            _write(options, costs, index_s, answerer)
    print("\n".join(_table(costs, index_s, answerer, options)))
    return 0


def _write(
    options: argparse.Namespace, costs: Sequence[Cost], index_s: dict[str, float], answerer: Answerer
) -> None:
    if options.json is not None:
        record = _record(options, costs, index_s, answerer)
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.question_cost", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--model", help="folder or hub id; default: a random Qwen2.5-VL of the width --dim")
    parser.add_argument("--dim", type=int, default=1024, help="token width of that random model (1024)")
    parser.add_argument(
        "--released",
        action="store_true",
        help="a random model of Qwen2.5-VL-7B's shape: 16 GB of disk and GPU",
    )
    parser.add_argument(
        "--engine", default="library", choices=("library", "fast"), help="of all but the plain answers"
    )
    parser.add_argument(
        "--tower",
        default="auto",
        choices=("auto", "plain", "fast"),
        help="of the index, and of the dense way",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--frames", type=int, default=320, help="sampled frames, two a second (320)")
    parser.add_argument("--side", type=int, default=224, help="picture size, pixels; 224 is 64 tokens a cell")
    parser.add_argument("--keep", default="0.25", help="as of `index` (0.25)")
    parser.add_argument(
        "--compression",
        default="zstd",
        help=f"of {', '.join(COMPRESSIONS)}, several separated by commas: a store each (zstd)",
    )
    parser.add_argument("--budget", default="0.05", help="as of `answer` (0.05)")
    parser.add_argument("--new", default="1,16", help="new tokens of an answer, separated by commas (1,16)")
    parser.add_argument("--batch", default="1,16", help="questions at a time, separated by commas (1,16)")
    parser.add_argument("--repeat", type=int, default=3, help="the quickest of so many calls counts (3)")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch (1: more wait for one another on a shared machine)"
    )
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


def _index(work: Path, video: Path, model: str, compression: str, options: argparse.Namespace) -> float:
    """Seconds that the index run took, Ray's start included; the store is `work` / `compression`."""
    command = [sys.executable, "-m", "jobs.cli", "index", str(video), "--store", str(work / compression)]
    command += ["--model", model, "--keep", options.keep, "--device", options.device, "--fps", str(FPS)]
    command += ["--tower", options.tower, "--compression", compression]
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
    stores: dict[str, Path], video: Path, model: str, answerer: Answerer, options: argparse.Namespace
) -> Iterator[Cost]:
    """What each call took, `--repeat` of each way one after another."""
    settings = open_store(next(iter(stores.values()))).settings
    call = PlainCall(str(video), model=model, answerer=answerer, settings=settings, text=QUESTION)
    encoder = load_encoder(
        model,
        segment_cells=settings.segment_cells,
        device=options.device,
        max_pixels=settings.max_pixels,
        tower=settings.tower,
    )
    for new in (int(each) for each in options.new.split(",")):
        for count in (int(each) for each in options.batch.split(",")):
            asked = [
                Question(question_id=str(index), video=video.name, question=f"{QUESTION} {index}")
                for index in range(count)
            ]
            ways: list[Callable[[], Cost]] = [
                lambda new=new: _plain(call, answerer, new),  # type: ignore[misc]
                lambda new=new, count=count: _dense(call, answerer, encoder, new, count),  # type: ignore[misc]
                *(
                    lambda each=each, budget=budget, asked=asked, new=new: _from_store(  # type: ignore[misc]
                        budget, each, asked, answerer, new
                    )
                    for each in stores.values()
                    for budget in ("all", options.budget)
                ),
            ]
            # The plain call is one question, whatever the batch; so is the dense way, again and again.
            if count > 1:
                yield ways[1]()
            for way in ways[2:] if count > 1 else ways:
                for _ in range(options.repeat):
                    yield way()


def _plain(call: PlainCall, answerer: Answerer, new: int) -> Cost:
    cpu = time.process_time()
    started = _now(answerer)
    frames = call.decode()
    decoded = _now(answerer)
    inputs = call.inputs(frames)
    prepared = _now(answerer)
    tower_s = call.generate(inputs, new_tokens=new, now=lambda: _now(answerer))
    ended = _now(answerer)
    return Cost(
        PLAIN,
        1,
        new,
        call.visual_tokens(inputs),
        read_s=decoded - started,
        encode_s=prepared - decoded + tower_s,
        answer_s=ended - prepared - tower_s,
        cpu_s=time.process_time() - cpu,
    )


def _dense(call: PlainCall, answerer: Answerer, encoder: Encoder, new: int, count: int) -> Cost:
    cpu = time.process_time()
    started = _now(answerer)
    opened, pixels = call.decode()
    decoded = _now(answerer)
    frames = Frames(pixels, 0, call.layout.cell_frames, "auto")
    grid = encoder.encode(frames)
    encoded = _now(answerer)
    prompt = call.dense_prompt(opened, grid)
    # One after another: their keys and values together would not fit beside the model.
    for _ in range(count):
        answerer.generate([prompt], Decoding(max_new_tokens=new))
    ended = _now(answerer)
    return Cost(
        "dense, by this package",
        count,
        new,
        len(prompt.tokens),
        read_s=decoded - started,
        encode_s=encoded - decoded,
        answer_s=ended - encoded,
        cpu_s=time.process_time() - cpu,
    )


def _from_store(budget: str, store: Path, asked: Sequence[Question], answerer: Answerer, new: int) -> Cost:
    name = f"from the {store.name} store, {'all of it' if budget == 'all' else f'budget {budget}'}"
    prepared: list[float] = []
    cpu = time.process_time()
    started = _now(answerer)
    settings = AnswerSettings(budget=budget, max_new_tokens=new, engine=answerer.engine, batch=len(asked))
    answers = list(
        answer_questions(
            asked,
            store=open_store(store),
            answerer=answerer,
            settings=settings,
            on_batch=lambda ids: prepared.append(_now(answerer)),
        )
    )
    ended = _now(answerer)
    for answer in answers:
        if answer.status != "ok":
            sys.exit(f"{name}: {answer.error}")
    return Cost(
        name,
        len(asked),
        new,
        answers[0].visual_tokens,
        read_s=prepared[0] - started,
        encode_s=0.0,
        answer_s=ended - prepared[0],
        cpu_s=time.process_time() - cpu,
    )


def _now(answerer: Answerer) -> float:
    """Seconds on the clock when the device has done all that it was given."""
    if answerer.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _table(
    costs: Sequence[Cost], index_s: dict[str, float], answerer: Answerer, options: argparse.Namespace
) -> list[str]:
    plain = {cost.new_tokens: cost for cost in costs if cost.name == PLAIN}
    lines = [
        f"questions about {options.frames} frames of {options.side} x {options.side} pixels; "
        f"{answerer.family}, {answerer.dim}-wide, {_parameters(answerer) / 1e6:.0f} M parameters, {answerer.dtype}, "
        f"{answerer.device}, engine {answerer.engine}, {options.threads} thread(s); seconds of all questions of a batch, "
        f"quickest of {options.repeat}; ratio of one question's to the plain call's",
        f"{'':<28} {'batch':>5} {'new':>4} {'visual tokens':>13} {'read':>8} {'encode':>8} {'answer':>8} {'each':>8} "
        f"{'ratio':>8} {'CPU':>8}",
    ]
    lines += [
        f"{cost.name:<28} {cost.questions:>5} {cost.new_tokens:>4} {cost.visual_tokens:>13,} {cost.read_s:>8.3f} "
        f"{cost.encode_s:>8.3f} {cost.answer_s:>8.3f} {cost.each_s:>8.4f} "
        f"{f'1:{plain[cost.new_tokens].each_s / cost.each_s:.1f}':>8} {cost.cpu_s:>8.3f}"
        for cost in costs
    ]
    took = ", ".join(f"{seconds:.1f} s ({name})" for name, seconds in index_s.items())
    return [*lines, f"the index, once for all questions, took {took} with Ray's start"]


def _parameters(answerer: Answerer) -> int:
    return sum(parameter.numel() for parameter in answerer.model.parameters())


def _record(
    options: argparse.Namespace, costs: Sequence[Cost], index_s: dict[str, float], answerer: Answerer
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
        "costs": [asdict(cost) | {"each_s": cost.each_s} for cost in costs],
    }


if __name__ == "__main__":
    sys.exit(main())
