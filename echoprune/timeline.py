"""Novelty over time, and below it how many tokens of each cell were kept.

Up to `_STEPS` cells are drawn one by one; more are drawn in groups, by their mean and range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from echoprune import page
from echoprune.data import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]

TIMELINE_IN = 3.6
_AXIS_LEFT_IN = 1.1  # room for tick labels and the axis label
_STEPS = 600  # two pixels each; more could not be told apart


@dataclass(frozen=True)
class Timeline:
    """What is known of all T cells of one video, T >= 1.

    `times_s` (T,) float64: seconds at which they begin, ascending. `mean_novelty` (T,) float64, NaN for a cell
    that has no past to be compared with. `kept` (T,) int64: kept tokens, 0..`tokens_per_cell`. `anchor` (T,) bool.
    """

    times_s: FloatArray
    mean_novelty: FloatArray
    kept: IntArray
    anchor: BoolArray
    tokens_per_cell: int

    def __post_init__(self) -> None:
        shapes = [self.times_s.shape, self.mean_novelty.shape, self.kept.shape, self.anchor.shape]
        if len(set(shapes)) != 1 or self.times_s.ndim != 1 or len(self.times_s) == 0:
            raise ValueError(
                f"times_s, mean_novelty, kept and anchor must all be (T,) with T > 0, got {shapes}"
            )

    @property
    def edges_s(self) -> FloatArray:
        """(T + 1,) seconds: where cells begin, and where the last ends, taken to be as long as the one before."""
        last = self.times_s[-1] - self.times_s[-2] if len(self.times_s) > 1 else 1.0
        return np.append(self.times_s, self.times_s[-1] + last)


def draw_timeline(figure: Figure, timeline: Timeline, *, top_in: float) -> Axes:
    """Axes of the upper curve, novelty, after drawing both in `TIMELINE_IN` inches below `top_in`."""
    edges = timeline.edges_s
    width = page.WIDTH_IN - _AXIS_LEFT_IN - page.MARGIN_IN
    upper = page.place_axes(figure, left=_AXIS_LEFT_IN, top=top_in + 0.1, width=width, height=1.4)
    lower = page.place_axes(figure, left=_AXIS_LEFT_IN, top=top_in + 1.85, width=width, height=1.2)
    _draw_novelty(upper, timeline)
    _draw_kept(lower, timeline)
    in_seconds = edges[-1] < page.CLOCK_FROM_S
    for axes in (upper, lower):
        axes.set_xlim(edges[0], edges[-1])
        axes.xaxis.set_major_locator(MultipleLocator(_tick_step_s(float(edges[-1] - edges[0]))))
        axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8, color="#B8B8B8", labelcolor=page.QUIET)
        for side, spine in axes.spines.items():
            spine.set(visible=side in ("left", "bottom"), color="#B8B8B8")
    upper.tick_params(labelbottom=False)
    unit = "s" if in_seconds else "h:min:s"
    lower.set_xlabel(f"time from the first frame ({unit})", fontsize=9, color=page.INK)
    if not in_seconds:
        lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: page.clock(value)))
    figure.align_ylabels([upper, lower])
    return upper


def _draw_novelty(axes: Axes, timeline: Timeline) -> None:
    groups, group_edges, size = _grouped(timeline.mean_novelty, timeline.edges_s)
    filled = np.isfinite(groups).any(axis=1)
    mean, low, high = np.full((3, len(groups)), np.nan)
    mean[filled] = np.nanmean(groups[filled], axis=1)
    low[filled], high[filled] = np.nanmin(groups[filled], axis=1), np.nanmax(groups[filled], axis=1)
    if size > 1:
        axes.stairs(
            high, group_edges, baseline=low, fill=True, color=page.NOVELTY_COLOUR, alpha=0.25, linewidth=0
        )
    axes.stairs(
        mean, group_edges, baseline=None, color=page.NOVELTY_COLOUR, linewidth=1.4 if size == 1 else 1.0
    )
    axes.margins(y=0.15)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylabel("mean novelty\n(-2 to 2)", fontsize=9, color=page.INK)
    if size > 1:
        says = f"line: mean of {size} cells, band: their range"
        axes.annotate(says, (0, 1.06), xycoords="axes fraction", va="bottom", fontsize=8, color=page.QUIET)


def _draw_kept(axes: Axes, timeline: Timeline) -> None:
    edges, anchor = timeline.edges_s, timeline.anchor
    chosen, group_edges, _ = _grouped(np.where(anchor, np.nan, timeline.kept), edges)
    count = np.isfinite(chosen).sum(axis=1)
    mean = np.nansum(chosen, axis=1) / np.maximum(count, 1)
    axes.stairs(mean, group_edges, fill=True, color=page.KEPT_COLOUR, linewidth=0)
    entries = [Patch(facecolor=page.KEPT_COLOUR, label="chosen by score")]
    if anchor.any():
        # Lines of at least a pixel: an anchor of a long video would otherwise be too thin to be seen.
        points = (edges[1] - edges[0]) / (edges[-1] - edges[0]) * axes.bbox.width * 72 / page.DPI
        middles = (edges[:-1] + edges[1:])[anchor] / 2
        axes.vlines(
            middles,
            0,
            timeline.kept[anchor],
            color=page.ANCHOR_COLOUR,
            linewidth=max(points, 0.8),
            capstyle="butt",
        )
        entries.append(Patch(facecolor=page.ANCHOR_COLOUR, label="anchor: cell kept whole"))
    axes.set_ylim(0, timeline.tokens_per_cell * 1.04)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_ylabel("kept tokens\nper cell", fontsize=9, color=page.INK)
    page.line_legend(axes, entries, place=(1.0, 1.2))


def mark_shown(axes: Axes, timeline: Timeline, shown_cells: IntArray) -> None:
    """Marks the middles of `shown_cells` (S,), indices of cells, along the upper edge of the novelty axes."""
    edges = timeline.edges_s
    middles = (edges[shown_cells] + edges[shown_cells + 1]) / 2
    axes.plot(
        middles,
        np.full(len(middles), 1.0),
        "v",
        transform=axes.get_xaxis_transform(),
        color=page.INK,
        markersize=4.5,
        clip_on=False,
    )
    axes.annotate(
        "\N{BLACK DOWN-POINTING TRIANGLE} cells shown above",
        (1, 1.06),
        xycoords="axes fraction",
        ha="right",
        va="bottom",
        fontsize=8,
        color=page.QUIET,
    )


def _grouped(values: FloatArray, edges: FloatArray) -> tuple[FloatArray, FloatArray, int]:
    """(G, size) values padded with NaN, their (G + 1,) edges, and `size`: cells in a group so that G <= _STEPS."""
    size = -(-len(values) // _STEPS)
    padded = np.full(-(-len(values) // size) * size, np.nan)
    padded[: len(values)] = values
    return padded.reshape(-1, size), np.append(edges[:-1:size], edges[-1]), size


def _tick_step_s(length_s: float) -> float:
    """Seconds between ticks: the least step that people count in which gives at most ten of them."""
    steps = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
    return next((step for step in steps if length_s / step <= 10), length_s / 8)
