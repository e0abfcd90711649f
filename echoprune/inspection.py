"""What was kept of one video, as a stranger would want to see it: moments in text, and a picture over its frames."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from echoprune.data import IntArray
from echoprune.decode import decode
from echoprune.errors import StoreError
from echoprune.index import sampling_of
from echoprune.opening import open_source
from echoprune.picture import draw_video
from echoprune.sources import Source, content_id
from echoprune.staging import local_copy
from echoprune.store import TokenStore


@dataclass(frozen=True)
class VideoView:
    """One stored video: its row, and per cell (T,) times, mean novelty, tokens kept and whether it is an anchor.

    `kept_mask` bool (T, h, w).
    """

    row: dict[str, Any]
    times_s: npt.NDArray[np.float64]
    end_s: npt.NDArray[np.float64]
    mean_novelty: npt.NDArray[np.float32]
    kept: IntArray
    anchor: npt.NDArray[np.bool_]
    kept_mask: npt.NDArray[np.bool_]

    def moments(self, count: int) -> IntArray:
        """At most `count` cells, ascending: the first, then the most novel one of each of equal stretches."""
        cells = len(self.times_s)
        if cells <= count:
            return np.arange(cells, dtype=np.int64)
        stretches = np.array_split(np.arange(1, cells), count - 1) if count > 1 else []
        best = [stretch[np.argmax(self.mean_novelty[stretch])] for stretch in stretches]
        return np.array([0, *best], dtype=np.int64)


@dataclass(frozen=True)
class _StoredSizes:
    """The sizes that a video was indexed with, for all frames: no model is at hand."""

    cell_frames: int
    _frame_hw: tuple[int, int]
    _grid_hw: tuple[int, int]

    def frame_hw(self, height: int, width: int) -> tuple[int, int]:
        return self._frame_hw

    def grid_hw(self, frame_hw: tuple[int, int]) -> tuple[int, int]:
        return self._grid_hw


def view_video(store: TokenStore, video: str) -> VideoView:
    """The view of a video named by id, uri or file name. Raises StoreError if it is not there or has failed."""
    tokens = store.tokens(video)
    video_id = store.resolve(video)
    videos = store.videos()
    row: dict[str, Any] = videos.filter(pc.equal(videos["video_id"], video_id)).to_pylist()[0]
    cells = store.cells(video)
    mask = np.zeros(tokens.grid_thw, dtype=np.bool_)
    mask.reshape(-1)[tokens.flat_index.numpy()] = True
    return VideoView(
        row=row,
        times_s=cells["time_s"].to_numpy(),
        end_s=cells["end_s"].to_numpy(),
        mean_novelty=cells["mean_novelty"].to_numpy(),
        kept=cells["kept"].to_numpy().astype(np.int64),
        anchor=cells["anchor"].to_numpy(zero_copy_only=False),
        kept_mask=mask,
    )


def draw_view(store: TokenStore, view: VideoView, path: str | os.PathLike[str], *, shown: int = 12) -> None:
    """Writes a PNG: kept tokens over the frames of `shown` moments, and novelty over time below.

    The video is opened again for its frames. Raises StoreError when it is not the file that was indexed any more,
    and MediaError when it cannot be read.
    """
    row = view.row
    with local_copy(Source(row["uri"], row.get("size_bytes"), row.get("etag"))) as copied:
        _draw(store, view, path, copied=copied, shown=shown)


def _draw(
    store: TokenStore, view: VideoView, path: str | os.PathLike[str], *, copied: str, shown: int
) -> None:
    row = view.row
    if content_id(copied or row["uri"]) != row["content_id"]:
        raise StoreError(
            f"{row['uri']} is not the file that was indexed: its content differs; index it into another store"
        )
    sizes = _StoredSizes(
        store.settings.cell_frames, (row["frame_h"], row["frame_w"]), (row["grid_h"], row["grid_w"])
    )
    opened = open_source(
        row["uri"],
        sampling_of(store.settings),
        sizes=sizes,
        segment_cells=store.settings.segment_cells,
        path=copied,
    )
    info, grid = opened.info, opened.grid
    if grid.cells < row["cells"] or not np.array_equal(grid.cell_times_s[: row["cells"]], view.times_s):
        raise StoreError(
            f"{row['uri']} is not the file that was indexed: its times differ; index it into another store"
        )
    chosen = view.moments(shown)
    frames = [
        next(decode(info, grid, decoder="pyav", first_cell=int(t), stop_cell=int(t) + 1)).pixels[0]
        for t in chosen
    ]
    novelty = view.mean_novelty.astype(np.float64)
    novelty[0] = np.nan  # the first cell has no past to differ from
    draw_video(
        np.stack(frames),
        view.kept_mask[chosen],
        shown_cells=chosen,
        times_s=view.times_s,
        mean_novelty=novelty,
        kept_per_cell=view.kept,
        anchor=view.anchor,
        path=Path(path),
        title=Path(row["uri"]).name,
    )
