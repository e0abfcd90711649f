"""The decode pool with actors and an encoder that only sleep: what its order of asking lets through, whatever the cores.

    python -m benchmarks.decode_ahead --decoders 15 --in-flight-mb 256,512,1024

Real Ray, the real pool, and segments of the size that 448 x 448 pixels have; a clip of 60 s is scanned for real. Rates are
those of an H200's fast tower (23.1 ms for 16 frames) and of one of its cores (588 frames of 960 x 960 pixels a second).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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
from pipelines.crew import Crew
from pipelines.decode_actor import DecodeActor, VideoOpener
from pipelines.decode_pool import DecodePool
from pipelines.decoders import Decoders
from pipelines.places import Place, Places

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
            frames, took_s, waited_s = measure(opener, str(clip), mb, options)
            print(
                f"{options.decoders} actors, {mb} MB: {frames / took_s:.0f} frames/s of {16 / options.segment_s:.0f} that the encoder "
                f"takes; it waited {waited_s / took_s:.0%} of the time",
                flush=True,
            )
        ray.shutdown()
    return 0


def measure(opener: VideoOpener, clip: str, mb: int, options: argparse.Namespace) -> tuple[int, float, float]:
    """Frames, and seconds of all and of waiting, from the first call on, with all actors up."""
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
    frames, waited_s, begun = 0, 0.0, time.perf_counter()
    for video in pool.videos([clip] * options.clips, decoder="auto"):
        asked = time.perf_counter()
        video.open()
        segments = video.segments()
        while (segment := next(segments, None)) is not None:
            waited_s += time.perf_counter() - asked
            frames += len(segment.pixels)
            time.sleep(options.segment_s)
            asked = time.perf_counter()
    took_s = time.perf_counter() - begun
    pool.close()
    return frames, took_s, waited_s


if __name__ == "__main__":
    sys.exit(main())
