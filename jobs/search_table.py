"""What people see of a search: a table of moments, and what was looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jobs.progress import shown


def show(found: Sequence[dict[str, Any]]) -> None:
    """Prints the moments of a search, best first of each kind."""
    from rich.console import Console
    from rich.table import Table

    # Names and texts may hold brackets, which rich would take for its markup.
    console = Console(markup=False, emoji=False, highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("video", overflow="fold")
    table.add_column("moment", no_wrap=True)
    table.add_column("matched", overflow="fold", ratio=1)
    for row in found:
        name = (row["uri"] or "").rsplit("/", 1)[-1]
        what = f"tokens at {row['t']},{row['h']},{row['w']}" if row["kind"] == "tokens" else row["snippet"]
        table.add_row(
            str(row["rank"]),
            f"{row['score']:.3g}" if row["kind"] == "text" else f"{row['score']:.3f}",
            shown(name),
            moment_text(row["start_s"], row["end_s"]),
            shown(what),
        )
    console.print(table)


def moment_text(start_s: float | None, end_s: float | None) -> str:
    """A stretch of time as 1:05-1:08, whole seconds that hold it all; an open end is left out, "all" without either."""
    if start_s is None and end_s is None:
        return "all"
    # A thousandth is rounding: 8.0000001 ends at 8.
    start = "" if start_s is None else _clock(math.floor(start_s + 1e-3))
    return f"{start}-{'' if end_s is None else _clock(math.ceil(end_s - 1e-3))}"


def _clock(seconds: int) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe(stat: dict[str, Any]) -> str:
    """What was looked at, in one line."""
    if stat["kind"] == "text":
        line = f"text: {stat['found']} found in {_count(stat['rows'], 'row')} of {_count(stat['folders'], 'folder')}"
        if stat["of_other_stores"]:
            line += f"; {_count(stat['of_other_stores'], 'match', 'matches')} left out, about videos that are not in STORE"
        return shown(line + (f"; index made in {stat['index']}" if stat["index_made"] else ""))
    line = (
        f"tokens: {stat['cells_opened']:,} of {_count(stat['cells'], 'cell')} opened, "
        f"{_count(stat['tokens_scored'], 'token')} in {_count(stat['row_groups_opened'], 'row group')}; "
    )
    if stat["exact"]:
        return line + "exact"
    return (
        line
        + f"not exact: cells not opened may score up to {stat['unopened_bound']:.3f}; raise --max-row-groups"
    )


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"
