"""A whole index run: hours of video per hour, what the encoder waited for, and CPU seconds against decoding and encoding alone.

    python -m benchmarks.index_rate
    python -m benchmarks.index_rate --device cuda --released --clips 64 --seconds 60 --tower fast

Clips are copies of one rendered clip, H.264, 960 x 960 pixels (as many as 1280 x 720) at 25 frames a second. Decoding alone
is the same decoder over the same clips in as many processes as there are cores; encoding alone is the encoder over frames
in memory; `--alone` of the clips are enough for both where many are indexed. Ray's start and the loading of the model are in
the job's CPU seconds, not in the encoder's share.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import device_of, write_record
from benchmarks.moving_video import write_moving_video
from benchmarks.released import write_checkpoint
from benchmarks.resident import watch
from echoprune.data import Frames
from echoprune.decode import decode
from echoprune.models import frame_layout, load_encoder
from echoprune.models.encoder import FrameLayout
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.opening import Opened, open_source
from echoprune.sample import Sampling, parse_fps

REPOSITORY = Path(__file__).parents[1]
SEGMENT_CELLS = 8
CLIP_FPS = 25


@dataclass(frozen=True)
class Alone:
    """Sampled frames, and seconds of clock and CPU (user and system, children included) that they took."""

    frames: int
    clock_s: float
    cpu_s: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Renders, decodes alone, encodes alone, indexes; prints and records after each."""
    options = _parser().parse_args(arguments)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="index-rate-") as name:
        work = Path(name)
        clips = write_clips(work / "clips", options)
        if options.released:
            device = device_of(options.device)
            model = str(write_checkpoint(work / "model", device=device, text_layers=1))
        else:
            model = str(write_tiny_checkpoint("qwen2_5_vl", work / "model", dim=options.dim))
        if not options.index_only:
            alone = clips[: options.alone or len(clips)]
            decoded = decode_alone(alone, model, options)
            results["decode"] = decoded.__dict__
            write_record(options.json, vars(options), results)
            encoded = encode_alone(clips[0], len(alone), model, options)
            results["encode"] = encoded.__dict__
            write_record(options.json, vars(options), results)
        results["index"] = index(work, model, options)
        write_record(options.json, vars(options), results)
    print(json.dumps(results["index"]) if options.index_only else "\n".join(_lines(results, options)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.index_rate", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--alone", type=int, help="clips that are decoded and encoded alone (all)")
    parser.add_argument("--seconds", type=int, default=30, help="of a clip (30)")
    parser.add_argument("--side", type=int, default=960, help="pixels of a clip's side (960)")
    parser.add_argument("--fps", default="2", help="sampled frames a second (2)")
    parser.add_argument("--tower", default="plain", choices=("plain", "fast"))
    parser.add_argument("--dim", type=int, default=1024, help="token width of the tiny model (1024)")
    parser.add_argument("--released", action="store_true", help="a tower of Qwen2.5-VL-7B's shape")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="for decoding alone")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--index-only", action="store_true", help="not decoding and encoding alone")
    parser.add_argument("--more", default="", help="further options of `index`, as in a shell")
    parser.add_argument("--log", type=Path, help="file for the run's log lines")
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


def write_clips(folder: Path, options: argparse.Namespace) -> list[Path]:
    """`options.clips` copies of one rendered clip."""
    folder.mkdir()
    first = folder / "clip_000.mp4"
    write_moving_video(first, seconds=options.seconds, side=options.side, fps=CLIP_FPS)
    clips = [first]
    for index in range(1, options.clips):
        clips.append(Path(shutil.copy(first, folder / f"clip_{index:03d}.mp4")))
    return clips


def opened(path: str, model: str, fps: str) -> tuple[FrameLayout, Opened]:
    """How `model` wants its frames, and a clip scanned for that."""
    layout = frame_layout(model, max_pixels=448 * 448)
    return layout, open_source(path, Sampling(fps=parse_fps(fps)), sizes=layout, segment_cells=SEGMENT_CELLS)


def decoded(path: str, model: str, fps: str) -> list[Frames]:
    """All segments of a clip."""
    layout, clip = opened(path, model, fps)
    return list(decode(clip.info, clip.grid, decoder="auto", resample=layout.resample))


def _decode_clip(path: str, model: str, fps: str) -> tuple[int, float]:
    torch.set_num_threads(1)
    started = time.process_time()
    frames = sum(len(part.pixels) for part in decoded(path, model, fps))
    return frames, time.process_time() - started


def decode_alone(clips: Sequence[Path], model: str, options: argparse.Namespace) -> Alone:
    """All clips in `options.cores` processes that are there already."""
    with ProcessPoolExecutor(options.cores, mp_context=get_context("spawn")) as pool:
        warm = [pool.submit(_decode_clip, str(clips[0]), model, options.fps) for _ in range(options.cores)]
        for each in warm:
            each.result()
        started = time.perf_counter()
        asked = [pool.submit(_decode_clip, str(clip), model, options.fps) for clip in clips]
        found = [each.result() for each in asked]
        clock_s = time.perf_counter() - started
    return Alone(sum(frames for frames, _ in found), clock_s, sum(cpu_s for _, cpu_s in found))


def encode_alone(clip: Path, times: int, model: str, options: argparse.Namespace) -> Alone:
    """The frames of one clip `times` times, from memory."""
    encoder = load_encoder(
        model, segment_cells=SEGMENT_CELLS, device=options.device, max_pixels=448 * 448, tower=options.tower
    )
    segments = decoded(str(clip), model, options.fps)
    encoder.encode(segments[0])
    # Not looked at one by one: as in an index, the GPU has the next segment while this process copies another.
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        for segment in segments:
            encoder.encode(segment, check=False)
    if encoder.device.type == "cuda":
        torch.cuda.synchronize()
    frames = times * sum(len(segment.pixels) for segment in segments)
    return Alone(frames, time.perf_counter() - started, time.process_time() - cpu)


def index(work: Path, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the run's own report says, CPU seconds of all of its processes by part, and how busy the GPU said it was."""
    command = [sys.executable, "-m", "jobs.cli", "index", str(work / "clips"), "--store", str(work / "store")]
    command += ["--model", model, "--device", options.device, "--fps", options.fps, "--tower", options.tower]
    command += shlex.split(options.more)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    environment.pop("RAY_ADDRESS", None)
    gpu_log = work / "gpu.txt"
    sampler = None
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=timestamp,utilization.gpu", "--format=csv,noheader,nounits"]
        query += ["-lms", "200"]
        sampler = subprocess.Popen(query, stdout=gpu_log.open("w"), stderr=subprocess.DEVNULL)
    try:
        with (work / "index.log").open("w") as log:
            usage = watch(command, cwd=work, log=log, env=environment)
    finally:
        if options.log is not None:
            shutil.copy(work / "index.log", options.log)
        if sampler is not None:
            sampler.terminate()
            sampler.wait()
    if usage.returncode != 0:
        sys.exit(f"index ended with {usage.returncode}:\n{(work / 'index.log').read_text()[-2000:]}")
    report = json.loads((work / "store" / "run_report.json").read_text())
    samples = gpu_log.read_text().splitlines() if gpu_log.exists() else []
    return {
        "report": report["run"],
        "cpu_s": dict(usage.cpu_s),
        "others_cores": usage.others_cores,
        "steady": steady(report, (work / "index.log").read_text().splitlines(), samples),
    }


def steady(report: dict[str, Any], log: Sequence[str], samples: Sequence[str]) -> dict[str, float]:
    """Videos a second, and the share of time that the GPU said it was busy, between the run's first and last lines of progress.

    Lines with some of its videos done and not all: loading, the decoders' start and the last commits are not in it. Nothing
    of a run that is over before.
    """
    events = [json.loads(line) for line in log if line.startswith('{"event": "progress"')]
    within = [event for event in events if 0 < event["videos_done"] < event["videos"]]
    if len(within) < 2:
        return {}
    first, last = within[0], within[-1]
    lasted_s = last["elapsed_s"] - first["elapsed_s"]
    found = {"seconds": lasted_s, "videos_by_s": (last["videos_done"] - first["videos_done"]) / lasted_s}
    began = datetime.fromisoformat(report["started_at"]).timestamp()
    busy = []
    for sample in samples:
        at, _, value = sample.partition(",")
        if not value.strip().isdecimal():
            # A card that does not say, or the last line, cut off.
            continue
        # Of the machine's own clock, in its own zone.
        since_s = datetime.strptime(at, "%Y/%m/%d %H:%M:%S.%f").astimezone().timestamp() - began
        if first["elapsed_s"] <= since_s <= last["elapsed_s"]:
            busy.append(int(value) / 100)
    return found | ({"gpu_busy": sum(busy) / len(busy)} if busy else {})


def _lines(results: dict[str, Any], options: argparse.Namespace) -> list[str]:
    decoded, encoded, index_ = results["decode"], results["encode"], results["index"]
    report = index_["report"]
    cpu = sum(index_["cpu_s"].values())
    part = (options.alone or options.clips) / options.clips
    frames = round(decoded["frames"] / part)
    alone = (decoded["cpu_s"] + encoded["cpu_s"]) / part
    worker_s = report["worker_s"]
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in worker_s.items())
    rate = frames / sum(worker_s.values()) if worker_s else 0.0
    while_ = index_["steady"]
    at_work = ""
    if while_:
        by_s = while_["videos_by_s"] * frames / options.clips
        at_work = f"; {by_s:.0f} frames/s over {while_['seconds']:.0f} s at work, {by_s / (encoded['frames'] / encoded['clock_s']):.0%}"
        at_work += f" of encoding alone{', the GPU busy ' + format(while_['gpu_busy'], '.0%') if 'gpu_busy' in while_ else ''}"
    return [
        f"{options.clips} clips of {options.seconds} s, {frames} sampled frames, tower {options.tower}",
        f"decoding alone {decoded['frames'] / decoded['clock_s']:.0f} frames/s on {options.cores} cores; encoding alone "
        f"{encoded['frames'] / encoded['clock_s']:.0f} frames/s",
        f"index: {report['video_hours_per_hour']:.1f} h of video per hour with its start; {rate:.0f} frames/s after it: "
        f"{rate / (decoded['frames'] / decoded['clock_s']):.0%} of decoding alone, {rate / (encoded['frames'] / encoded['clock_s']):.0%} "
        f"of encoding alone; the worker's time: {spent}{at_work}",
        f"CPU seconds: index {cpu:.1f} ({', '.join(f'{name} {seconds:.1f}' for name, seconds in index_['cpu_s'].items())}), "
        f"decoding and encoding alone {alone:.1f}: x{cpu / alone:.2f}; others took {index_['others_cores']:.1f} cores",
    ]


if __name__ == "__main__":
    sys.exit(main())
