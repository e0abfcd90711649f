"""Whether the pictures that a damaged clip gives are those of their times: the test clips carry their number in the picture.

Decoded as `index` does, in a process of its own, since a damaged file may end it.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from echoprune.decode import decode
from echoprune.errors import MediaError
from echoprune.opening import open_source
from echoprune.sample import Sampling
from tests.clips import CLIPS, read_index

# Containers round times to a millisecond, AVI to a frame of 40 ms.
_NEAR_S = 0.045
_JUDGE_S = 120


@dataclass(frozen=True)
class Shown:
    """Sampled pictures of one file: how many, how many are those of another moment, and how many cannot be read."""

    pictures: int
    wrong: int
    smeared: int


@dataclass(frozen=True)
class _Native:
    """Frames in the size of the test clips, one a cell."""

    cell_frames: int = 1

    def frame_hw(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def grid_hw(self, frame_hw: tuple[int, int]) -> tuple[int, int]:
        return 1, 1


def shown(path: Path, clip: str) -> Shown:
    """What the file at `path`, a damaged copy of the test clip of that name, shows at the instants that `index` looks at.

    A picture is wrong if it is not as far from the first one in the clip as it is here.
    """
    times_s = [time_ms / 1000 for time_ms in CLIPS[clip].times_ms]
    opened = open_source(str(path), Sampling(), sizes=_Native(), segment_cells=4)
    start, time_base = int(opened.info.pts[0]), float(opened.info.time_base)
    at_s = [(int(pts) - start) * time_base for pts in opened.grid.frame_pts]
    numbers: list[int] = []
    with suppress(MediaError):
        for frames in decode(opened.info, opened.grid):
            numbers += [read_index(picture) for picture in frames.pixels]
    known = [(number, at) for number, at in zip(numbers, at_s, strict=False) if 0 <= number < len(times_s)]
    first = times_s[known[0][0]] - known[0][1] if known else 0.0
    wrong = sum(abs(times_s[number] - at - first) > _NEAR_S for number, at in known)
    return Shown(len(numbers), wrong, len(numbers) - len(known))


def shown_each(files: Iterable[tuple[Path, str]]) -> dict[str, Shown | None]:
    """`shown` of each (path, clip) by the path's name; None where it ended its process, or raised."""
    found: dict[str, Shown | None] = {}
    context = get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context)
    try:
        for path, clip in files:
            try:
                found[path.name] = pool.submit(shown, path, clip).result(timeout=_JUDGE_S)
            except MediaError:
                found[path.name] = None
            except (BrokenProcessPool, TimeoutError):
                found[path.name] = None
                pool.shutdown(wait=False, cancel_futures=True)
                pool = ProcessPoolExecutor(1, mp_context=context)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return found
