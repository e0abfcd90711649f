"""Scenes for rendered clips: what stands, appears, passes and is hidden in a picture, and when. Truth, no pixels.

A scene has things that stand still, things that pop up for a few seconds and are gone, one that passes by, and a grey
plate that slides across and hides what is behind it. No two things but the plate share a colour or a shape, so that
either names one. Pixels are made in draw.py, questions in scene_questions.py, files in synth.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from echoprune.errors import ConfigError

Role = Literal["still", "popup", "passing", "plate"]
Point = tuple[float, float, float]

MIN_SECONDS = 6.0  # shorter, and there is no room for two events with a pause between them
MIN_CUTS_SECONDS = 40.0  # shorter, and an event may fit into no shot beside the events before and after it

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 132, 22),
    "yellow": (246, 211, 45),
    "green": (40, 168, 84),
    "cyan": (54, 196, 214),
    "blue": (38, 89, 214),
    "purple": (132, 56, 184),
    "pink": (250, 150, 196),
    "white": (245, 245, 245),
    "black": (24, 24, 26),
}
PLATE_COLOUR = (128, 130, 134)
SHAPES = ("disc", "square", "triangle", "ring", "cross", "diamond", "bar", "hourglass")
PLACES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
DIRECTIONS = ("left", "right", "up", "down")
TASKS = ("mixed", "still", "drift", "cuts", "fade")

DRIFT_PERIOD_S = 12.0
DRIFT_PX = 8.0  # at most 4 pixels a second, a seventh of a token of 28 pixels
# Events last 2 to 4 s in a clip that is long enough, a fifth of it at most otherwise.
_EVENT_S = (2.0, 4.0)
_PLATE_S = (15.0, 25.0)
_FADE_S = (15.0, 30.0)
_SHOTS = 3


@dataclass(frozen=True)
class SynthObject:
    """One thing and its truth.

    It is in the picture for `start_s` <= t < `end_s`, seconds from the first frame. `path`: (t seconds, x, y) way
    points, t ascending, of its centre in pixels of the upright picture of a camera at rest, joined by straight lines;
    x runs right, y down; a centre may lie outside of the picture. `radius`: half its width in pixels. `place`: the
    name of the ninth of the picture where it stands or pops up, `direction`: where it passes to; else "". `fade_s`: it
    comes into sight over so many seconds.
    """

    role: Role
    colour: str
    shape: str
    radius: float
    start_s: float
    end_s: float
    path: tuple[Point, ...]
    place: str = ""
    direction: str = ""
    fade_s: float = 0.0

    @property
    def name(self) -> str:
        """Such as "red disc"."""
        return f"{self.colour} {self.shape}"

    def centre(self, time_s: float) -> tuple[float, float]:
        """(x, y) pixels of the centre at `time_s`; before the first and after the last way point, that point."""
        if len(self.path) == 1:
            return self.path[0][1:]
        times, xs, ys = zip(*self.path, strict=True)
        return float(np.interp(time_s, times, xs)), float(np.interp(time_s, times, ys))

    def opacity(self, time_s: float) -> float:
        """0, not in the picture, to 1, in full sight."""
        if not self.start_s <= time_s < self.end_s:
            return 0.0
        return 1.0 if not self.fade_s else min(1.0, (time_s - self.start_s) / self.fade_s)


@dataclass(frozen=True)
class Scene:
    """What a clip shows. `size`: (width, height) pixels. `shots_s`: when each shot begins, from 0.

    `drift_px`: how far the camera swings to either side, and with it all that is seen. `noise`: standard deviation of
    its grain, in levels of 255. `background_seeds`: of the texture of each shot. `objects`: nearest last.
    """

    size: tuple[int, int]
    duration_s: float
    shots_s: tuple[float, ...]
    drift_px: float
    noise: float
    background_seeds: tuple[int, ...]
    objects: tuple[SynthObject, ...]

    def of_role(self, *roles: Role) -> list[SynthObject]:
        """The things of these roles in order of time."""
        return sorted((item for item in self.objects if item.role in roles), key=lambda item: item.start_s)

    @property
    def task(self) -> str:
        """What is particular about it: "drift", "cuts", "fade", or "still" if nothing is."""
        if self.drift_px:
            return "drift"
        if len(self.shots_s) > 1:
            return "cuts"
        return "fade" if any(item.fade_s for item in self.objects) else "still"

    def camera_x(self, time_s: float) -> float:
        """Pixels by which the camera looks to the right at `time_s`; what stands is seen so far to the left."""
        return self.drift_px * math.sin(2 * math.pi * time_s / DRIFT_PERIOD_S) if self.drift_px else 0.0


def plan_scene(
    rng: np.random.Generator, *, seconds: float, size: tuple[int, int], task: str = "mixed"
) -> Scene:
    """A scene of `seconds`, all of it drawn from `rng`.

    Two or three things stand still in ninths of the picture of their own; one to four pop up in other ninths for 2 to 4 s
    (a fifth of the clip at most), one passes by in as long, at different times; the plate crosses a clip of a minute or
    more. `task`: "still" camera, "drift", "cuts" (three shots, one still thing in each), "fade" (still things that come
    into sight over 15 to 30 s), or "mixed", any of the first three (short of 40 s, without cuts).

    Raises ConfigError for a clip that is too short, a size that codecs cannot hold, or an unknown task.
    """
    _check(seconds, size, task)
    if task == "mixed":
        task = str(rng.choice(["still", "still", "drift", "cuts"]))
        if task == "cuts" and seconds < MIN_CUTS_SECONDS:
            task = "still"
    shots = _SHOTS if task == "cuts" else 1
    stills = shots if task == "cuts" else int(rng.integers(2, 4))
    popups = int(rng.integers(1, 5 if seconds >= 60 else 3))
    colours = rng.permutation(list(COLOURS))[: stills + popups + 1].tolist()
    shapes = rng.permutation(SHAPES)[: stills + popups + 1].tolist()
    names = list(zip(colours, shapes, strict=True))
    # Three places at most are taken by what stands, so that each thing that pops up has another to itself.
    places = [divmod(int(place), 3) for place in rng.permutation(9)]
    cuts = [_between(rng, seconds * k / shots, seconds * 0.1) if k else 0.0 for k in range(shots)]
    events = _event_times(rng, popups + 1, seconds=seconds, cuts=cuts)
    passing = int(rng.integers(popups + 1))

    objects: list[SynthObject] = []
    for index in range(stills):
        start_s, end_s, fade_s = 0.0, seconds, 0.0
        if task == "cuts":
            start_s, end_s = cuts[index], [*cuts, seconds][index + 1]
        elif task == "fade":
            start_s = float(rng.uniform(0.05, 0.5) * seconds)
            fade_s = min(float(rng.uniform(*_FADE_S)), 0.3 * seconds)
        objects.append(
            _standing(rng, "still", names.pop(), places.pop(), (start_s, end_s), size=size, fade_s=fade_s)
        )
    for index, when in enumerate(events):
        if index == passing:
            objects.append(_passing(rng, names.pop(), when, size=size))
        else:
            objects.append(_standing(rng, "popup", names.pop(), places.pop(), when, size=size))
    if seconds >= 60 and rng.random() < 0.5:
        objects.append(_plate(rng, seconds=seconds, size=size))
    return Scene(
        size=size,
        duration_s=seconds,
        shots_s=tuple(cuts),
        drift_px=DRIFT_PX if task == "drift" else 0.0,
        noise=float(rng.uniform(0.0, 3.0)),
        background_seeds=tuple(int(seed) for seed in rng.integers(0, 2**31, shots)),
        objects=tuple(objects),
    )


def _check(seconds: float, size: tuple[int, int], task: str) -> None:
    width, height = size
    if not MIN_SECONDS <= seconds < math.inf:
        raise ConfigError(f"a clip of {seconds:g} s is too short; render at least {MIN_SECONDS:g} s")
    if width % 2 or height % 2 or min(size) < 64:
        raise ConfigError(f"size {width}x{height} cannot be encoded; both sides must be even and at least 64")
    if task not in TASKS:
        raise ConfigError(f"task is {task!r}; give one of {', '.join(TASKS)}")
    if task == "cuts" and seconds < MIN_CUTS_SECONDS:
        raise ConfigError(
            f"a clip of {seconds:g} s is too short for cuts; render at least {MIN_CUTS_SECONDS:g} s"
        )


def _between(rng: np.random.Generator, middle: float, spread: float) -> float:
    return float(rng.uniform(middle - spread, middle + spread))


def _event_times(
    rng: np.random.Generator, count: int, *, seconds: float, cuts: list[float]
) -> list[tuple[float, float]]:
    """(start, end) of `count` events one after another, with a pause between any two, and none across a cut."""
    # The first twentieth shows what stands, before anything happens.
    begin, stretch = 0.05 * seconds, 0.95 * seconds / count
    times = []
    for index in range(count):
        length = min(float(rng.uniform(*_EVENT_S)), 0.2 * seconds, 0.6 * stretch)
        room = stretch - 1.25 * length
        start = begin + index * stretch + float(rng.uniform(0.0, room))
        for cut in cuts[1:]:
            if start - 0.5 < cut < start + length + 0.5:
                # To the side of the cut on which there is more of the event's own stretch.
                after = cut + 0.5
                before = cut - length - 0.5
                fits = after + length <= begin + (index + 1) * stretch
                start = after if fits else before
        times.append((start, start + length))
    return times


def _standing(
    rng: np.random.Generator,
    role: Role,
    name: tuple[str, str],
    place: tuple[int, int],
    when: tuple[float, float],
    *,
    size: tuple[int, int],
    fade_s: float = 0.0,
) -> SynthObject:
    (row, column), (width, height), unit = place, size, min(size) / 3
    x = (column + 0.5) * width / 3 + float(rng.uniform(-0.1, 0.1)) * unit
    y = (row + 0.5) * height / 3 + float(rng.uniform(-0.1, 0.1)) * unit
    radius = float(rng.uniform(0.28, 0.36)) * unit
    return SynthObject(
        role, *name, radius, *when, ((when[0], x, y),), place=PLACES[row][column], fade_s=fade_s
    )


def _passing(
    rng: np.random.Generator, name: tuple[str, str], when: tuple[float, float], *, size: tuple[int, int]
) -> SynthObject:
    """A thing that enters on one side, goes straight through the picture and leaves on the other."""
    unit = min(size) / 3
    radius = float(rng.uniform(0.28, 0.36)) * unit
    direction = str(rng.choice(DIRECTIONS))
    along, across = (size[0], size[1]) if direction in ("left", "right") else (size[1], size[0])
    lane = float(rng.uniform(0.2, 0.8)) * across
    ends = (-radius, along + radius)
    if direction in ("left", "up"):
        ends = ends[::-1]
    point: Callable[[float, float], Point] = (
        (lambda t, s: (t, s, lane)) if direction in ("left", "right") else (lambda t, s: (t, lane, s))
    )
    path = (point(when[0], ends[0]), point(when[1], ends[1]))
    return SynthObject("passing", *name, radius, *when, path, direction=direction)


def _plate(rng: np.random.Generator, *, seconds: float, size: tuple[int, int]) -> SynthObject:
    """A grey plate that slides across the whole picture in front of everything."""
    width, height = size
    length = float(rng.uniform(*_PLATE_S))
    start = float(rng.uniform(0.05 * seconds, 0.95 * seconds - length))
    radius = 0.3 * min(size) / 3
    y = float(rng.uniform(0.2, 0.8)) * height
    xs = (-2 * radius, width + 2 * radius)
    if rng.random() < 0.5:
        xs = xs[::-1]
    path = ((start, xs[0], y), (start + length, xs[1], y))
    return SynthObject("plate", "grey", "plate", radius, start, start + length, path)
