"""Whether a long video is indexed with flat memory, and in time that grows with its length alone.

    python -m benchmarks.long_video --minutes 10 60 180

Renders one video per length, writes a random checkpoint of the real model class with 3,584-wide tokens, and runs
`python -m jobs.cli index` on each in a fresh process, its memory and spill files watched. All numbers are meant as
ratios to the shortest length; the start-up, measured with a video of one second, is taken off the times.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.moving_video import write_moving_video
from benchmarks.resident import Usage, watch
from echoprune.models.tiny import write_tiny_checkpoint
from pipelines.versions import versions

REPOSITORY = Path(__file__).parents[1]
DIM = 3584
MEMORY_LIMIT = 1.10
TIME_TOLERANCE = 0.15
# On 2 cores shared with test runs the same three hours took 224 to 486 s: times then say nothing of the length.
OTHERS_CORES = 0.2
# What works on the video. Ray's own processes hold no video, and how many idle workers it starts varies.
WORKING = ("driver", "encoder", "decoder")


@dataclass(frozen=True)
class Run:
    """One length: what was indexed, and what it took."""

    minutes: float
    cells: int
    tokens: int
    kept: int
    store_mib: float
    worker_s: dict[str, float]
    usage: Usage

    @property
    def peak_mib(self) -> float:
        """Sum of the highest resident sizes of the working processes."""
        return sum(self.usage.peak[part] for part in WORKING)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the working processes."""
        return sum(self.usage.cpu_s[part] for part in WORKING)

    @property
    def own_mib(self) -> float:
        """The same of anonymous memory alone."""
        return sum(self.usage.own_peak[part] for part in WORKING)


@dataclass(frozen=True)
class Start:
    """What a video of one second takes: seconds on the clock, and of CPU in the working processes."""

    wall_s: float
    cpu_s: float
    others_cores: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all lengths and prints the table; 0 if memory is flat and time linear, 1 if not."""
    options = _parser().parse_args(arguments)
    folder: Any = (
        tempfile.TemporaryDirectory(prefix="long-video-") if options.out is None else nullcontext(options.out)
    )
    with folder as name:
        work = Path(name)
        work.mkdir(parents=True, exist_ok=True)
        model = write_tiny_checkpoint("qwen2_5_vl", work / "model", dim=DIM)
        # The first run reads libraries from disk; start-up is the lower of two.
        starts = [_measure(work, model, 1 / 60, options) for _ in range(2)]
        start = Start(
            wall_s=min(run.usage.wall_s for run in starts),
            cpu_s=min(run.cpu_s for run in starts),
            others_cores=min(run.usage.others_cores for run in starts),
        )
        runs = []
        for minutes in sorted(options.minutes):
            runs.append(_measure(work, model, minutes, options))
            print(f"{minutes:g} minutes: {runs[-1].usage.wall_s:.0f} s", file=sys.stderr, flush=True)
    verdicts = [verdict for run in runs[1:] for verdict in _verdicts(runs[0], run, start)]
    print("\n".join([*_table(runs, start), "", *(text for _, text in verdicts)]))
    if options.json is not None:
        options.json.write_text(json.dumps(_record(options, runs, start), indent=1) + "\n", encoding="utf-8")
    return 0 if all(passed for passed, _ in verdicts) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_video", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 60, 180], help="lengths (10 60 180)")
    parser.add_argument("--side", type=int, default=224, help="picture size, pixels; 224 is 64 tokens a cell")
    parser.add_argument("--source-fps", type=int, default=5, help="frames a second in the file (5)")
    parser.add_argument("--keep", default="0.25", help="as of `index` (0.25)")
    parser.add_argument(
        "--decoder",
        default="pyav",
        help="as of `index` (pyav: auto would take decord for short videos alone, which decodes ahead up to 512 MB)",
    )
    parser.add_argument(
        "--out", type=Path, help="folder for videos, stores and logs, kept; default: none is kept"
    )
    parser.add_argument("--json", type=Path, help="file for all numbers, with machine and versions")
    return parser


def _measure(work: Path, model: Path, minutes: float, options: argparse.Namespace) -> Run:
    """Renders a video, indexes it in a fresh process, and gives the disk space back unless --out is given."""
    name = f"{minutes:.3g}min"
    video, store = work / f"{name}.mp4", work / f"store-{name}"
    if store.exists():
        _remove(video, store)
    write_moving_video(video, seconds=60 * minutes, side=options.side, fps=options.source_fps)
    command = [
        sys.executable,
        "-m",
        "jobs.cli",
        "index",
        str(video),
        "--store",
        str(store),
        "--model",
        str(model),
    ]
    command += ["--keep", options.keep, "--decoder", options.decoder, "--dtype", "bf16"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    log = work / f"{name}.log"
    with log.open("w", encoding="utf-8") as sink:
        usage = watch(command, cwd=work, log=sink, env=environment)
    if usage.returncode != 0:
        sys.exit(f"index ended with {usage.returncode}:\n{log.read_text(encoding='utf-8')[-2000:]}")
    report = json.loads((store / "run_report.json").read_text(encoding="utf-8"))["run"]
    run = Run(
        minutes=minutes,
        cells=report["tokens_seen"] // (options.side // 28) ** 2,
        tokens=report["tokens_seen"],
        kept=report["tokens_kept"],
        store_mib=report["store_bytes"] / (1 << 20),
        worker_s=report["worker_s"],
        usage=usage,
    )
    if options.out is None:
        _remove(video, store)
    return run


def _remove(video: Path, store: Path) -> None:
    video.unlink()
    for path in sorted(store.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    store.rmdir()


def _verdicts(base: Run, run: Run, start: Start) -> list[tuple[bool, str]]:
    """Whether `run` took the memory of `base`, and time in proportion to its length."""
    about = f"{run.minutes:g} against {base.minutes:g} minutes"
    verdicts = []
    ratio = run.peak_mib / base.peak_mib
    passed = ratio <= MEMORY_LIMIT
    word = "pass" if passed else "FAIL"
    verdicts.append((passed, f"{word}  {about}: resident size x{ratio:.2f}, limit x{MEMORY_LIMIT:.2f}"))
    longer = run.minutes / base.minutes
    others = max(start.others_cores, base.usage.others_cores, run.usage.others_cores)
    for name, more, less in (
        ("time", run.usage.wall_s - start.wall_s, base.usage.wall_s - start.wall_s),
        ("CPU time", run.cpu_s - start.cpu_s, base.cpu_s - start.cpu_s),
    ):
        passed = less > 0 and abs(more / less / longer - 1) <= TIME_TOLERANCE and others <= OTHERS_CORES
        word = "pass" if passed else "FAIL"
        if others > OTHERS_CORES:
            word = f"not judged, others took {others:.1f} cores;"
        ratio_text = f"x{more / less:.2f}" if less > 0 else "without a ratio"
        verdicts.append(
            (passed, f"{word}  {about}: {name} {ratio_text}, x{longer:.2f} within {TIME_TOLERANCE:.0%}")
        )
    return verdicts


def _table(runs: Sequence[Run], start: Start) -> list[str]:
    """Sizes in MiB: highest resident size of each part, and in brackets its own (anonymous) memory."""
    lines = [
        f"start-up {start.wall_s:.1f} s, CPU {start.cpu_s:.1f} s, taken off the times per hour of video; highest "
        "resident size in MiB, in brackets that of memory of its own; others: cores that other work took; pages: of the "
        "object store, in one process",
        f"{'minutes':>7} {'cells':>6} {'tokens':>7} {'kept':>7} {'wall s':>7} {'s/h':>6} {'CPU s/h':>7} {'others':>6} "
        f"{'driver':>10} {'encoder':>10} {'decoder':>10} {'ratio':>11} {'pages':>5} {'spill':>6} {'store':>6}",
    ]
    for run in runs:
        usage, hours = run.usage, run.minutes / 60
        sizes = " ".join(f"{f'{usage.peak[part]:.0f} ({usage.own_peak[part]:.0f})':>10}" for part in WORKING)
        ratios = f"{run.peak_mib / runs[0].peak_mib:.2f} ({run.own_mib / runs[0].own_mib:.2f})"
        lines.append(
            f"{run.minutes:>7g} {run.cells:>6} {run.tokens:>7} {run.kept:>7} {usage.wall_s:>7.1f} "
            f"{(usage.wall_s - start.wall_s) / hours:>6.1f} {(run.cpu_s - start.cpu_s) / hours:>7.1f} {usage.others_cores:>6.1f} "
            f"{sizes} {ratios:>11} {usage.shared_peak:>5.0f} {usage.spill_peak_mib:>6.0f} {run.store_mib:>6.0f}"
        )
    return lines


def _record(options: argparse.Namespace, runs: Sequence[Run], start: Start) -> dict[str, Any]:
    chosen = {name: value for name, value in vars(options).items() if name not in ("out", "json")}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": versions(),
        "options": chosen | {"dim": DIM},
        "start": asdict(start),
        "runs": [asdict(run) for run in runs],
    }


if __name__ == "__main__":
    sys.exit(main())
