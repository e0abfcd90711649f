"""What the demo shows as tables: what was kept of each video, and answers against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.progress import shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLUMNS = (
    "question_id",
    "video",
    "question",
    "options",
    "answer",
    "start_s",
    "end_s",
    "status",
    "raw_text",
    "parsed_choice",
    "correct",
    "evidence",
    "event_start_s",
    "event_end_s",
)


def show_kept(store: Path) -> None:
    """Prints one row a video: how it is stored, and how many of its tokens."""
    from echoprune.store import open_store

    table = _table(("video", "status", "codec", "decoder"), ("seconds", "cells", "grid", "tokens", "kept"))
    for row in open_store(store).videos().to_pylist():
        name = shown(Path(row["uri"]).name)
        if row["status"] == "failed":
            table.add_row(name, "failed", *["-"] * 7)
            continue
        kept = f"{row['kept']:,} ({row['kept'] / row['tokens']:.0%})"
        grid = f"{row['grid_h']}x{row['grid_w']}"
        sizes = (f"{row['covered_s']:.1f}", str(row["cells"]), grid, f"{row['tokens']:,}")
        table.add_row(name, row["status"], row["codec"], row["decoder"], *sizes, kept)
    _console().print(table)


def show_answers(answers: Path) -> list[str]:
    """Prints one row a question: answer and truth, evidence and event; returns what it comes to, in lines."""
    from echoprune.answer_store import open_answers
    from echoprune.evaluation import NEAR_S

    broken = ("question", "answer", "truth")
    table = _table((*broken, "right"), ("evidence", "event"), broken=broken)
    rows = open_answers(answers).table(COLUMNS).to_pylist()
    video = None
    for row in sorted(rows, key=lambda row: row["video"]):
        # As a line of its own: a column of names would leave no room for the questions on a narrow terminal.
        if row["video"] != video:
            video = row["video"]
            table.add_row(shown(Path(video).name), style="dim")
        mark = {True: "yes", False: "no", None: "failed"}[row["correct"]]
        table.add_row(*map(shown, (_question(row), _said(row), row["answer"], mark, *_times(row))))
    _console().print(table)
    right = sum(row["correct"] is True for row in rows)
    found = [found for row in rows if row["status"] == "ok" and (found := _found(row)) is not None]
    return [
        f"{right} of {len(rows)} answers are right",
        f"{sum(found)} of {len(found)} answers about one event rest most on a moment within {NEAR_S:.0f} s of it",
    ]


def _found(row: dict[str, Any]) -> bool | None:
    """As `echoprune eval` counts it: None for a row about no event, or about several that are far apart."""
    from echoprune.evaluation import event_found

    first = row["evidence"][0] if row["evidence"] else None
    moment = (first["start_s"], first["end_s"]) if first else None
    return event_found(moment, (row["event_start_s"], row["event_end_s"]))


def _question(row: dict[str, Any]) -> str:
    text: str = row["question"]
    if row["start_s"] is not None:
        text += f" ({row['start_s']:.0f} to {row['end_s']:.0f} s)"
    return text


def _said(row: dict[str, Any]) -> str:
    """The option that was chosen, or else the text."""
    if row["status"] != "ok":
        return str(row["status"])
    place = ord(row["parsed_choice"]) - ord("A") if row["parsed_choice"] else len(row["options"])
    return str(row["options"][place] if place < len(row["options"]) else row["raw_text"])


def _times(row: dict[str, Any]) -> tuple[str, str]:
    first = row["evidence"][0] if row["evidence"] else None
    evidence = f"{first['start_s']:.1f}-{first['end_s']:.1f}" if first else "-"
    if row["event_start_s"] is None:
        return evidence, "-"
    return evidence, f"{row['event_start_s']:.1f}-{row['event_end_s']:.1f}"


def _console() -> Console:
    from rich.console import Console

    # A file name may hold brackets, which rich would take for its markup.
    return Console(markup=False, emoji=False, highlight=False)


def _table(left: tuple[str, ...], right: tuple[str, ...], *, broken: tuple[str, ...] = ()) -> Table:
    """A table whose `broken` columns may go on in a second line."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in left:
        # Whole words of the questions stay together at 80 columns.
        width = 10 if name in broken else None
        table.add_column(name, no_wrap=name not in broken, overflow="fold", min_width=width)
    for name in right:
        table.add_column(name, no_wrap=True, justify="right")
    return table
