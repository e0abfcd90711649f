"""Captions as questions: one per window of time of each stored video, with a prompt template instead of a question."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from echoprune.errors import ConfigError
from echoprune.question import Question
from echoprune.store import TokenStore

# Ids count milliseconds, and no sampling has cells shorter than this.
LEAST_WINDOW_S = 0.01
_WINDOW = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(s|m|min|h|)", re.IGNORECASE)
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_window(text: str) -> float:
    """Seconds of a window written as "30s", "2m", "1h" or "1.5" (seconds). Raises ConfigError for anything else."""
    match = _WINDOW.fullmatch(text.strip())
    window_s = float(match[1]) * _UNITS_S[match[2].lower()] if match else math.nan
    if not _is_window(window_s):
        raise ConfigError(
            f"window {text!r} is no length of time of at least {LEAST_WINDOW_S} s: give 30s, 2m, 1h, or seconds"
        )
    return window_s


def caption_questions(
    store: TokenStore, *, window_s: float, template: str, videos: Sequence[str] | None
) -> Iterator[Question]:
    """One question per window [k window_s, (k + 1) window_s) of each video, videos by uri, windows in time.

    Windows reach up to the end of what is stored, the last one is shorter; whether anything is stored within one is
    not looked at. `template`: name of the prompt template. `videos`: ids, uris, paths or file names, each taken
    once; None for all that did not fail. Raises ConfigError for a window that is none and for a video that
    failed, StoreError for one that is not there.
    """
    if not _is_window(window_s):
        raise ConfigError(f"window of {window_s} s: give seconds, at least {LEAST_WINDOW_S}")
    # Checked here, not at the first window: a generator would say it too late.
    return _windows(_videos(store, videos), window_s, template)


def _videos(store: TokenStore, videos: Sequence[str] | None) -> list[tuple[str, float]]:
    """(id, seconds covered) of the videos meant, by uri."""
    table = store.videos()
    wanted = None if videos is None else {store.resolve(video) for video in videos}
    found = []
    columns = ("video_id", "uri", "status", "covered_s", "error_class")
    for video_id, uri, status, covered_s, error in zip(
        *(table[name].to_pylist() for name in columns), strict=True
    ):
        if wanted is not None and video_id not in wanted:
            continue
        if status != "failed":
            found.append((video_id, covered_s or 0.0))
        elif wanted is not None:
            raise ConfigError(
                f"video {uri} failed ({error}) and has no tokens: leave it out, or index it again"
            )
    return found


def _windows(videos: list[tuple[str, float]], window_s: float, template: str) -> Iterator[Question]:
    for video_id, covered_s in videos:
        # A remainder below half a millisecond is rounding of the sum of cells, not a window.
        for k in range(math.ceil((covered_s - 0.0005) / window_s)):
            start_s = k * window_s
            yield Question(
                question_id=f"{video_id}-{round(start_s * 1000):09d}",
                video=video_id,
                question="",
                prompt=template,
                kind="caption",
                start_s=start_s,
                end_s=min((k + 1) * window_s, covered_s),
            )


def _is_window(window_s: float) -> bool:
    return math.isfinite(window_s) and window_s >= LEAST_WINDOW_S
