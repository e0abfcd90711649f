"""A picture of what smaller indexes would have lost: overlap and change of log-probability over the ratios."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from echoprune import page
from echoprune.overlap import RatioLoss

_HEIGHT_IN = 5.6
_LEFT_IN = 1.1


def draw_overlap(losses: Sequence[RatioLoss], path: str | Path, *, title: str) -> None:
    """Writes the picture to `path` as PNG. Raises ConfigError where it cannot be written."""
    figure = page.new_page(_HEIGHT_IN)
    page.put_text(figure, page.fit_title(title), left=page.MARGIN_IN, top=0.22, size=13, bold=True)
    width = page.WIDTH_IN - _LEFT_IN - page.MARGIN_IN
    upper = page.place_axes(figure, left=_LEFT_IN, top=0.75, width=width, height=1.9)
    lower = page.place_axes(figure, left=_LEFT_IN, top=3.0, width=width, height=1.9)
    places = list(range(len(losses)))
    for axes, field, within, label in (
        (upper, "overlap", "overlap_within", "share of the exact choice"),
        (lower, "logprob_change", "logprob_within", "change of log p(answer)"),
    ):
        heights = [getattr(each, field) for each in losses]
        reach = [getattr(each, within) for each in losses]
        axes.errorbar(
            places, heights, yerr=reach, marker="o", capsize=4, color=page.NOVELTY_COLOUR, label="mean, 95 %"
        )
        axes.set_xticks(places, [each.keep for each in losses])
        axes.set_xlim(-0.5, len(losses) - 0.5)
        axes.set_ylabel(label)
        axes.grid(visible=True, alpha=0.3)
    certified = [each.certified for each in losses]
    upper.plot(
        places, certified, linestyle="--", marker="x", color=page.ANCHOR_COLOUR, label="certified questions"
    )
    upper.set_ylim(-0.04, 1.06)
    upper.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    lower.axhline(0, color=page.QUIET, linewidth=0.8)
    lower.set_xlabel("--keep of the index")
    page.write_png(figure, path)
