"""What a question sees of a video: all its cells, or those that begin in a range of time.

The budget, the first cell and the positions of a question are those of its view. Pure arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from echoprune.data import FloatArray

# Times are quotients of rates and ticks: a sum of steps may miss its own multiple by this share of a step.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class View:
    """Cells [first_cell, first_cell + T) of a video.

    `grid_thw`: (T, h, w) of the view, before any pruning; T >= 1. `times_s` (T,) float64: when each cell begins,
    `ends_s` when it ends. `centres_s` (T,): the mean instant of the sampled frames in each. `cell_s`: seconds from
    one cell to the next. All count from the first presented frame of the video.
    """

    first_cell: int
    grid_thw: tuple[int, int, int]
    times_s: FloatArray = field(repr=False)
    ends_s: FloatArray = field(repr=False)
    centres_s: FloatArray = field(repr=False)
    cell_s: float

    def __post_init__(self) -> None:
        cells = self.grid_thw[0]
        if cells < 1:
            raise ValueError("a view has at least one cell")
        for name in ("times_s", "ends_s", "centres_s"):
            if getattr(self, name).shape != (cells,):
                raise ValueError(f"{name} must be ({cells},), got {getattr(self, name).shape}")

    @property
    def tokens_per_cell(self) -> int:
        """N = h x w."""
        return self.grid_thw[1] * self.grid_thw[2]

    @property
    def tokens(self) -> int:
        """T x N, before any pruning."""
        return math.prod(self.grid_thw)

    @property
    def stop_cell(self) -> int:
        """The first cell after the view."""
        return self.first_cell + self.grid_thw[0]


def view_of(
    times_s: FloatArray,
    ends_s: FloatArray,
    *,
    grid_hw: tuple[int, int],
    cell_frames: int,
    frame_step_s: float | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
) -> View | None:
    """The view of a video's cells that begin in [start_s, end_s); None if there is none.

    `times_s`, `ends_s` (T,): of all cells of the video. `cell_frames`: sampled frames of a cell. `frame_step_s`: seconds
    between sampled frames, needed for a video of one cell alone; else it is that of its cells. The last cell of a video
    may hold fewer frames, the last of them repeated: it ends one step after its last frame at the latest.
    """
    if len(times_s) > 1:
        cell_s = float(times_s[1] - times_s[0])
        step_s = cell_s / cell_frames
    else:
        length_s = float(ends_s[0] - times_s[0])
        step_s = length_s / cell_frames if frame_step_s is None else frame_step_s
        cell_s = step_s * cell_frames
    shown = np.ceil((ends_s - times_s) / step_s * (1 - _ROUNDING) - _ROUNDING)
    frames = np.clip(shown, 1, cell_frames)
    # The last frame of a cell that is not full counts again until it is.
    last = times_s + (frames - 1) * step_s
    centres_s = (times_s + last) / 2
    begin = 0 if start_s is None else int(np.searchsorted(times_s, start_s - _ROUNDING, side="left"))
    stop = len(times_s) if end_s is None else int(np.searchsorted(times_s, end_s - _ROUNDING, side="left"))
    if stop <= begin:
        return None
    return View(
        first_cell=begin,
        grid_thw=(stop - begin, *grid_hw),
        times_s=times_s[begin:stop],
        ends_s=ends_s[begin:stop],
        centres_s=centres_s[begin:stop],
        cell_s=cell_s,
    )
