"""An index worker whose frames lie in memory: what is left of the encoder's rate by all else that a worker does.

    python -m benchmarks.worker_turn --device cuda --released --tower fast --decoders 0,15

The worker's own code, in this process, without Ray and without waiting for decoders: it encodes, chooses, writes and commits. Beside
it run so many processes that only decode, for their load on cores and memory. Where its time goes is told by call.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile

from benchmarks.index_rate import SEGMENT_CELLS, decoded, encode_alone, write_clips
from benchmarks.measure import Spent, device_of, write_record
from benchmarks.released import write_checkpoint
from echoprune.data import Frames
from echoprune.index import VideoIndexing
from echoprune.models import frame_layout, model_settings
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.plan import extend_plan
from echoprune.sample import Sampling, parse_fps
from echoprune.segment import SegmentRows, Segments
from echoprune.sources import Source
from echoprune.storage import Storage
from echoprune.store import create_store
from echoprune.topk import TopK
from pipelines.at_work import SHARDS_AT_MOST
from pipelines.config import IndexConfig
from pipelines.crew import Crew
from pipelines.decode_actor import Opened, VideoOpener
from pipelines.events import ReadyForNext
from pipelines.in_turn import InTurn
from pipelines.index import store_settings
from pipelines.index_worker import IndexJob, IndexWorker
from pipelines.open_shard import OpenShard
from pipelines.video_runs import DecodedVideo

# What a worker does with a segment, a video and a shard, in its threads.
CALLS: tuple[tuple[Any, str], ...] = (
    (VideoIndexing, "begin"),
    (InTurn, "ask"),
    (Segments, "settle"),
    (TopK, "push"),
    (SegmentRows, "take"),
    (VideoIndexing, "finish"),
    (OpenShard, "store"),
    (OpenShard, "commit"),
)


@dataclass
class Video:
    """A video whose frames are there."""

    opened: Opened
    frames: Sequence[Frames]

    def open(self) -> Opened:
        """How it was scanned."""
        return self.opened

    def segments(self) -> Iterator[Frames]:
        """Its segments."""
        return iter(self.frames)


@dataclass
class Videos:
    """The one video, as often as it is asked for."""

    video: Video
    are_soon_asked: bool = True

    def __next__(self) -> DecodedVideo:
        return self.video

    def close(self) -> None:
        """Nothing is held."""


class Worker(IndexWorker):
    """An index worker whose videos are all `video`."""

    video: Video

    def _videos(self, sources: Sequence[Source], alone: frozenset[str]) -> Any:
        return Videos(self.video)


class Gaps:
    """How long a GPU had nothing to do between segments, by its own clock, where `begin` asks it for one."""

    def __init__(self, until: ExitStack) -> None:
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        begin = VideoIndexing.begin

        def marked(indexing: VideoIndexing, frames: Frames) -> Any:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            begun = begin(indexing, frames)
            last.record()
            self._marks.append((first, last))
            return begun

        VideoIndexing.begin = marked  # type: ignore[method-assign]
        until.callback(setattr, VideoIndexing, "begin", begin)

    def found(self) -> dict[str, float]:
        """Milliseconds a segment: from when its first kernel could begin to its last one's end, and from there to the next one."""
        inside = [first.elapsed_time(last) for first, last in self._marks]
        between = [
            before[1].elapsed_time(after[0])
            for before, after in zip(self._marks, self._marks[1:], strict=False)
        ]
        return {
            "inside_ms": statistics.mean(inside),
            "inside_median_ms": statistics.median(inside),
            "between_ms": statistics.mean(between),
            "between_over_5_ms": sum(each > 5 for each in between),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the rate alone, and for each number of decoders the worker's and where its time goes."""
    options = _parser().parse_args(arguments)
    device = device_of(options.device)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="worker-turn-") as name:
        work = Path(name)
        options.clips, options.model = 1, str(work / "model")
        (clip,) = write_clips(work / "clips", options)
        if options.released:
            write_checkpoint(work / "model", device=device, text_layers=1)
        else:
            write_tiny_checkpoint("qwen2_5_vl", work / "model", dim=1024)
        alone = encode_alone(clip, options.videos // 2, options.model, options)
        results["alone"] = alone.frames / alone.clock_s
        print(f"encoding alone: {results['alone']:.0f} frames/s", flush=True)
        for each in options.decoders.split(","):
            count, _, nice = each.partition(":")
            with Load(int(count), int(nice or 0), str(clip), options):
                found = run(work / f"{count}-{nice}", clip, options)
            results[each] = found
            print(
                f"{each} decoders beside: {found['rate']:.0f} frames/s, {found['rate'] / results['alone']:.0%}"
            )
            if found["gpu"]:
                print(
                    "  the GPU, a segment: "
                    + ", ".join(f"{key} {value:.2f}" for key, value in found["gpu"].items())
                )
            for title, (seconds, calls) in found["spent"].items():
                print(f"  {title:<24} {1e3 * seconds / calls:8.2f} ms, {calls} times, {seconds:.2f} s")
            sys.stdout.flush()
            write_record(options.json, vars(options), results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.worker_turn", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--videos", type=int, default=72)
    parser.add_argument("--shard-videos", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=60, help="of a video (60)")
    parser.add_argument("--side", type=int, default=960, help="pixels of its side (960)")
    parser.add_argument("--fps", default="2", help="sampled frames a second (2)")
    parser.add_argument(
        "--decoders", default="0", help="processes that decode beside it, and their niceness: 0,15,15:10 (0)"
    )
    parser.add_argument("--switch", type=float, help="seconds after which a thread is to let go of Python")
    parser.add_argument("--tower", default="plain", choices=("plain", "fast"))
    parser.add_argument("--released", action="store_true", help="a tower of Qwen2.5-VL-7B's shape")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--profile", action="store_true", help="print where the GPU's time goes: for few videos"
    )
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


def run(work: Path, clip: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Frames a second of a worker, from its first call to its last commit, and seconds by call."""
    model, settings_of = options.model, model_settings(options.model)
    layout = frame_layout(model, max_pixels=448 * 448)
    opener = VideoOpener(layout, Sampling(fps=parse_fps(options.fps)), SEGMENT_CELLS)
    opened = opener.open(str(clip))
    config = IndexConfig(
        paths=(str(clip),),
        store=str(work / "store"),
        model=model,
        tower=options.tower,
        device=options.device,
        max_pixels=448 * 448,
    )
    settings = store_settings(config, settings_of)
    storage = Storage(config.store)
    create_store(storage.url, settings)
    links = work / "links"
    links.mkdir(parents=True)
    sources = []
    for number in range(options.videos):
        os.link(clip, links / f"{number:04d}.mp4")
        sources.append(Source(str(links / f"{number:04d}.mp4"), clip.stat().st_size))
    shards = extend_plan(storage, sources, shard_bytes=1 << 40, shard_videos=options.shard_videos)
    job = IndexJob(
        config=config,
        settings=settings,
        opener=opener,
        crew=Crew(encoders=1, decoders=0, gpus_each=int(device_of(options.device).type == "cuda"), threads=1),
        store=storage.url,
        run_id="run",
        lease_epoch=0,
        beside=True,
    )
    worker = Worker(job)
    worker.video = Video(opened, decoded(str(clip), model, options.fps))
    worker.load()
    worker._check_epoch = lambda: None  # type: ignore[method-assign]  # no lease is held
    if options.switch is not None:
        sys.setswitchinterval(options.switch)
    spent, room = Spent(), threading.Semaphore(SHARDS_AT_MOST)
    with ExitStack() as until:
        for owner, name in CALLS:
            spent.watch(owner, name, until)
        gaps = Gaps(until) if job.crew.gpus_each else None
        profiler = until.enter_context(profile()) if options.profile else None
        began, threads = time.perf_counter(), []
        for shard in shards:
            room.acquire()
            ready = threading.Event()

            def carry_out(shard: Any = shard, ready: threading.Event = ready) -> None:
                try:
                    for event in worker.run_shard(shard, {}):
                        if isinstance(event, ReadyForNext):
                            ready.set()
                    room.release()
                except BaseException:  # noqa: BLE001
                    # The next shard would wait for this one for ever.
                    traceback.print_exc()
                    os._exit(1)

            threads.append(threading.Thread(target=carry_out))
            threads[-1].start()
            ready.wait()
        for thread in threads:
            thread.join()
        took_s = time.perf_counter() - began
    if profiler is not None:
        print(
            profiler.key_averages().table(
                sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=60
            )
        )
    frames = options.videos * sum(len(each.pixels) for each in worker.video.frames)
    return {
        "rate": frames / took_s,
        "gpu": {} if gaps is None else gaps.found(),
        "spent": {title: (seconds, spent.calls[title]) for title, seconds in spent.seconds.items()},
    }


def _decode_on(clip: str, model: str, fps: str, nice: int, started: Any, ended: Any) -> None:
    os.nice(nice)
    torch.set_num_threads(1)
    while True:
        decoded(clip, model, fps)
        started.release()
        parent = parent_process()
        if ended.is_set() or (parent is not None and not parent.is_alive()):
            return


class Load:
    """So many processes that decode `clip` over and over while the block lasts."""

    def __init__(self, count: int, nice: int, clip: str, options: argparse.Namespace) -> None:
        context = get_context("spawn")
        self._started, self._ended = context.Semaphore(0), context.Event()
        self._processes = [
            context.Process(
                target=_decode_on,
                args=(clip, options.model, options.fps, nice, self._started, self._ended),
            )
            for _ in range(count)
        ]

    def __enter__(self) -> None:
        for process in self._processes:
            process.start()
        for _ in self._processes:
            if not self._started.acquire(timeout=120):
                raise ChildProcessError("a process that is to decode has not begun within 120 s")

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        for process in self._processes:
            process.join()


if __name__ == "__main__":
    sys.exit(main())
