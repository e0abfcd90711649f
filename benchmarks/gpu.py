"""All GPU benchmarks in order of value, each in a process of its own with a time limit, within a given time.

    python -m benchmarks.gpu --out DIR --seconds 540

A part that fails or runs out of time takes no other down. DIR gets `results.json` (every part's record, written anew after
each part) and `log.txt` (what they printed). `--only a,b` runs some, in that order.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import machine

REPOSITORY = Path(__file__).parents[1]
# A part is not started with less time than this: a process needs it to import torch and to make a model.
LEAST_S = 30.0
TAIL_LINES = 40


@dataclass(frozen=True)
class Part:
    """A process: its module and arguments, seconds that it may take at most; `record`: whether it takes --json."""

    name: str
    module: str
    arguments: tuple[str, ...]
    limit_s: float
    record: bool = True


PYTEST = ("-q", "-p", "no:cacheprovider")
FAST_TESTS = "tests/echoprune/fast"
PARTS = (
    Part(
        "correct",
        "pytest",
        (
            *PYTEST,
            f"{FAST_TESTS}/test_vision.py",
            f"{FAST_TESTS}/test_engine.py",
            "tests/echoprune/models/test_cuda.py",
        ),
        110,
        record=False,
    ),
    Part(
        "segments",
        "pytest",
        (
            *PYTEST,
            f"{FAST_TESTS}/test_kernels.py",
            "tests/echoprune/test_segment.py",
            "-k",
            "echo_scores or test_segment",
        ),
        110,
        record=False,
    ),
    Part("vision", "benchmarks.vision", ("--families", "qwen2_5_vl"), 100),
    Part("prefill", "benchmarks.prefill", (), 120),
    Part("decode_step", "benchmarks.decode_step", (), 100),
    Part("answers", "benchmarks.answers", (), 130),
    Part("scoring", "benchmarks.scoring", ("--device", "cuda", "--repeat", "5"), 90),
    # Compiles some sixty variants of small sizes: a minute or more.
    Part("kernels", "pytest", (*PYTEST, f"{FAST_TESTS}/test_kernels.py"), 120, record=False),
    Part("store", "benchmarks.store_rate", ("--device", "cuda"), 60),
    Part("attention", "benchmarks.attention", (), 40),
    Part("vision_others", "benchmarks.vision", ("--families", "qwen3_vl,llava_onevision"), 120),
    # These take Ray and decoders, which a GPU machine may lack.
    Part(
        "question",
        "benchmarks.question_cost",
        (
            "--released",
            "--device",
            "cuda",
            "--side",
            "448",
            "--engine",
            "fast",
            "--tower",
            "fast",
            "--compression",
            "zstd,none",
        ),
        420,
    ),
    *(
        Part(
            name,
            "benchmarks.index_rate",
            (
                *("--released", "--device", "cuda", "--tower", tower, "--fps", fps),
                *("--clips", clips, "--alone", "48", "--seconds", "60"),
            ),
            limit_s,
        )
        # The start of all decoders takes as long as 48 such clips: they would be what is measured.
        for name, tower, fps, clips, limit_s in (
            ("index_fast", "fast", "2", "288", 330),
            ("index_fast_1_fps", "fast", "1", "432", 330),
            ("index_plain", "plain", "2", "48", 150),
        )
    ),
    Part("n_gpus", "benchmarks.n_gpus", ("--released", "--gpus", "1,2", "--questions", "256"), 540),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts that fit; 1 if one of them failed."""
    options = _parser().parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + options.seconds
    names = options.only.split(",") if options.only else [part.name for part in PARTS]
    unknown = set(names) - {part.name for part in PARTS}
    if unknown:
        sys.exit(
            f"unknown parts {', '.join(sorted(unknown))}; known: {', '.join(part.name for part in PARTS)}"
        )
    results: dict[str, Any] = {"machine": machine(), "parts": {}}
    with (options.out / "log.txt").open("w", encoding="utf-8") as log:
        for part in (each for name in names for each in PARTS if each.name == name):
            left = ends - time.monotonic()
            if left < LEAST_S:
                found: dict[str, Any] = {"status": "not run, no time left"}
            else:
                found = run(part, min(part.limit_s, left - 5), log)
            results["parts"][part.name] = found
            (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{part.name}: {found['status']}, {found.get('seconds', 0):.0f} s", flush=True)
    return int(any(found["status"] != "ok" for found in results["parts"].values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and log.txt")
    parser.add_argument("--seconds", type=float, default=540, help="for all parts together (540)")
    parser.add_argument("--only", help="parts, separated by commas, in that order")
    return parser


def run(part: Part, limit_s: float, log: Any) -> dict[str, Any]:
    """What became of one part: status, seconds, and the record that it had written when it ended or was ended."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        record = Path(folder) / "record.json"
        command = [sys.executable, "-m", part.module, *part.arguments]
        if part.record:
            command += ["--json", str(record)]
        started = time.monotonic()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONUNBUFFERED": "1",
        }
        printed = Path(folder) / "printed.txt"
        with printed.open("w", encoding="utf-8") as out:
            # A session of its own, so that what it starts ends with it.
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(timeout=limit_s)
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        text = printed.read_text(encoding="utf-8", errors="replace")
        log.write(f"==== {part.name}: {' '.join(command[1:])}\n{text}\n")
        log.flush()
        print("\n".join([f"==== {part.name}", *text.splitlines()[-TAIL_LINES:]]), flush=True)
        status = (
            "ok"
            if code == 0
            else f"ended by its limit of {limit_s:.0f} s"
            if code is None
            else f"exit code {code}"
        )
        found: dict[str, Any] = {"status": status, "seconds": time.monotonic() - started}
        if record.exists():
            found["record"] = json.loads(record.read_text(encoding="utf-8"))
        return found


if __name__ == "__main__":
    sys.exit(main())
