"""A picture of an evaluation: accuracy over the number of frames at equal budget, one line a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from echoprune import page
from echoprune.evaluation import EVERYTHING, PREFIXES, ResultRow
from echoprune.evaluation_grid import ALL, DENSE
from echoprune.evaluation_table import panels

# Okabe and Ito's, but for the yellow, which is hardly seen on white, and the grey of what is no policy.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#262626")
_LEFT_IN, _LABELS_IN, _GAP_IN = 0.75, 1.15, 0.55
_TOP_IN, _PANEL_IN, _ROW_IN = 1.05, 2.75, 3.75
# Of the height of a panel: names closer than this would overlap.
_LABEL_STEP = 0.062
_LOW, _HIGH = -3.0, 103.0


def draw_evaluation(rows: Sequence[ResultRow], path: str | Path, *, reference: str) -> None:
    """Writes the picture to `path` as PNG. `reference`: the policy drawn boldest, with its 95 % interval.

    A row of panels for each budget and keep, its columns "event" and "static", or "all" where no kind begins so. Where all
    tokens fit into the budget every line has the point of the dense run; what no budget limits is dashed.
    Raises ConfigError where it cannot be written.
    """
    there = {row.group for row in rows}
    groups = [name for name in PREFIXES if name in there] or [EVERYTHING]
    pairs = panels(rows) or [(ALL, keep) for keep in dict.fromkeys(row.keep for row in rows)]
    policies = [name for name in dict.fromkeys(row.policy for row in rows) if name != DENSE]
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(policies)}
    figure = page.new_page(_TOP_IN + len(pairs) * _ROW_IN - 0.1)
    put = page.put_text
    put(figure, "Accuracy over frames at equal budget", left=page.MARGIN_IN, top=0.22, size=13, bold=True)
    note = f"{max(row.n for row in rows)} questions; band: 95 % interval of {reference}; where lines meet, all tokens fit into the budget"
    put(figure, note, left=page.MARGIN_IN, top=0.54, size=10, colour=page.QUIET)
    room = page.WIDTH_IN - _LEFT_IN - len(groups) * _LABELS_IN - (len(groups) - 1) * _GAP_IN - 0.15
    width = room / len(groups)
    frames = sorted({row.frames for row in rows})
    for line, (budget, keep) in enumerate(pairs):
        for column, group in enumerate(groups):
            left = _LEFT_IN + column * (width + _LABELS_IN + _GAP_IN)
            top = _TOP_IN + 0.2 + line * _ROW_IN
            axes = page.place_axes(figure, left=left, top=top, width=width, height=_PANEL_IN)
            own = [row for row in rows if row.group == group and row.keep == keep]
            _panel(axes, own, budget, frames=frames, colours=colours, reference=reference)
            title = f"{group} questions, budget {budget}, keep {keep}"
            axes.set_title(title, loc="left", fontsize=10, color=page.INK)
            if column == 0:
                axes.set_ylabel("% right")
            if line == len(pairs) - 1:
                axes.set_xlabel("frames of each video")
    page.write_png(figure, path)


def _panel(
    axes: Axes,
    rows: Sequence[ResultRow],
    budget: str,
    *,
    frames: Sequence[int],
    colours: dict[str, str],
    reference: str,
) -> None:
    places = {count: place for place, count in enumerate(frames)}
    ends: list[tuple[float, str, str]] = []
    whole = [row for row in rows if row.policy == DENSE and row.budget == ALL]
    fitting = [row for row in rows if row.policy == DENSE and row.budget == budget]
    if whole:
        x, y = [places[row.frames] for row in whole], [100 * row.accuracy for row in whole]
        axes.plot(x, y, color=page.QUIET, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
        ends.append((y[-1], "all tokens" if whole[-1].keep == ALL else "all stored", page.QUIET))
    for name, colour in colours.items():
        own = [row for row in rows if row.policy == name and row.budget == budget]
        if not own:
            continue
        line = sorted([*fitting, *own], key=lambda row: row.frames)
        x, y = [places[row.frames] for row in line], [100 * row.accuracy for row in line]
        bold = name == reference
        axes.plot(
            x, y, color=colour, linewidth=2.6 if bold else 1.5, marker="o", markersize=5 if bold else 3.5,
            # Below the thin ones: a line that is the same as its own is still seen in it.
            zorder=2 if bold else 3,
        )  # fmt: skip
        if bold:
            low, high = [100 * row.ci_low for row in line], [100 * row.ci_high for row in line]
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0, zorder=0)
        ends.append((y[-1], name, colour))
    axes.set_xlim(-0.15, len(frames) - 1 + 0.1)
    axes.set_ylim(_LOW, _HIGH)
    axes.set_xticks(range(len(frames)), [str(count) for count in frames])
    axes.set_yticks(range(0, 101, 20))
    axes.grid(visible=True, axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _names(axes, ends, bold=reference)


def _names(axes: Axes, ends: list[tuple[float, str, str]], *, bold: str) -> None:
    """Writes the name of each line right of its end, moved apart where they would overlap."""
    ends = sorted(ends, key=lambda end: end[0])
    wanted = [(height - _LOW) / (_HIGH - _LOW) for height, _, _ in ends]
    for (_, name, colour), at, true in zip(ends, spread(wanted, step=_LABEL_STEP), wanted, strict=True):
        weight = "bold" if name == bold else "normal"
        axes.annotate(
            name, xy=(1.0, true), xytext=(1.045, at), xycoords="axes fraction", color=colour, fontsize=9,
            fontweight=weight, va="center", annotation_clip=False,
            # From the name's left edge: from its middle a steep one would run through the names between.
            arrowprops={
                "arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)
            },
        )  # fmt: skip


def spread(heights: Sequence[float], *, step: float) -> list[float]:
    """Ascending `heights` moved as groups, each about its mean, until neighbours are `step` apart; within [0, 1] if there is room."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while (
            len(groups) > 1 and _bottom(groups[-1], step) < _bottom(groups[-2], step) + len(groups[-2]) * step
        ):
            last = groups.pop()
            groups[-1] += last
    return [_bottom(group, step) + place * step for group in groups for place in range(len(group))]


def _bottom(group: Sequence[float], step: float) -> float:
    length = (len(group) - 1) * step
    return max(0.0, min(1.0 - length, sum(group) / len(group) - length / 2))
