"""Which instants of a video are looked at, and which frame is on screen then. Pure arithmetic, no file is read.

The rule: instants are evenly spaced from the first presented frame; the frame of an instant is the last one
with a presentation time at or before it. Never an index divided by a frame rate: rates vary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from echoprune.data import FloatArray, IntArray, TimeGrid, VideoInfo
from echoprune.errors import ConfigError, MediaError

_MAX_FPS = 1000

# 58 days at 2 frames/s, 46 hours at 60; a grid of 160 MB. More is a wrong header, or a wrong rate.
_MAX_SAMPLES = 10_000_000

_MAX_INT64 = 2**63 - 1

# No exponents: 1e999999999 is a valid fraction, of a billion digits.
_FPS = re.compile(r"[0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15}|[0-9]{1,15}/[0-9]{1,15}")


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


def parse_fps(text: str) -> Fraction:
    """The rate that "2", "0.5", "1/5" or "30000/1001" means, above 0 and up to 1000.

    Raises ConfigError for anything else; `str` of the result is read back as the same.
    """
    if _FPS.fullmatch(text):
        try:
            return Sampling(fps=Fraction(text)).fps
        except ZeroDivisionError:
            pass
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    raise ConfigError(f"--fps is {shown!r}: give a number such as 2, 0.5 or 30000/1001, up to {_MAX_FPS}")


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
    At least one instant, t = 0. Sampling faster than the video repeats frames. Raises MediaError "too_long" for more
    than 10 million of them.
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
    if count > _MAX_SAMPLES:
        message = (
            f"{info.uri}: {count:,} frames would be sampled of {float(duration):.0f} s, more than {_MAX_SAMPLES:,}; "
            "give a lower --fps, or --max-frames"
        )
        raise MediaError(message, stage="probe", kind="too_long")
    ticks = step / info.time_base
    floors = _floors(count, ticks.numerator, ticks.denominator)
    shown = np.searchsorted(info.pts, floors + start, side="right") - 1
    return TimeGrid(
        times_s=_quotients(count, step.numerator, step.denominator),
        frame_pts=info.pts[shown],
        frame_hw=frame_hw,
        grid_hw=grid_hw,
        cell_frames=cell_frames,
        segment_cells=segment_cells,
        end_s=float(duration),
    )


def _floors(count: int, numerator: int, denominator: int) -> IntArray:
    """(count,): k x numerator // denominator for k = 0 ... count - 1, exactly."""
    whole, rest = divmod(numerator, denominator)
    if count * denominator >= _MAX_INT64:
        return np.array([k * numerator // denominator for k in range(count)], np.int64)
    k = np.arange(count, dtype=np.int64)
    return k * whole + k * rest // denominator


def _quotients(count: int, numerator: int, denominator: int) -> FloatArray:
    """(count,): k x numerator / denominator for k = 0 ... count - 1, each rounded once."""
    # Whole numbers below 2^53 are exact in float64, and so their quotient is rounded once.
    if max(count * numerator, denominator) >= 2**53:
        return np.array([k * numerator / denominator for k in range(count)], np.float64)
    return np.arange(count, dtype=np.float64) * numerator / denominator
