"""The page that pictures are drawn on: places in inches, colours, text that fits, and a PNG at the end.

Matplotlib's object interface on the Agg canvas: no window, no global figure, safe in any thread. Colours are
those of Okabe and Ito, told apart by colour-blind readers.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from echoprune.errors import ConfigError

ANCHOR_COLOUR = "#D55E00"
NOVELTY_COLOUR = "#0072B2"
KEPT_COLOUR = "#56B4E9"
INK = "#262626"
QUIET = "#6E6E6E"

DPI = 110
WIDTH_IN = 12.0
MARGIN_IN = 0.3
HEADER_IN = 0.95
CLOCK_FROM_S = 180  # below that, times are told in seconds
_TITLE_CHARACTERS = 84  # what fits the width in 13 points


def new_page(height_in: float) -> Figure:
    """An empty white page, `WIDTH_IN` wide."""
    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def write_png(figure: Figure, path: str | Path) -> None:
    """Writes the page to `path`; an existing file is replaced. Raises ConfigError where none can be written."""
    try:
        # Without the library's version in it, the same picture is the same file.
        figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"cannot write the picture {path}: {reason}; name a file in a folder that can be written"
        ) from error


def place_axes(figure: Figure, *, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches from the upper left corner."""
    page_width, page_height = figure.get_size_inches()
    bottom = page_height - top - height
    return figure.add_axes(
        (left / page_width, bottom / page_height, width / page_width, height / page_height)
    )


def put_text(
    figure: Figure, text: str, *, left: float, top: float, size: float, colour: str = INK, bold: bool = False
) -> None:
    """Writes one line whose upper left corner is at a place given in inches from the upper left corner."""
    page_width, page_height = figure.get_size_inches()
    figure.text(
        left / page_width,
        1 - top / page_height,
        text,
        fontsize=size,
        color=colour,
        fontweight="bold" if bold else "normal",
        va="top",
        parse_math=False,  # a file name may hold dollar signs
    )


def line_legend(owner: Figure | Axes, entries: list[Patch], *, place: tuple[float, float]) -> None:
    """One line of `entries` that ends, and hangs, at `place`, fractions of the owner's width and height."""
    owner.legend(
        handles=entries,
        loc="upper right",
        bbox_to_anchor=place,
        ncols=len(entries),
        frameon=False,
        fontsize=9,
        labelcolor=QUIET,
        borderaxespad=0,
        borderpad=0,
        handlelength=1.2,
        columnspacing=1.6,
    )


def put_header(figure: Figure, *, title: str, kept: int, tokens: int, of: str) -> None:
    """Writes the title and, below it, how many tokens of what were kept, in the upper `HEADER_IN` of the page."""
    put_text(figure, fit_title(title), left=MARGIN_IN, top=0.22, size=13, bold=True)
    says = f"{kept:,} of {tokens:,} tokens of {of} kept ({100 * kept / tokens:.1f} %)"
    put_text(figure, says, left=MARGIN_IN, top=0.54, size=10, colour=QUIET)


def fit_title(title: str) -> str:
    """`title` cut in the middle to the width of the page, characters that the font lacks shown as boxes."""
    if len(title) > _TITLE_CHARACTERS:
        half = _TITLE_CHARACTERS // 2 - 1
        title = f"{title[:half]} … {title[-half:]}"
    return "".join(c if ord(c) in _glyphs() else "□" for c in title)


@cache
def _glyphs() -> frozenset[int]:
    bold = font_manager.FontProperties(family="DejaVu Sans", weight="bold")
    return frozenset(font_manager.get_font(font_manager.findfont(bold)).get_charmap())


def clock(time_s: float, *, tenths: bool = False) -> str:
    """Time as h:min:s ("0:03:07"); with `tenths` as seconds ("12.5 s") below CLOCK_FROM_S."""
    if tenths and time_s < CLOCK_FROM_S:
        return f"{time_s:.1f} s"
    minutes, seconds = divmod(int(time_s), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
