"""Progress of a run on standard error: a bar on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

# Seconds between two JSON lines: a weekend's run writes about 17,000 of them.
LINE_INTERVAL_S = 10.0


class Progress(Protocol):
    """Takes snapshots of the running totals (see pipelines/tally.py)."""

    def __call__(self, snapshot: dict[str, Any]) -> None:
        """Shows, or holds back, the newest totals."""
        ...


class JsonLines:
    """Writes a snapshot as one JSON line, at most every `interval_s`; `last` writes the final one regardless."""

    def __init__(self, interval_s: float = LINE_INTERVAL_S) -> None:
        self._interval_s, self._next_s = interval_s, 0.0
        self._held: dict[str, Any] | None = None

    def __call__(self, snapshot: dict[str, Any]) -> None:
        """Writes the snapshot if the last line is old enough, and holds it for `last` otherwise."""
        now = time.monotonic()
        self._held = snapshot
        if now >= self._next_s:
            self._next_s = now + self._interval_s
            self.last()

    def last(self) -> None:
        """Writes the newest snapshot unless it is out already."""
        if self._held is not None:
            rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in self._held.items()}
            sys.stderr.write(json.dumps({"event": "progress", **rounded}) + "\n")
            sys.stderr.flush()
            self._held = None


@contextmanager
def progress_on_stderr(
    unit: str = "videos",
    *,
    words: Callable[[dict[str, Any]], str] | None = None,
    begin: str = "reading the archive and the model",
) -> Iterator[Progress]:
    """A Progress for as long as the block lasts.

    Snapshots hold the number of all `unit`s under that name and of those done under `<unit>_done`; `words` says
    what stands beside the bar, `rates` of an index run if left out, and `begin` before the first snapshot.
    """
    if not sys.stderr.isatty():
        lines = JsonLines()
        yield lines
        lines.last()
        return
    from rich.console import Console

    bar = bar_on(Console(stderr=True), unit)
    task = bar.add_task("", total=1, words=begin)
    with bar:

        def show(snapshot: dict[str, Any]) -> None:
            done, total = snapshot[f"{unit}_done"], max(1, snapshot[unit])
            bar.update(task, completed=done, total=total, words=(words or rates)(snapshot))

        yield show


def bar_on(console: Console, unit: str) -> Bar:
    """A progress bar whose tasks have a field `words`; on a narrow terminal these go on in a second line."""
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    return Bar(
        BarColumn(bar_width=12),
        TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} {unit}"),
        TextColumn("{task.fields[words]}", markup=False, table_column=Column(no_wrap=False, ratio=1)),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        expand=True,
    )


def rates(snapshot: dict[str, Any]) -> str:
    """The words beside the bar: speed, tokens, failures, time left."""
    if not snapshot["tokens_seen"] and not snapshot["failed"]:
        return "starting Ray and loading the model"
    parts = [f"{snapshot['video_hours_per_hour']:.1f} h of video/h"]
    parts.append(f"{short(snapshot['tokens_seen'])} tokens -> {short(snapshot['tokens_kept'])} kept")
    if snapshot["failed"]:
        parts.append(f"{snapshot['failed']} failed")
    if snapshot["eta_s"] is not None:
        parts.append(f"{duration(snapshot['eta_s'])} left")
    return " · ".join(parts)


def shown(text: str) -> str:
    """`text` from outside (a path, a message) on one line, with characters that steer a terminal escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def short(number: float) -> str:
    """1234567 as 1.2M."""
    for unit in ("", "k", "M", "G"):
        if abs(number) < 1000:
            return f"{number:.0f}{unit}" if unit == "" or number >= 100 else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f}T"


def size(number: float) -> str:
    """Bytes in decimal units, as 1.9 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(number) < 1000 or unit == "TB":
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds in words, as 1 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 100 else f"{hours:,} h"
