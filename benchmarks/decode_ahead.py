"""The decode pool with actors and an encoder that only sleep: what its order of asking lets through, whatever the cores.

    python -m benchmarks.decode_ahead --decoders 15 --in-flight-mb 256,512,1024
    python -m benchmarks.decode_ahead --in-flight-mb 1024 --clips 144 --shard-clips 9

Real Ray, the real pool, and segments of the size that 448 x 448 pixels have; a clip of 60 s is scanned for real. Rates are
those of an H200's fast tower (23.1 ms for 16 frames) and of one of its cores (588 frames of 960 x 960 pixels a second). With shards the encoder's process sleeps
at the end of each as long as it took there to write the last videos and to commit: before the next shard is begun, and with
that one decoded and encoded meanwhile, by the worker's own turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.moving_video import write_moving_video
from echoprune import decode_pyav
from echoprune.data import Frames
from echoprune.models import frame_layout
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.opening import Opened
from echoprune.sample import Sampling, parse_fps
from pipelines.at_work import SHARDS_AT_MOST
from pipelines.crew import Crew
from pipelines.decode_actor import DecodeActor, VideoOpener
from pipelines.decode_pool import DecodePool
from pipelines.decoders import Decoders
from pipelines.places import Place, Places
from pipelines.turns import Turns

SIDE, SECONDS, FPS, SEGMENT_CELLS = 448, 60, 25, 8
SEGMENT_BYTES = 3 * SIDE * SIDE * 2 * SEGMENT_CELLS
# Seconds to open a file and find the place.
OPEN_S = 0.03


class Sleeping(DecodeActor):
    """A decode actor that takes the time that decoding takes, and gives black frames."""

    source_fps = 588.0

    def _segments(self, opened: Opened, cells: tuple[int, int], decoder: str, seen: Any) -> Iterator[Frames]:
        grid = opened.grid
        lead = decode_pyav.lead_frames(opened.info, int(grid.cell_pts[cells[0]])) if cells[0] else 0
        time.sleep(OPEN_S + lead / self.source_fps)
        for first in range(cells[0], cells[1], grid.segment_cells):
            count = min(grid.segment_cells, cells[1] - first)
            # A cell is two frames at two a second.
            time.sleep(count * FPS / self.source_fps)
            yield Frames(np.zeros((2 * count, SIDE, SIDE, 3), np.uint8), first, 2, "pyav")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each amount of memory."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode_ahead", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--decoders", type=int, default=15)
    parser.add_argument("--in-flight-mb", default="256,512,1024", help="separated by commas")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--shard-clips", type=int, help="clips of a shard (one shard of all, with no end)")
    parser.add_argument("--rest-s", type=float, default=0.25, help="for the last videos of a shard (0.25)")
    parser.add_argument("--commit-s", type=float, default=0.35, help="for its commit (0.35)")
    parser.add_argument("--segment-s", type=float, default=0.0231, help="that the encoder takes (0.0231)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="decode-ahead-") as name:
        clip = Path(name) / "clip.mp4"
        write_moving_video(clip, seconds=SECONDS, side=960, fps=FPS)
        layout = frame_layout(
            str(write_tiny_checkpoint("qwen2_5_vl", Path(name) / "model", dim=64)), max_pixels=SIDE * SIDE
        )
        opener = VideoOpener(layout, Sampling(fps=parse_fps("2")), SEGMENT_CELLS)
        ray.init(
            num_cpus=options.decoders + 1,
            object_store_memory=4 << 30,
            include_dashboard=False,
            log_to_driver=False,
        )
        for mb in (int(each) for each in options.in_flight_mb.split(",")):
            for ahead in (False, True) if options.shard_clips else (False,):
                frames, took_s, waited_s = measure(opener, str(clip), mb, options, ahead=ahead)
                shards = f", shards of {options.shard_clips}{', the next one ahead' * ahead}"
                print(
                    f"{options.decoders} actors, {mb} MB{shards if options.shard_clips else ''}: {frames / took_s:.0f} frames/s of "
                    f"{16 / options.segment_s:.0f} that the encoder takes; it waited for frames {waited_s / took_s:.0%} of the time",
                    flush=True,
                )
        ray.shutdown()
    return 0


@dataclass
class Encoder:
    """A sleeping encoder, and what a worker does of a shard: with its turn, then without it."""

    pool: DecodePool
    options: argparse.Namespace
    turns: Turns = field(default_factory=Turns)
    frames: int = 0
    waited_s: float = 0.0

    def shard(self, clips: Sequence[str], ready: threading.Event) -> None:
        """Encodes, writes and commits a shard; `ready` once the next one may be begun."""
        with self.turns.ask() as turn:
            videos = self.pool.videos(clips, decoder="auto")
            turn.wait()
            for video in videos:
                asked = time.perf_counter()
                video.open()
                segments = video.segments()
                while (segment := next(segments, None)) is not None:
                    self.waited_s += time.perf_counter() - asked
                    self.frames += len(segment.pixels)
                    time.sleep(self.options.segment_s)
                    if videos.are_soon_asked:
                        ready.set()
                    asked = time.perf_counter()
            turn.give_up()
            ready.set()
            if self.options.shard_clips:
                time.sleep(self.options.rest_s + self.options.commit_s)


def measure(
    opener: VideoOpener, clip: str, mb: int, options: argparse.Namespace, *, ahead: bool
) -> tuple[int, float, float]:
    """Frames, and seconds of all and of waiting, from the first call on, with all actors up; `ahead`: with the next shards under way."""
    count = options.decoders
    people = Crew(encoders=1, decoders=count, gpus_each=1, threads=1)
    places = Places(people, ray.get_runtime_context().get_node_id())

    def make(place: Place) -> Any:
        return ray.remote(Sleeping).options(**place.options()).remote(opener, None)

    decoders = Decoders(make, places, count=count)
    pool = DecodePool(
        decoders, lookahead=lambda each: max(2, (mb << 20) // SEGMENT_BYTES // each), timeout_s=120
    )
    while len(decoders.up) < count:
        decoders.look()
        time.sleep(0.1)
    encoder, room = Encoder(pool, options), threading.Semaphore(SHARDS_AT_MOST if ahead else 1)
    size = options.shard_clips or options.clips

    def call(clips: Sequence[str], ready: threading.Event) -> None:
        encoder.shard(clips, ready)
        room.release()

    begun, calls = time.perf_counter(), []
    for first in range(0, options.clips, size):
        room.acquire()
        ready = threading.Event()
        calls.append(threading.Thread(target=call, args=([clip] * min(size, options.clips - first), ready)))
        calls[-1].start()
        ready.wait()
    for each in calls:
        each.join()
    took_s = time.perf_counter() - begun
    pool.close()
    return encoder.frames, took_s, encoder.waited_s


if __name__ == "__main__":
    sys.exit(main())
