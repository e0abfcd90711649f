"""Pictures of a scene: textured background, things with soft edges and dark rims, a drifting camera, and its grain.

Light falls from the upper left, as in a room with one window: top and bottom, left and right look different anywhere.
Without any such difference a tower without absolute positions (Qwen2.5-VL's) could not tell where a thing stands.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from echoprune.scene import COLOURS, PLATE_COLOUR, Scene, SynthObject

Image = npt.NDArray[np.float32]

_RIM = (20, 20, 24)
_RIM_PX = 2.0
# Of one grain picture each frame takes another cut: 150,000 new normal numbers a frame would cost more than the rest.
_GRAIN_MARGIN = 64


class Painter:
    """Draws one scene. Backgrounds, with what always stands there, are painted once, when they are first seen."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._margin = math.ceil(scene.drift_px)
        self._canvases: dict[int, Image] = {}
        self._grain: Image | None = None

    def frame(self, time_s: float) -> npt.NDArray[np.uint8]:
        """uint8 (H, W, 3) RGB: the picture at `time_s`, upright; the same for the same scene and time."""
        scene = self.scene
        width = scene.size[0]
        camera = scene.camera_x(time_s)
        whole, part = divmod(camera + self._margin, 1.0)
        left = int(whole)
        background = self._canvas(int(np.searchsorted(scene.shots_s, time_s, side="right")) - 1)
        # Between two whole columns the picture is blended: whole-pixel steps would look like a stuttering camera.
        picture = background[:, left : left + width] * np.float32(1 - part)
        if part:
            picture += background[:, left + 1 : left + 1 + width] * np.float32(part)
        for item in scene.objects:
            opacity = item.opacity(time_s)
            if opacity and not self._always(item):
                x, y = item.centre(time_s)
                _paint(picture, item, (x - camera, y), opacity)
        if scene.noise:
            picture += self._noise(time_s)
        return np.asarray(np.rint(picture).clip(0, 255), np.uint8)

    def _always(self, item: SynthObject) -> bool:
        """Whether `item` is part of a background: it stands in all of a shot."""
        return item.role == "still" and not item.fade_s

    def _canvas(self, shot: int) -> Image:
        if shot not in self._canvases:
            scene = self.scene
            width, height = scene.size
            canvas = texture(scene.background_seeds[shot], width + 2 * self._margin + 1, height)
            start_s = scene.shots_s[shot]
            for item in scene.objects:
                if self._always(item) and item.opacity(start_s):
                    x, y = item.centre(start_s)
                    _paint(canvas, item, (x + self._margin, y), 1.0)
            self._canvases[shot] = canvas
        return self._canvases[shot]

    def _noise(self, time_s: float) -> Image:
        scene = self.scene
        width, height = scene.size
        if self._grain is None:
            rng = np.random.default_rng(scene.background_seeds[0])
            shape = (height + _GRAIN_MARGIN, width + _GRAIN_MARGIN, 3)
            self._grain = rng.standard_normal(shape, dtype=np.float32) * np.float32(scene.noise)
        tick = round(time_s * 90_000)
        top, left = (tick * 7919) % 61, (tick * 104_729) % 59
        return self._grain[top : top + height, left : left + width]


def texture(seed: int, width: int, height: int) -> Image:
    """float32 (H, W, 3) mostly 60..160: muted value noise of four octaves, lit from the upper left."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width), np.float32)
    for octave, weight in ((64, 1.0), (32, 0.5), (16, 0.25), (6, 0.3)):
        coarse = rng.standard_normal((height // octave + 3, width // octave + 3)).astype(np.float32)
        rows, columns = np.arange(height) / octave, np.arange(width) / octave
        r, c = rows.astype(int)[:, None], columns.astype(int)[None]
        fr, fc = _smooth(rows % 1)[:, None], _smooth(columns % 1)[None]
        top = coarse[r, c] * (1 - fc) + coarse[r, c + 1] * fc
        bottom = coarse[r + 1, c] * (1 - fc) + coarse[r + 1, c + 1] * fc
        total += np.float32(weight) * (top * (1 - fr) + bottom * fr)
    tint = rng.uniform(0.9, 1.1, 3).astype(np.float32)
    brightness = 105 + 12 * total + np.linspace(22, -22, height, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    # Warm on the side of the window, cool on the other.
    return np.asarray(
        brightness[..., None] * (tint + across * np.array([-0.14, 0.0, 0.14], np.float32)), np.float32
    )


def _smooth(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return np.asarray(x * x * (3 - 2 * x), np.float32)


def _paint(canvas: Image, item: SynthObject, centre: tuple[float, float], opacity: float) -> None:
    """Blends one thing into `canvas`, edges softened over one pixel; clipped at the border."""
    height, width, _ = canvas.shape
    x, y = centre
    reach = item.radius * (2 if item.role == "plate" else 1) + 2
    x0, x1 = max(0, int(x - reach)), min(width, int(x + reach) + 2)
    y0, y1 = max(0, int(y - reach)), min(height, int(y + reach) + 2)
    if x0 >= x1 or y0 >= y1:
        return
    dy = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(y)
    dx = np.arange(x0, x1, dtype=np.float32)[None] - np.float32(x)
    inside = _depth(item.shape, dx, dy, item.radius)
    colour = PLATE_COLOUR if item.role == "plate" else COLOURS[item.colour]
    patch = canvas[y0:y1, x0:x1]
    for depth, rgb in ((inside, _RIM), (inside - np.float32(_RIM_PX), colour)):
        cover = (depth + np.float32(0.5)).clip(0, 1)[..., None] * np.float32(opacity)
        patch += cover * (np.asarray(rgb, np.float32) - patch)


def _depth(shape: str, dx: Image, dy: Image, radius: float) -> Image:
    """float32 pixels inside the outline of a shape around (0, 0); negative outside, 0 on it."""
    across, down = np.abs(dx), np.abs(dy)
    match shape:
        case "disc":
            depth = radius - np.hypot(dx, dy)
        case "square":
            depth = 0.86 * radius - np.maximum(across, down)
        case "triangle":
            # Sides of slope 2:1, whose unit normal is (0.894, 0.447).
            sides = 0.447 * (dy + radius) - 0.894 * (across - 0.1 * radius)
            depth = np.minimum(0.8 * radius - dy, sides)
        case "ring":
            depth = 0.32 * radius - np.abs(np.hypot(dx, dy) - 0.68 * radius)
        case "cross":
            arm = 0.32 * radius
            depth = np.maximum(
                np.minimum(arm - across, 0.95 * radius - down),
                np.minimum(arm - down, 0.95 * radius - across),
            )
        case "diamond":
            depth = 0.707 * (radius - across - down)
        case "bar":
            depth = np.minimum(0.38 * radius - down, radius - across)
        case "hourglass":
            # Two triangles that touch in the middle, with a waist that is not too thin to be seen.
            depth = np.minimum(0.9 * radius - down, 0.766 * (down + 0.12 * radius) - 0.643 * across)
        case "plate":
            depth = np.minimum(1.3 * radius - across, 1.3 * radius - down)
        case _:
            raise ValueError(f"no outline is known for {shape!r}")
    return np.asarray(depth, np.float32)
