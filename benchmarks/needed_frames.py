"""CPU seconds to decode the sampled pictures of a video, with every frame decoded and with those alone that they need.

    python -m benchmarks.needed_frames

H.264 of 960 x 960 pixels (as many as 1280 x 720) at 25 frames a second, by presets of x264 and distances of keyframes, or the
files of --videos; PyAV, one thread. Pictures are compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import write_record
from benchmarks.moving_video import write_moving_video
from echoprune.data import IntArray, VideoInfo
from echoprune.decode_pyav import pictures
from echoprune.probe import scan_video
from echoprune.sample import Sampling, time_grid

FPS = 25
# Preset of x264, seconds between keyframes: encoders without B-frames at two distances, and x264's usual ones.
KINDS = (("ultrafast", 1), ("ultrafast", 2), ("veryfast", 10), ("medium", 10))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for each video and rate; 1 if a picture differs."""
    options = _parser().parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="needed-frames-") as name:
        videos = options.videos or [
            write(Path(name), preset, gop_s, seconds=options.seconds, side=options.side)
            for preset, gop_s in KINDS
        ]
        for video in videos:
            info = scan_video(str(video))
            for fps in options.fps.split(","):
                found = measure(info, sampled_at(info, Fraction(fps)))
                rows.append({"video": video.name, "fps": fps, **found})
                write_record(options.json, vars(options), {"videos": rows})
                print(
                    f"{video.name:<24} --fps {fps:<4} {found['every_s']:7.2f} s, {found['needed_s']:7.2f} s: "
                    f"x {found['every_s'] / found['needed_s']:.2f}; pictures equal: {found['equal']}",
                    flush=True,
                )
    return int(not all(row["equal"] for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.needed_frames", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--seconds", type=int, default=20, help="of a clip (20)")
    parser.add_argument("--side", type=int, default=960, help="pixels of a clip's side (960)")
    parser.add_argument("--fps", default="1,2", help="sampled frames a second, separated by commas (1,2)")
    parser.add_argument("--videos", type=Path, nargs="+", help="files to take instead")
    parser.add_argument("--json", type=Path, help="file for the numbers, with machine and versions")
    return parser


def write(folder: Path, preset: str, gop_s: int, *, seconds: int, side: int) -> Path:
    """A clip with noise, without which a P-frame would be next to nothing."""
    path = folder / f"{preset} {gop_s} s.mp4"
    write_moving_video(path, seconds=seconds, side=side, fps=FPS, preset=preset, gop_s=gop_s, noise=4)
    return path


def sampled_at(info: VideoInfo, fps: Fraction) -> IntArray:
    """The times of the sampled pictures."""
    grid = time_grid(
        info, Sampling(fps=fps), frame_hw=(28, 28), grid_hw=(1, 1), cell_frames=2, segment_cells=8
    )
    return np.unique(grid.frame_pts)


def measure(info: VideoInfo, sampled: IntArray) -> dict[str, Any]:
    """CPU seconds of both ways, the quicker of two runs each in turns, and whether their pictures are equal."""
    every, needed, equal = [], [], True
    for _ in range(2):
        began = time.process_time()
        expected = [
            (pts, hash(picture.tobytes()))
            for pts, picture, _ in pictures(replace(info, one_packet_each=False), sampled)
        ]
        half = time.process_time()
        found = [(pts, hash(picture.tobytes())) for pts, picture, _ in pictures(info, sampled)]
        needed.append(time.process_time() - half)
        every.append(half - began)
        equal = equal and found == expected
    return {"every_s": min(every), "needed_s": min(needed), "pictures": len(sampled), "equal": equal}


if __name__ == "__main__":
    sys.exit(main())
