"""CPU seconds of a whole index job against decoding alone plus encoding alone.

    python -m benchmarks.index_cpu

User and system seconds of every process that the job starts, Ray's own included. Alone: the same decoder, sampling and
resize in one plain process; the same encoder with as many threads over frames that lie in memory, in another. Both are
measured twice: one after the other, and side by side, as they run in the job, since cores that share memory slow each
other down. What any job takes, however short, is measured with a clip of a second and told apart. The encoder is a small random one, so that
what goes on beside it shows. Clips are rendered, unless --videos names some.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.index_rate import REPOSITORY, SEGMENT_CELLS, decoded, opened, write_clips
from benchmarks.measure import write_record
from benchmarks.moving_video import write_moving_video
from benchmarks.resident import PARTS, Usage, watch
from echoprune.decode import decode
from echoprune.models import load_encoder
from echoprune.models.tiny import write_tiny_checkpoint

LIMIT = 1.15


@dataclass(frozen=True)
class Alone:
    """Frames that went through one plain process, and its CPU seconds: before the first frame, and since."""

    frames: int
    start_s: float
    cpu_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the parts and the ratios; 0 if the job costs at most LIMIT without its start, 1 if not."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="index-cpu-") as name:
        work = Path(name)
        clips = options.videos or write_clips(work / "clips", options)
        model = str(write_tiny_checkpoint("qwen2_5_vl", work / "model", dim=options.dim))
        second = work / "second.mp4"
        write_moving_video(second, seconds=1, side=options.side, fps=25)
        apart = measure_alone(clips, model, options, together=False)
        beside = measure_alone(clips, model, options, together=True)
        # The first one reads libraries from disk.
        starts = [index(work / f"start{n}", [second], model, options) for n in range(2)]
        start = min(starts, key=lambda usage: sum(usage.cpu_s.values()))
        job = index(work / "job", clips, model, options)
    results = {
        "apart": {name: asdict(part) for name, part in apart.items()},
        "beside": {name: asdict(part) for name, part in beside.items()},
        "start": dict(start.cpu_s),
        "index": dict(job.cpu_s),
        "others_cores": job.others_cores,
    }
    write_record(options.json, vars(options), results)
    lines, ratio = report(apart, beside, start.cpu_s, job.cpu_s)
    print("\n".join([*lines, f"others took {job.others_cores:.1f} cores meanwhile"]))
    return 0 if ratio <= LIMIT else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.index_cpu", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=120, help="of a clip (120)")
    parser.add_argument("--side", type=int, default=960, help="pixels of a clip's side (960)")
    parser.add_argument("--fps", default="2", help="sampled frames a second (2)")
    parser.add_argument("--dim", type=int, default=1024, help="token width of the small model (1024)")
    parser.add_argument("--keep", default="0.25", help="as of `index` (0.25)")
    parser.add_argument(
        "--threads", type=int, default=1, help="of the encoder: 1, as the job gives it on 2 cores"
    )
    parser.add_argument("--videos", type=Path, nargs="+", help="clips to take instead of rendered ones")
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


def measure_alone(
    clips: Sequence[Path], model: str, options: argparse.Namespace, *, together: bool
) -> dict[str, Alone]:
    """Decoding and encoding, each in a process of its own; `together`: both begin at the same moment."""
    context = get_context("spawn")
    gate = context.Barrier(2 if together else 1)
    found = {}
    with ExitStack() as until:
        for name, alone in (("encode", encode_alone), ("decode", decode_alone)):
            pool = until.enter_context(
                ProcessPoolExecutor(1, mp_context=context, initializer=_wait_at, initargs=(gate,))
            )
            found[name] = pool.submit(alone, clips, model, options)
            if not together:
                found[name].result()
        return {name: future.result() for name, future in found.items()}


# Where a process waits for the other one, when all that is not counted is done.
_gates: list[Any] = []


def _wait_at(gate: Any) -> None:
    _gates.append(gate)


def decode_alone(clips: Sequence[Path], model: str, options: argparse.Namespace) -> Alone:
    """All clips, one after another; what is decoded is dropped. Scanning them is not counted."""
    torch.set_num_threads(1)
    started, frames, cpu_s = time.process_time(), 0, 0.0
    _gates[0].wait()
    for clip in clips:
        layout, video = opened(str(clip), model, options.fps)
        begun = time.process_time()
        for part in decode(video.info, video.grid, decoder="auto", resample=layout.resample):
            frames += len(part.pixels)
        cpu_s += time.process_time() - begun
    return Alone(frames, started, cpu_s)


def encode_alone(clips: Sequence[Path], model: str, options: argparse.Namespace) -> Alone:
    """The frames of all clips from memory; decoding them is not counted."""
    torch.set_num_threads(options.threads)
    encoder = load_encoder(model, segment_cells=SEGMENT_CELLS, device="cpu", max_pixels=448 * 448)
    started = time.process_time()
    segments = [segment for clip in clips for segment in decoded(str(clip), model, options.fps)]
    _gates[0].wait()
    begun = time.process_time()
    for segment in segments:
        encoder.encode(segment)
    return Alone(sum(len(segment.pixels) for segment in segments), started, time.process_time() - begun)


def index(work: Path, clips: Sequence[Path], model: str, options: argparse.Namespace) -> Usage:
    """What `echoprune index` takes for the clips."""
    work.mkdir()
    command = [sys.executable, "-m", "jobs.cli", "index", *map(str, clips), "--store", str(work / "store")]
    command += ["--model", model, "--device", "cpu", "--fps", options.fps, "--keep", options.keep]
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    environment.pop("RAY_ADDRESS", None)
    with (work / "index.log").open("w") as log:
        usage = watch(command, cwd=work, log=log, env=environment)
    if usage.returncode != 0:
        sys.exit(f"index ended with {usage.returncode}:\n{(work / 'index.log').read_text()[-2000:]}")
    return usage


def report(
    apart: Mapping[str, Alone],
    beside: Mapping[str, Alone],
    start: Mapping[str, float],
    job: Mapping[str, float],
) -> tuple[list[str], float]:
    """The lines of a table by process, and the ratio to both side by side, without what any job takes."""
    decode, encode = beside["decode"], beside["encode"]
    alone = {"decoder": decode.cpu_s, "encoder": encode.cpu_s}
    total, singly = sum(alone.values()), sum(part.cpu_s for part in apart.values())
    whole, since = sum(job.values()), sum(job.values()) - sum(start.values())
    rows = [
        f"{encode.frames} frames; CPU seconds",
        f"one after the other: decoding {apart['decode'].cpu_s:.1f}, encoding {apart['encode'].cpu_s:.1f}",
        "process   beside   job   of a second of video   ratio beyond that",
    ]
    for part in PARTS:
        beyond = job[part] - start[part]
        ratio = f"x{beyond / alone[part]:.2f}" if part in alone else f"{beyond / total:.3f} of both alone"
        rows.append(f"{part:<9} {alone.get(part, 0.0):7.1f} {job[part]:7.1f} {start[part]:7.1f}   {ratio}")
    rows.append(
        f"whole job x{whole / total:.2f} of decoding and encoding side by side ({total:.1f} s; their own processes took "
        f"{decode.start_s + encode.start_s:.1f} s to start); without what any job takes x{since / total:.2f} (at most {LIMIT}), "
        f"x{since / singly:.2f} of one after the other"
    )
    return rows, since / total


if __name__ == "__main__":
    sys.exit(main())
