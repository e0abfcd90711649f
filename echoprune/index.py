"""From the frames of one video to its kept tokens: encode, round, score, select, in bounded memory.

    Frames --encode--> TokenGrid --round to the store's dtype--> echo --> running top-K (spilled) --> IndexedVideo
    '------------------- segment.py -------------------------'

A plain function over an iterable of segments: a unit test, a laptop and a Ray actor run the same code. Where the
frames come from (this process, or decode actors) is not known here. Nothing here writes to a store.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch

from echoprune.data import Frames, TimeGrid
from echoprune.decode import decode
from echoprune.errors import MediaError
from echoprune.models.encoder import Encoder
from echoprune.opening import open_source
from echoprune.prune import Keep, anchor_cells
from echoprune.sample import Sampling, parse_fps
from echoprune.schema import StoreSettings
from echoprune.segment import Begun, Segments, Settled
from echoprune.sources import Source
from echoprune.spill import SpilledColumn
from echoprune.staging import local_copy
from echoprune.topk import Selection, TopK


@dataclass(frozen=True)
class CellColumns:
    """One entry per encoded cell, in order: the scalar columns of the `cells` table.

    `kept`, `t` int; `pooled` uint8 (T, 2 D): bf16 bits of the pooled unit vector, in a spill file (77 MB for three
    hours of 3,584-wide tokens); `radius` bounds the distance of the cell's unit tokens from it. `mean_novelty` is 0 in the first cell, which has no past.
    """

    time_s: npt.NDArray[np.float64]
    end_s: npt.NDArray[np.float64]
    pts_s: npt.NDArray[np.float64]
    anchor: npt.NDArray[np.bool_]
    kept: npt.NDArray[np.int32]
    mean_novelty: npt.NDArray[np.float32]
    pooled: SpilledColumn = field(repr=False)
    radius: npt.NDArray[np.float32]


@dataclass(frozen=True)
class IndexedVideo:
    """What is to be stored of one video, its tokens and pooled vectors in local spill files until `close()`.

    `cells` counts those encoded; it is less than `grid.cells` when `error` says why decoding ended early, and
    equal when it says that the decoder patched frames (status partial, both). `selection` yields the kept rows in raster-chronological order.
    """

    grid: TimeGrid
    columns: CellColumns
    selection: Selection
    cells: int
    decoder: str
    error: MediaError | None
    _files: ExitStack = field(repr=False)

    @property
    def seen(self) -> int:
        """Tokens that were encoded."""
        return self.cells * self.grid.tokens_per_cell

    @property
    def kept(self) -> int:
        """Tokens to be stored, anchors included."""
        return len(self.selection.indices)

    @property
    def covered_s(self) -> float:
        """Seconds from the first presented frame that the stored cells cover."""
        return float(self.columns.end_s[-1])

    def close(self) -> None:
        """Removes the spill files."""
        self._files.close()

    def __enter__(self) -> IndexedVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VideoIndexing:
    """One video on its way to its kept tokens: `begin` each segment, `take` what came of each, `finish`; then close it.

    `begin` asks the encoder and waits for nothing on a GPU. `take` and `finish` wait, and do what the encoder is not needed
    for: they may be called in another thread than `begin`, by one thread at a time, in the order of the segments. What is
    kept depends on that order alone.

    `time_base_s`: seconds per tick of `grid.cell_pts`. Spill files are in `spill_dir`.
    """

    def __init__(
        self,
        *,
        grid: TimeGrid,
        time_base_s: float,
        encoder: Encoder,
        settings: StoreSettings,
        spill_dir: Path,
    ) -> None:
        self.cells = 0
        self._grid, self._time_base_s = grid, time_base_s
        self._keep = Keep.parse(settings.keep)
        self._segment = Segments(encoder, settings, grid)
        self._decoders: set[str] = set()
        self._damaged: list[tuple[int, int, int]] = []  # first cell, stop cell, frames
        self._files = ExitStack()
        self._choice = _Choice(grid, self._keep, settings, spill_dir, self._files)

    def begin(self, frames: Frames) -> Begun:
        """The next segment, asked of the encoder. `cells` counts those that were begun."""
        if frames.first_cell != self.cells:
            raise RuntimeError(f"segment starts at cell {frames.first_cell}, expected {self.cells}")
        begun = self._segment.begin(frames)
        self.cells += frames.cells
        self._decoders.add(frames.decoder)
        self._damaged.append((frames.first_cell, self.cells, frames.damaged))
        return begun

    @torch.no_grad()
    def take(self, begun: Begun) -> None:
        """Chooses among the tokens of the next segment; raises MediaError of stage "encode" if they are not finite."""
        self._choice.push(self._segment.settle(begun))

    def finish(self, stopped: MediaError | None = None) -> IndexedVideo:
        """What is to be stored, whose files are closed by it from then on. `stopped`: why the video ends here, if not at its end.

        K is taken from the cells that were begun, all of which must have been taken. Raises MediaError if there were none.
        """
        if self.cells == 0:
            raise MediaError("no frame could be decoded", stage="decode", kind="no_frames")
        selection = self._choice.topk.finish(self._keep.budget(self.cells, self._grid.tokens_per_cell))
        columns = self._choice.columns(selection, time_base_s=self._time_base_s)
        found = "+".join(sorted(self._decoders))
        stopped = stopped or _damage(self._damaged, self._grid)
        files = self._files.pop_all()
        return IndexedVideo(self._grid, columns, selection, self.cells, found, stopped, files)

    def close(self) -> None:
        """Removes the spill files of a video that was not finished."""
        self._files.close()


def index_segments(
    segments: Iterable[Frames],
    *,
    grid: TimeGrid,
    time_base_s: float,
    encoder: Encoder,
    settings: StoreSettings,
    spill_dir: Path,
    ahead: int | None = None,
) -> Generator[int, None, IndexedVideo]:
    """Yields the number of cells done after each segment; returns the IndexedVideo (use `yield from`).

    `segments`: consecutive Frames of one video, from cell 0. `time_base_s`: seconds per tick of `grid.cell_pts`.
    A MediaError raised by `segments` after at least one cell ends the video there (`.error`); before the first
    cell it propagates. Frames that the decoder patched are stored, and are an `.error` of kind "damaged" if there is
    no other. Tokens that are not finite are a MediaError of stage "encode". K is taken from the cells
    that were encoded, so a video that breaks off keeps the ratio that was asked for. `ahead`: segments that the encoder
    may have been asked for before tokens of the one before are chosen; None: one on a GPU, which then is
    busy more of the time, and none elsewhere, where it would take memory alone. What is kept does not depend on it.
    """
    ahead = int(encoder.device.type == "cuda") if ahead is None else ahead
    begun: deque[Begun] = deque()
    stopped = None
    with closing(
        VideoIndexing(
            grid=grid, time_base_s=time_base_s, encoder=encoder, settings=settings, spill_dir=spill_dir
        )
    ) as video:
        source = iter(segments)
        while True:
            try:
                frames = next(source)
            except StopIteration:
                break
            except MediaError as error:
                if video.cells == 0:
                    raise
                # Without its traceback, which holds this frame, and that the last pictures.
                stopped = copy(error)
                break
            begun.append(video.begin(frames))
            if len(begun) > ahead:
                video.take(begun.popleft())
            yield video.cells
        while begun:
            video.take(begun.popleft())
        return video.finish(stopped)


class _Choice:
    """What has been chosen of a video so far, and the columns of its cells."""

    def __init__(
        self, grid: TimeGrid, keep: Keep, settings: StoreSettings, spill_dir: Path, files: ExitStack
    ) -> None:
        capacity = keep.budget(grid.cells, grid.tokens_per_cell)
        self.topk = files.enter_context(TopK(capacity=capacity, spill_dir=spill_dir))
        self._pooled = files.enter_context(SpilledColumn(spill_dir, 2 * settings.dim))
        self._grid = grid
        self._anchor = anchor_cells(grid.cell_times_s, settings.anchor_every_s)
        self._novelties: list[npt.NDArray[np.float32]] = []
        self._radii: list[npt.NDArray[np.float32]] = []
        self._cells = 0

    def push(self, segment: Settled) -> None:
        """Takes in the next segment."""
        cells = len(segment.novelty)
        pinned = np.repeat(self._anchor[self._cells : self._cells + cells], self._grid.tokens_per_cell)
        self.topk.push(segment.rank.reshape(-1), segment.rows, pinned)
        self._novelties.append(segment.novelty.mean(axis=1))
        self._pooled.append(segment.pooled)
        self._radii.append(segment.radius)
        self._cells += cells

    def columns(self, selection: Selection, *, time_base_s: float) -> CellColumns:
        """The columns of all cells, of whose tokens `selection` was kept."""
        done, grid, times = self._cells, self._grid, self._grid.cell_times_s
        kept = np.bincount(selection.indices // grid.tokens_per_cell, minlength=done).astype(np.int32)
        return CellColumns(
            time_s=times[:done],
            end_s=np.append(times[1:], grid.end_s)[:done],
            pts_s=grid.cell_pts[:done].astype(np.float64) * time_base_s,
            anchor=self._anchor[:done],
            kept=kept,
            mean_novelty=np.concatenate(self._novelties),
            pooled=self._pooled,
            radius=np.concatenate(self._radii),
        )


def _damage(segments: Sequence[tuple[int, int, int]], grid: TimeGrid) -> MediaError | None:
    """Why a video decoded to its end is partial all the same; `segments`: (first cell, stop cell, damaged frames)."""
    damaged = [segment for segment in segments if segment[2]]
    if not damaged:
        return None
    stop = damaged[-1][1]
    begin_s = float(grid.cell_times_s[damaged[0][0]])
    end_s = float(grid.cell_times_s[stop]) if stop < grid.cells else grid.end_s
    message = (
        f"frames patched by the decoder: {sum(frames for _, _, frames in damaged)}, at about {begin_s:.1f} to "
        f"{end_s:.1f} s; pictures there may be smeared, copy or convert the file again"
    )
    return MediaError(message, stage="decode", kind="damaged")


def sampling_of(settings: StoreSettings) -> Sampling:
    """The sampling that a store was made with."""
    if settings.frames is not None:
        return Sampling(frames=settings.frames)
    return Sampling(fps=parse_fps(settings.fps or "2"), max_frames=settings.max_frames)


def drain(progress: Generator[int, None, IndexedVideo]) -> IndexedVideo:
    """The IndexedVideo at the end of `index_segments`, ignoring its progress."""
    while True:
        try:
            next(progress)
        except StopIteration as stop:
            result: IndexedVideo = stop.value
            return result


def index_video(
    uri: str,
    *,
    encoder: Encoder,
    settings: StoreSettings,
    decoder: str = "auto",
    spill_dir: Path | None = None,
) -> IndexedVideo:
    """The kept tokens of one video, decoded in this process; close it (or use `with`) to remove its spill files.

    Raises MediaError when the video cannot be read at all; one that breaks off, or is shorter than it claims, has
    `.error` set.
    """
    with local_copy(Source(uri)) as path:
        opened = open_source(
            uri,
            sampling_of(settings),
            sizes=encoder.layout,
            segment_cells=settings.segment_cells,
            path=path,
        )
        indexed = drain(
            index_segments(
                decode(opened.info, opened.grid, decoder=decoder, resample=encoder.layout.resample),
                grid=opened.grid,
                time_base_s=float(opened.info.time_base),
                encoder=encoder,
                settings=settings,
                spill_dir=spill_dir or Path(tempfile.gettempdir()),
            )
        )
    return replace(indexed, error=indexed.error or opened.error)
