"""One index job, and one answer job, on one GPU and on several: seconds of the whole job, commit included, and equal results.

    python -m benchmarks.n_gpus --gpus 1,4 --released --tower fast --engine fast

Clips are those of `benchmarks.index_rate`. Each number of GPUs first does a job of one short clip, or of one question, for
each of them: Ray's start, the loading of the models, and what is compiled. The ratio of what is above that is the second
one printed. On a CPU it shows that the benchmark works, and no more: encoders share its cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from benchmarks.index_rate import REPOSITORY, write_clips
from benchmarks.measure import device_of, write_record
from benchmarks.moving_video import write_moving_video
from benchmarks.released import write_checkpoint
from echoprune.models.tiny import write_tiny_checkpoint

JOBS = ("index", "answer")
QUESTION = "What moves through the picture, and when? Number"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the jobs with each number of GPUs and prints the table."""
    options = _parser().parse_args(arguments)
    results: dict[str, Any] = {}
    counts = [int(each) for each in options.gpus.split(",")]
    with tempfile.TemporaryDirectory(prefix="n-gpus-") as name:
        work = Path(name)
        write_clips(work / "clips", options)
        model = _model(work / "model", options)
        for job in options.jobs.split(","):
            measure = {"index": index, "answer": answer}[job]
            results[job] = {}
            for count in counts:
                found = results[job][str(count)] = measure(work, model, count, options)
                write_record(options.json, vars(options), results)
                print(
                    f"{job}, {count} GPUs: {found['seconds']:.1f} s, of which {found['start_s']:.1f} s start",
                    flush=True,
                )
            print(_summary(job, list(results[job].values()), counts), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.n_gpus", description=__doc__.split("\n\n")[0])
    parser.add_argument("--gpus", default="1,2", help="numbers of GPUs, separated by commas (1,2)")
    parser.add_argument("--jobs", default=",".join(JOBS), help="separated by commas (index,answer)")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=60, help="of a clip (60)")
    parser.add_argument("--side", type=int, default=960, help="pixels of a clip's side (960)")
    parser.add_argument("--fps", default="2", help="sampled frames a second (2)")
    parser.add_argument("--questions", type=int, default=512, help="of the answer job (512)")
    parser.add_argument("--new", type=int, default=32, help="new tokens of an answer at most (32)")
    parser.add_argument("--budget", default="all", help="as of `answer`; all: some 4,300 tokens of a clip")
    parser.add_argument("--tower", default="auto", choices=("auto", "plain", "fast"))
    parser.add_argument("--engine", default="auto", choices=("auto", "library", "fast"))
    parser.add_argument(
        "--released", action="store_true", help="Qwen2.5-VL-7B's shape: 16 GB of disk for answers"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


def _model(folder: Path, options: argparse.Namespace) -> Path:
    if not options.released:
        return write_tiny_checkpoint("qwen2_5_vl", folder, dim=256)
    # An index needs no language model.
    layers = None if "answer" in options.jobs else 1
    return write_checkpoint(folder, device=device_of("auto"), text_layers=layers)


def index(work: Path, model: Path, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the index job with `count` encoders, and of its start; a digest of the store's tables."""
    few = work / f"few-{count}"
    few.mkdir()
    write_moving_video(few / "clip_0.mp4", seconds=2, side=options.side, fps=25)
    for other in range(1, count):
        shutil.copy(few / "clip_0.mp4", few / f"clip_{other}.mp4")

    def run(videos: Path, store: Path, shard: int) -> float:
        command = [
            "index",
            str(videos),
            "--store",
            str(store),
            "--model",
            str(model),
            "--device",
            options.device,
        ]
        command += ["--fps", options.fps, "--tower", options.tower]
        return _seconds(work, [*command, "--encoders", str(count), "--shard-videos", str(shard)])

    start_s = run(few, work / f"few-store-{count}", 1)
    store = work / f"store-{count}"
    seconds = run(work / "clips", store, max(1, options.clips // 32))
    return {
        "seconds": seconds,
        "start_s": start_s,
        "worker_s": _report(store)["worker_s"],
        "results": _digest(store),
    }


def answer(work: Path, model: Path, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the answer job with `count` workers over the store that one GPU made, and of its start; the texts."""
    counts = [int(each) for each in options.gpus.split(",")]
    store = work / f"store-{counts[0]}"
    if not store.exists():
        index(work, model, counts[0], options)

    def run(questions: int, out: Path) -> float:
        asked = work / f"{out.name}.jsonl"
        rows = (
            {
                "question_id": f"{each:05d}",
                "video": f"clip_{each % options.clips:03d}.mp4",
                "question": f"{QUESTION} {each}",
            }
            for each in range(questions)
        )
        asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = ["answer", str(store), "--model", str(model), "--questions", str(asked), "--out", str(out)]
        command += ["--device", options.device, "--engine", options.engine, "--budget", options.budget]
        command += ["--max-new-tokens", str(options.new), "--batch", "16", "--workers", str(count)]
        shard = max(1, questions // (8 * max(counts)))
        return _seconds(work, [*command, "--shard-questions", str(shard)])

    start_s = run(count, work / f"few-answers-{count}")
    out = work / f"answers-{count}"
    seconds = run(options.questions, out)
    texts = ds.dataset(out / "answers", format="parquet").to_table(columns=["question_id", "raw_text"])
    return {
        "seconds": seconds,
        "start_s": start_s,
        "worker_s": _report(out)["worker_s"],
        "results": dict(sorted(zip(*texts.to_pydict().values(), strict=True))),
    }


def _summary(job: str, found: Sequence[dict[str, Any]], counts: Sequence[int]) -> str:
    one, several = found[0], found[-1]
    whole = one["seconds"] / several["seconds"]
    above = [each["seconds"] - each["start_s"] for each in (one, several)]
    after = above[0] / above[1] if above[1] > 0 else float("nan")
    if job == "index":
        same = f"stores equal: {one['results'] == several['results']}"
    else:
        texts = one["results"]
        equal = sum(text == several["results"].get(key) for key, text in texts.items())
        # Words that are equally likely but for rounding may swap where batches differ.
        same = f"texts equal: {equal} of {len(texts)}"
    return f"{job}, {counts[-1]} against {counts[0]} GPUs: x{whole:.2f} as a whole, x{after:.2f} after the start; {same}"


def _seconds(work: Path, command: Sequence[str]) -> float:
    """Seconds of a command of echoprune; ends this process where it fails."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    environment.pop("RAY_ADDRESS", None)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *command],
        cwd=work, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return seconds


def _report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "run_report.json").read_text())["run"]
    return report


def _digest(store: Path) -> str:
    digest = hashlib.sha256()
    for table in ("videos", "cells", "tokens"):
        for path in sorted((store / table).iterdir()):
            digest.update(f"{table}/{path.name}".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
