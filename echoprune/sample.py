"""Which instants of a video are looked at, and which frame is on screen then. Pure arithmetic, no file is read.

The rule: instants are evenly spaced from the first presented frame; the frame of an instant is the last one
with a presentation time at or before it. Never an index divided by a frame rate: rates vary.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from echoprune.data import TimeGrid, VideoInfo
from echoprune.errors import ConfigError

_MAX_FPS = 1000


@dataclass(frozen=True)
class Sampling:
    """How often to look: `fps` instants a second, or `frames` instants spread over the whole video.

    `max_frames` lowers the rate of long videos, so that at most so many instants cover all of it; it never
    cuts the end off. `frames` replaces `fps`, and gives fewer where the video has fewer frames.
    Raises ConfigError when made with values outside these meanings.
    """

    fps: Fraction = Fraction(2)
    max_frames: int | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fps <= _MAX_FPS:
            raise ConfigError(
                f"--fps is {self.fps}; give a rate above 0 and up to {_MAX_FPS}, such as 2 or 1/5"
            )
        for name, count in (("--max-frames", self.max_frames), ("--frames", self.frames)):
            if count is not None and count < 1:
                raise ConfigError(f"{name} is {count}; give a whole number of at least 1")
        if self.max_frames is not None and self.frames is not None:
            raise ConfigError(
                f"--frames {self.frames} and --max-frames {self.max_frames} exclude each other; give one of them"
            )


def time_grid(
    info: VideoInfo,
    sampling: Sampling,
    *,
    frame_hw: tuple[int, int],
    grid_hw: tuple[int, int],
    cell_frames: int,
    segment_cells: int,
) -> TimeGrid:
    """The sampled instants of a video and the frame on screen at each.

    Instants are t_k = k / fps for every t_k < duration, or k x duration / n where `max_frames` or `frames` fixes
    their number n. They are exact (rational) until rounded to float64 once; a frame shown exactly at t_k is taken.
    At least one instant, t = 0. Sampling faster than the video repeats frames.
    """
    start = int(info.pts[0])
    duration = (int(info.end_pts) - start) * info.time_base
    step = 1 / Fraction(sampling.fps)
    count = -int(-duration // step)
    limit = sampling.max_frames
    if sampling.frames is not None:
        count = min(sampling.frames, len(info.pts))
        step = duration / count
    elif limit is not None and count > limit:
        count = limit
        step = duration / count
    ticks = step / info.time_base
    # Python integers: the products of rates and ticks need not fit in 64 bits.
    floors = [k * ticks.numerator // ticks.denominator for k in range(count)]
    shown = np.searchsorted(info.pts, np.array(floors, np.int64) + start, side="right") - 1
    return TimeGrid(
        times_s=np.array([float(k * step) for k in range(count)], np.float64),
        frame_pts=info.pts[shown],
        frame_hw=frame_hw,
        grid_hw=grid_hw,
        cell_frames=cell_frames,
        segment_cells=segment_cells,
        end_s=float(duration),
    )
