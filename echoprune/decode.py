"""Frames of a video, sampled by a time grid, cut into segments: which decoder, how to go on, where to cut.

Decoding is native; upright; then resized by the processor's own filter. Every frame returned is the one whose
presentation time the grid names. Nothing here keeps more than one segment of resized frames.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from echoprune import decode_decord, decode_pyav
from echoprune.data import Frames, IntArray, TimeGrid, VideoInfo
from echoprune.errors import ConfigError, MediaError
from echoprune.resize import Resample, resize_frames

_log = logging.getLogger(__name__)

DECODERS = ("auto", "decord", "pyav")

_Pictures = Iterator[tuple[int, npt.NDArray[np.uint8], int]]


def decode(
    info: VideoInfo,
    grid: TimeGrid,
    *,
    decoder: str = "auto",
    first_cell: int = 0,
    stop_cell: int | None = None,
    resample: Resample = "bicubic",
    threads: int = 1,
) -> Iterator[Frames]:
    """Segments of `grid.segment_cells` cells, from `first_cell` up to but without `stop_cell`; the last may be shorter.

    The video's last cell is filled by repeating its last frame. "auto" takes decord where it is exact, its memory
    bounded and no frame of the video damaged, and PyAV elsewhere. The choice depends on the file alone, so that
    every span of a video is decoded alike. Raises ConfigError for an unknown decoder; MediaError (stage "decode")
    where decoding ends early, after a shorter `Frames` with the complete cells up to there; with "decord" also, at
    once, where decord is not exact (kind "decoder_unfit") or a frame is damaged ("decode_failed").
    """
    if decoder not in DECODERS:
        raise ConfigError(f"--decoder is {decoder!r}; give one of {', '.join(DECODERS)}")
    stop = grid.cells if stop_cell is None else stop_cell
    if not 0 <= first_cell < stop <= grid.cells:
        raise ValueError(f"cells {first_cell} to {stop} are not within the {grid.cells} of the video")
    per_cell = grid.cell_frames
    name, source = _source(info, grid, first_cell, stop, decoder=decoder, threads=threads)
    shown = _Shown(info, grid, resample)
    cell = first_cell
    while cell < stop:
        pts = _frame_pts(grid, cell, min(cell + grid.segment_cells, stop))
        pixels = np.empty((len(pts), *grid.frame_hw, 3), np.uint8)
        done = damaged = 0
        try:
            for done, at in enumerate(pts):
                damaged += shown.advance(source, int(at))
                pixels[done] = shown.pixels
        except MediaError as error:
            if name == "decord" and decoder == "auto":
                # Before its first picture: decord gives all of them or none.
                _log.debug("%s; PyAV decodes it", error)
                name, source = _source(info, grid, cell, stop, decoder="pyav", threads=threads)
                continue
            complete = done // per_cell
            if complete:
                yield Frames(pixels[: complete * per_cell], cell, per_cell, name, damaged)
            raise
        yield Frames(pixels, cell, per_cell, name, damaged)
        cell += len(pts) // per_cell


def spans(info: VideoInfo, grid: TimeGrid, *, parts: int, decoder: str = "auto") -> list[tuple[int, int]]:
    """Up to `parts` runs (first_cell, stop_cell) that cover all cells in order, for several decoders of one video.

    Cut at segment boundaries, of those near an even division where the fewest frames precede the first sample since
    the last clean cut point. One run where seeking is not exact, where cutting would mean decoding all of the run
    before again, and where `decoder` may take decord, which decodes the whole of a short video to trust it. Decoding
    the runs one after another gives the same frames and segments as decoding the whole.
    """
    if parts < 1:
        raise ValueError(f"parts must be at least 1, got {parts}")
    if info.container not in decode_pyav.SEEKABLE or (decoder != "pyav" and decode_decord.may_take(info)):
        return [(0, grid.cells)]
    edges = [0]
    for part in range(1, parts):
        even = part * grid.segments / parts
        reach = max(1.0, grid.segments / parts / 4)
        near = [b for b in range(1, grid.segments) if abs(b - even) <= reach and b > edges[-1]]
        if not near:
            continue
        lead = {b: decode_pyav.lead_frames(info, int(grid.cell_pts[b * grid.segment_cells])) for b in near}
        best = min(near, key=lambda b: (lead[b], abs(b - even)))
        before, at = (int(grid.cell_pts[b * grid.segment_cells]) for b in (edges[-1], best))
        if lead[best] < int(np.searchsorted(info.pts, at)) - int(np.searchsorted(info.pts, before)):
            edges.append(best)
    cells = [b * grid.segment_cells for b in edges] + [grid.cells]
    return list(pairwise(cells))


class _Shown:
    """The resized picture on screen while a source of pictures is walked through."""

    def __init__(self, info: VideoInfo, grid: TimeGrid, resample: Resample) -> None:
        self.pixels = np.empty((0, 0, 3), np.uint8)
        self._uri = info.uri
        self._hw = grid.frame_hw
        self._resample: Resample = resample
        self._pts: int | None = None
        self._damaged = 0

    def advance(self, source: _Pictures, pts: int) -> int:
        """Go to the picture at `pts`; 1 if it is damaged, else 0. A repeated time reuses the picture."""
        if pts == self._pts:
            return self._damaged
        came, picture, damaged = next(source)
        if came != pts:
            raise MediaError(
                f"{self._uri}: the decoder gave the frame of tick {came} for tick {pts}; use --decoder pyav",
                stage="decode",
                kind="decode_failed",
            )
        self.pixels = resize_frames(picture[None], self._hw, resample=self._resample)[0]
        self._pts, self._damaged = pts, damaged
        return damaged


def _source(
    info: VideoInfo, grid: TimeGrid, first_cell: int, stop_cell: int, *, decoder: str, threads: int
) -> tuple[str, _Pictures]:
    wanted = np.unique(_frame_pts(grid, first_cell, stop_cell))
    if decoder == "decord" or (decoder == "auto" and decode_decord.may_take(info)):
        return "decord", decode_decord.pictures(info, wanted, threads=threads)
    # Of the whole video, so that what is decoded of it does not depend on how it is cut.
    sampled = np.unique(grid.frame_pts)
    return "pyav", decode_pyav.pictures(info, wanted, sampled=sampled, threads=threads)


def _frame_pts(grid: TimeGrid, first_cell: int, stop_cell: int) -> IntArray:
    """Time stamps of all frames of the cells, the last frame of the video repeated to fill its cell."""
    index = np.arange(first_cell * grid.cell_frames, stop_cell * grid.cell_frames)
    return grid.frame_pts[np.minimum(index, grid.frames - 1)]
