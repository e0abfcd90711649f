"""Pictures of what was kept of one video: a contact sheet of cells, and novelty over time.

Kept tokens keep their colour, pruned ones fade to grey; cells that were kept whole (anchors) have an orange
frame. Nothing here decodes or scores: frames, masks and numbers come in, a PNG comes out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from echoprune import page
from echoprune.data import FloatArray, IntArray
from echoprune.timeline import TIMELINE_IN, BoolArray, Timeline, draw_timeline, mark_shown

ByteArray = npt.NDArray[np.uint8]

_GAP_IN = 0.14
_CAPTION_IN = 0.27  # room for one line of 8 points below each cell


def draw_kept(
    frames: ByteArray,
    kept_mask: BoolArray,
    times_s: FloatArray,
    path: str | Path,
    *,
    title: str,
    anchor: BoolArray | None = None,
    columns: int = 4,
) -> None:
    """Writes a PNG: one picture per given cell, kept tokens in colour, pruned ones grey, with its time.

    `frames` uint8 (T, H, W, 3) RGB, T >= 1, a frame of each cell to be shown; `kept_mask` bool (T, h, w), the
    token grid over the whole frame; `times_s` (T,) seconds; `anchor` bool (T,), cells with an orange frame,
    none if left out. An existing file is replaced.
    """
    anchor = np.zeros(len(frames), bool) if anchor is None else anchor
    _check_sheet(frames, kept_mask, times_s, anchor, columns=columns)
    figure = page.new_page(page.HEADER_IN + _sheet_height(frames, columns=columns) + page.MARGIN_IN)
    kept, tokens = int(kept_mask.sum()), kept_mask.size
    page.put_header(figure, title=title, kept=kept, tokens=tokens, of="the cells shown")
    _draw_sheet(figure, frames, kept_mask, times_s, anchor, columns=columns)
    page.write_png(figure, path)


def draw_novelty(
    times_s: FloatArray,
    mean_novelty: FloatArray,
    *,
    kept_per_cell: IntArray,
    anchor: BoolArray,
    tokens_per_cell: int,
    path: str | Path,
    title: str = "",
) -> None:
    """Writes a PNG: mean novelty of each cell over time, and below it how many of its tokens were kept.

    `times_s` (T,) seconds, ascending, T >= 1; `mean_novelty` (T,), NaN where a cell has no past to be compared
    with (the line has a gap there); `kept_per_cell` (T,) in 0..`tokens_per_cell`; `anchor` bool (T,).
    """
    timeline = Timeline(times_s, mean_novelty, kept_per_cell, anchor, tokens_per_cell)
    figure = page.new_page(page.HEADER_IN + TIMELINE_IN)
    _put_header(figure, timeline, title=title)
    draw_timeline(figure, timeline, top_in=page.HEADER_IN)
    page.write_png(figure, path)


def draw_video(
    frames: ByteArray,
    kept_mask: BoolArray,
    *,
    shown_cells: IntArray,
    times_s: FloatArray,
    mean_novelty: FloatArray,
    kept_per_cell: IntArray,
    anchor: BoolArray,
    path: str | Path,
    title: str,
    columns: int = 4,
) -> None:
    """Writes one PNG of a whole video: the contact sheet of some cells above, the timeline of all cells below.

    `frames` uint8 (S, H, W, 3) and `kept_mask` bool (S, h, w) belong to the cells `shown_cells` (S,), indices
    into the T cells of `times_s`, `mean_novelty`, `kept_per_cell` and `anchor`, as in `draw_novelty`; they are
    marked on the timeline.
    """
    timeline = Timeline(times_s, mean_novelty, kept_per_cell, anchor, int(kept_mask[0].size))
    if shown_cells.shape != (len(frames),) or not np.all((shown_cells >= 0) & (shown_cells < len(times_s))):
        raise ValueError(
            f"shown_cells must be ({len(frames)},) indices below {len(times_s)}, got {shown_cells}"
        )
    _check_sheet(frames, kept_mask, times_s[shown_cells], anchor[shown_cells], columns=columns)
    timeline_top = page.HEADER_IN + _sheet_height(frames, columns=columns) + 0.15
    figure = page.new_page(timeline_top + TIMELINE_IN)
    _put_header(figure, timeline, title=title)
    _draw_sheet(figure, frames, kept_mask, times_s[shown_cells], anchor[shown_cells], columns=columns)
    novelty_axes = draw_timeline(figure, timeline, top_in=timeline_top)
    mark_shown(novelty_axes, timeline, shown_cells)
    page.write_png(figure, path)


def fade_pruned(frames: ByteArray, kept_mask: BoolArray) -> ByteArray:
    """uint8 (T, H, W, 3): `frames` with the tokens that `kept_mask` (T, h, w) leaves out turned to pale grey.

    A pixel belongs to the token at floor(y h / H), floor(x w / W); kept pixels come back unchanged.
    """
    _, height, width, _ = frames.shape
    rows = np.arange(height) * kept_mask.shape[1] // height
    columns = np.arange(width) * kept_mask.shape[2] // width
    kept = kept_mask[:, rows][:, :, columns, None]
    grey = frames @ np.array([0.299, 0.587, 0.114], np.float32)
    # A third of the contrast, moved towards white: shapes can still be made out, nothing competes with colour.
    pale = np.rint(172 + 0.3 * grey)[..., None].astype(np.uint8)
    return np.where(kept, frames, pale)


def _check_sheet(
    frames: ByteArray, kept_mask: BoolArray, times_s: FloatArray, anchor: BoolArray, *, columns: int
) -> None:
    count = len(frames)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or count == 0:
        raise ValueError(f"frames must be uint8 (T, H, W, 3) with T > 0, got {frames.dtype} {frames.shape}")
    if kept_mask.ndim != 3 or len(kept_mask) != count or kept_mask.dtype != np.bool_:
        raise ValueError(f"kept_mask must be bool ({count}, h, w), got {kept_mask.dtype} {kept_mask.shape}")
    if times_s.shape != (count,) or anchor.shape != (count,):
        raise ValueError(f"times_s {times_s.shape} and anchor {anchor.shape} must both be ({count},)")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")


def _put_header(figure: Figure, timeline: Timeline, *, title: str) -> None:
    tokens = timeline.tokens_per_cell * len(timeline.times_s)
    page.put_header(figure, title=title, kept=int(timeline.kept.sum()), tokens=tokens, of="the video")


def _sheet_key(figure: Figure, *, anchors: bool) -> None:
    entries = [
        Patch(facecolor="none", label="in colour: kept"),
        Patch(facecolor="#CFCFCF", label="pale grey: pruned"),
        Patch(facecolor="white", edgecolor=page.ANCHOR_COLOUR, linewidth=2, label="anchor: cell kept whole"),
    ]
    page_width, page_height = figure.get_size_inches()
    place = (1 - page.MARGIN_IN / page_width, 1 - 0.54 / page_height)
    page.line_legend(figure, entries[: 3 if anchors else 2], place=place)


def _panel_size(frames: ByteArray, *, columns: int) -> tuple[float, float]:
    """(width, height) in inches of one cell's picture; tall frames are made narrower than their column."""
    width = (page.WIDTH_IN - 2 * page.MARGIN_IN - (columns - 1) * _GAP_IN) / columns
    return width, width * min(frames.shape[1] / frames.shape[2], 1.25)


def _sheet_height(frames: ByteArray, *, columns: int) -> float:
    rows = -(-len(frames) // columns)
    return rows * (_panel_size(frames, columns=columns)[1] + _CAPTION_IN + _GAP_IN)


def _draw_sheet(
    figure: Figure,
    frames: ByteArray,
    kept_mask: BoolArray,
    times_s: FloatArray,
    anchor: BoolArray,
    *,
    columns: int,
) -> None:
    _sheet_key(figure, anchors=bool(anchor.any()))
    width, height = _panel_size(frames, columns=columns)
    pictures = fade_pruned(frames, kept_mask)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        left = page.MARGIN_IN + column * (width + _GAP_IN)
        top = page.HEADER_IN + row * (height + _CAPTION_IN + _GAP_IN)
        axes = page.place_axes(figure, left=left, top=top, width=width, height=height)
        axes.imshow(picture, interpolation="antialiased")
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(
                color=page.ANCHOR_COLOUR if anchor[index] else "#B8B8B8",
                linewidth=2.5 if anchor[index] else 0.6,
            )
        kept = f"{int(kept_mask[index].sum())} of {kept_mask[index].size} tokens"
        axes.set_xlabel(
            f"{page.clock(times_s[index], tenths=True)}  ·  {kept}", fontsize=8, color=page.QUIET, labelpad=3
        )
