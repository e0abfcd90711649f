"""One video scanned and its time grid fixed, before anything is decoded: the start of indexing and of looking again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from echoprune.data import TimeGrid, VideoInfo
from echoprune.errors import MediaError
from echoprune.probe import scan_video
from echoprune.sample import Sampling, time_grid
from echoprune.sources import content_id
from echoprune.time_jumps import TIME_JUMP


class Sizes(Protocol):
    """How frames are sized and cut into tokens; every `FrameLayout` says so."""

    @property
    def cell_frames(self) -> int: ...  # noqa: D102 - see FrameLayout
    def frame_hw(self, height: int, width: int) -> tuple[int, int]: ...  # noqa: D102
    def grid_hw(self, frame_hw: tuple[int, int]) -> tuple[int, int]: ...  # noqa: D102


@dataclass(frozen=True)
class Opened:
    """A video whose packets have been scanned and whose time grid is fixed; nothing is decoded yet."""

    info: VideoInfo
    grid: TimeGrid
    content_id: str

    @property
    def error(self) -> MediaError | None:
        """Why the video is partial even if it decodes to its end ("truncated", "time_jump"); None if it is whole."""
        if not self.info.incomplete:
            return None
        kind = "time_jump" if self.info.incomplete.startswith(TIME_JUMP) else "truncated"
        return MediaError(f"{self.info.uri}: {self.info.incomplete}", stage="probe", kind=kind)


def open_source(uri: str, sampling: Sampling, *, sizes: Sizes, segment_cells: int, path: str = "") -> Opened:
    """The Opened video at `uri`, or at `path` if its file lies elsewhere. Raises MediaError (stage "probe")."""
    info = scan_video(uri, path=path)
    frame_hw = sizes.frame_hw(info.height, info.width)
    grid = time_grid(
        info,
        sampling,
        frame_hw=frame_hw,
        grid_hw=sizes.grid_hw(frame_hw),
        cell_frames=sizes.cell_frames,
        segment_cells=segment_cells,
    )
    return Opened(info, grid, content_id(path or uri))
