"""Whether this process was told to end: noted by its signal handlers, looked at wherever a run waits.

What a handler raises may be lost: Python only prints what is raised in a destructor or a callback, and Ray may hand it on as an
error of its own. A run whose end was asked for ends at the next look.
"""

from __future__ import annotations

_signals: list[int] = []


def note(signum: int) -> None:
    """Takes note of a signal; called by its handler before that raises KeyboardInterrupt."""
    _signals.append(signum)


def last() -> int | None:
    """The signal that came last, None without one."""
    return _signals[-1] if _signals else None


def check() -> None:
    """Raises KeyboardInterrupt if a signal was noted."""
    if _signals:
        raise KeyboardInterrupt


def forget() -> None:
    """As if none had come."""
    _signals.clear()
