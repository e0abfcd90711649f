"""Scenes for rendered clips: what stands, moves and happens in a picture, and the picture at any instant.

Each scene has a textured background, objects that stand still throughout, one that crosses the picture for
part of the time, and one that appears for a second or two and is gone: what a pruner must keep, and what it
may drop, is known. No occlusion yet, and no text in the picture. Files are made in `echoprune.synth`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from echoprune.errors import ConfigError

Image = npt.NDArray[np.float32]
Role = Literal["still", "moving", "event"]
Shape = Literal["disc", "square", "triangle", "ring"]

MIN_SECONDS = 6.0  # shorter, and the crossing and the event would overlap

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "yellow": (246, 211, 45),
    "blue": (38, 89, 214),
    "white": (245, 245, 245),
    "green": (40, 168, 84),
    "magenta": (206, 62, 190),
    "orange": (240, 132, 22),
    "cyan": (54, 196, 214),
}
SHAPES: tuple[Shape, ...] = ("disc", "square", "triangle", "ring")

_DRIFT_PERIOD_S = 12.0  # with 10 pixels to either side, at most 5 pixels a second


@dataclass(frozen=True)
class SynthObject:
    """One object and its truth.

    It is in the picture for `start_s` <= t < `end_s`, seconds from the first frame. `path`: (t seconds, x, y)
    way points, t ascending, of its centre in pixels of the upright picture, joined by straight lines; x runs
    right, y down; a centre may lie outside of the picture. `radius`: half its width in pixels.
    """

    role: Role
    colour: str
    shape: Shape
    radius: float
    start_s: float
    end_s: float
    path: tuple[tuple[float, float, float], ...]

    def centre(self, time_s: float) -> tuple[float, float]:
        """(x, y) pixels of the centre at `time_s`; before the first and after the last way point, that point."""
        times, xs, ys = zip(*self.path, strict=True)
        return float(np.interp(time_s, times, xs)), float(np.interp(time_s, times, ys))


@dataclass(frozen=True)
class Scene:
    """What a clip shows. `background` float32 (H, W + margin, 3) in 0..255, which the camera pans `drift_px` about."""

    background: Image = field(repr=False)
    size: tuple[int, int]
    duration_s: float
    drift_px: float
    objects: tuple[SynthObject, ...]


def plan_scene(
    rng: np.random.Generator, *, seconds: float, size: tuple[int, int], drift_px: float = 0.0
) -> Scene:
    """A scene of `seconds`: three still objects, one crossing, one event of 1 to 2 s, each of its own colour.

    Still objects and the event stand in cells of a 4 x 2 raster above and below a lane in the middle, which the
    crossing has to itself: nothing hides anything. The event comes after the crossing has left. `drift_px`: how
    far the camera swings to either side; all objects then shift in the picture as the background does.
    """
    width, height = size
    if seconds < MIN_SECONDS:
        raise ConfigError(f"a clip of {seconds:g} s is too short; render at least {MIN_SECONDS:g} s")
    if width % 2 or height % 2 or min(size) < 64:
        raise ConfigError(f"size {width}x{height} cannot be encoded; both sides must be even and at least 64")
    unit = min(width / 4, height / 3)
    colours = rng.permutation(list(COLOURS))[:5].tolist()
    places = [(column, row) for column in range(4) for row in (0, 2)]
    chosen = rng.permutation(len(places))[:4]

    def standing(order: int, role: Role, start_s: float, end_s: float) -> SynthObject:
        column, row = places[chosen[order]]
        jitter_x, jitter_y = rng.uniform(-0.08, 0.08, 2) * unit
        x, y = (column + 0.5) * width / 4 + jitter_x, (row + 0.5) * height / 3 + jitter_y
        radius = float(rng.uniform(0.24, 0.32) * unit)
        return SynthObject(
            role, colours[order], _pick_shape(rng), radius, start_s, end_s, ((start_s, float(x), float(y)),)
        )

    still = [standing(order, "still", 0.0, seconds) for order in range(3)]
    event_start = float(rng.uniform(0.70, 0.80) * seconds)
    event = standing(3, "event", event_start, event_start + float(rng.uniform(1.0, min(2.0, 0.2 * seconds))))
    crossing = _crossing(rng, colours[4], start_s=0.2 * seconds, end_s=0.6 * seconds, size=size, unit=unit)
    background = _texture(rng, width + 2 * math.ceil(drift_px) + 1, height)
    objects = tuple(_seen_from_camera(item, drift_px) for item in (*still, crossing, event))
    return Scene(background, size, seconds, drift_px, objects)


def draw_frame(scene: Scene, time_s: float) -> npt.NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB: the picture at `time_s`, upright."""
    width, _ = scene.size
    whole, part = divmod(float(_camera_x(time_s, scene.drift_px)) + math.ceil(scene.drift_px), 1.0)
    left = int(whole)
    # Between two whole columns the picture is blended: whole-pixel steps would look like a stuttering camera.
    canvas = scene.background[:, left : left + width] * np.float32(1 - part)
    if part:
        canvas += scene.background[:, left + 1 : left + 1 + width] * np.float32(part)
    for item in scene.objects:
        if item.start_s <= time_s < item.end_s:
            _paint(canvas, item, item.centre(time_s))
    return np.asarray(np.rint(canvas).clip(0, 255), np.uint8)


def _camera_x(time_s: float | npt.NDArray[np.float64], drift_px: float) -> npt.NDArray[np.float64]:
    return np.asarray(drift_px * np.sin(2 * np.pi * np.asarray(time_s) / _DRIFT_PERIOD_S))


def _seen_from_camera(item: SynthObject, drift_px: float) -> SynthObject:
    """`item` with its path in the scene turned into its path in the picture of a drifting camera."""
    if not drift_px:
        return item
    # Way points twice a second follow the camera's sine to 0.1 pixel.
    own = [point[0] for point in item.path]
    times = np.union1d(np.append(np.arange(item.start_s, item.end_s, 0.5), item.end_s), own)
    shift = _camera_x(times, drift_px)
    centres = [item.centre(t) for t in times]
    path = tuple((float(t), x - float(s), y) for t, (x, y), s in zip(times, centres, shift, strict=True))
    return replace(item, path=path)


def _pick_shape(rng: np.random.Generator) -> Shape:
    return SHAPES[int(rng.integers(len(SHAPES)))]


def _crossing(
    rng: np.random.Generator, colour: str, *, start_s: float, end_s: float, size: tuple[int, int], unit: float
) -> SynthObject:
    """An object that enters on one side of the middle lane, bobs up and down, and leaves on the other."""
    width, height = size
    radius = float(rng.uniform(0.26, 0.34) * unit)
    share = np.linspace(0.0, 1.0, 9)
    xs = -radius + share * (width + 2 * radius)
    if rng.random() < 0.5:
        xs = xs[::-1]
    ys = height / 2 + 0.12 * unit * np.sin(2 * np.pi * (share * 1.5 + rng.random()))
    times = start_s + share * (end_s - start_s)
    path = tuple((float(t), float(x), float(y)) for t, x, y in zip(times, xs, ys, strict=True))
    return SynthObject("moving", colour, _pick_shape(rng), radius, start_s, end_s, path)


def _texture(rng: np.random.Generator, width: int, height: int) -> Image:
    """float32 (H, W, 3) mostly 60..150: muted value noise of four octaves, over a vertical gradient."""
    total = np.zeros((height, width), np.float32)
    for octave, weight in ((64, 1.0), (32, 0.5), (16, 0.25), (6, 0.3)):
        coarse = rng.standard_normal((height // octave + 3, width // octave + 3)).astype(np.float32)
        rows, columns = np.arange(height) / octave, np.arange(width) / octave
        r, c = rows.astype(int)[:, None], columns.astype(int)[None]
        fr, fc = _smooth(rows % 1)[:, None], _smooth(columns % 1)[None]
        top = coarse[r, c] * (1 - fc) + coarse[r, c + 1] * fc
        bottom = coarse[r + 1, c] * (1 - fc) + coarse[r + 1, c + 1] * fc
        total += np.float32(weight) * (top * (1 - fr) + bottom * fr)
    tint = rng.uniform(0.85, 1.15, 3).astype(np.float32)
    grey = 105 + 16 * total + np.linspace(18, -18, height, dtype=np.float32)[:, None]
    return np.asarray(grey[..., None] * tint, np.float32)


def _smooth(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return np.asarray(x * x * (3 - 2 * x), np.float32)


def _paint(canvas: Image, item: SynthObject, centre: tuple[float, float]) -> None:
    """Blends one object with a dark rim into `canvas`, edges softened over one pixel; clipped at the border."""
    height, width, _ = canvas.shape
    x, y = centre
    reach = item.radius + 2
    x0, x1 = max(0, int(x - reach)), min(width, int(x + reach) + 2)
    y0, y1 = max(0, int(y - reach)), min(height, int(y + reach) + 2)
    if x0 >= x1 or y0 >= y1:
        return
    dy, dx = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    inside = _depth(item.shape, dx - np.float32(x), dy - np.float32(y), item.radius)
    patch = canvas[y0:y1, x0:x1]
    for depth, colour in ((inside, (20, 20, 24)), (inside - 2.5, COLOURS[item.colour])):
        cover = np.clip(depth + 0.5, 0, 1)[..., None].astype(np.float32)
        patch += cover * (np.asarray(colour, np.float32) - patch)


def _depth(shape: Shape, dx: Image, dy: Image, radius: float) -> Image:
    """float32 pixels inside the outline of a shape around (0, 0); negative outside, 0 on it."""
    match shape:
        case "disc":
            depth = radius - np.hypot(dx, dy)
        case "square":
            depth = 0.86 * radius - np.maximum(np.abs(dx), np.abs(dy))
        case "triangle":
            # Sides of slope 2:1, whose unit normal is (0.894, 0.447).
            sides = 0.447 * (dy + radius) - 0.894 * (np.abs(dx) - 0.1 * radius)
            depth = np.minimum(0.8 * radius - dy, sides)
        case "ring":
            depth = 0.32 * radius - np.abs(np.hypot(dx, dy) - 0.68 * radius)
    return np.asarray(depth, np.float32)
