"""Pictures of many scenes at once, on the device that learns: what echoprune/draw.py draws, to within a level of 255.

A process that plans costs a quarter of one that draws, and a plan of 64 clips is 2 MB where their frames are 230.
The grain alone is drawn anew in each frame, with the same spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from echoprune.scene import COLOURS, PLATE_COLOUR, SHAPES, Scene, SynthObject

_OCTAVES = ((64, 1.0), (32, 0.5), (16, 0.25), (6, 0.3))
_RIM = (20.0, 20.0, 24.0)
_RIM_PX = 2.0
_SHAPES = (*SHAPES, "plate")
# Columns of `Strokes.values`.
_X, _Y, _RADIUS, _OPACITY, _SHAPE, _RED = range(6)


@dataclass(frozen=True)
class Strokes:
    """Things to be painted into pictures: `rounds` (E,) int64 ascending; of one round no two are in one picture.

    `picture` (E,) int64; `values` (E, 8) float32: x, y, radius, opacity, number of the shape, red, green, blue.
    """

    rounds: torch.Tensor = field(repr=False)
    picture: torch.Tensor = field(repr=False)
    values: torch.Tensor = field(repr=False)


@dataclass(frozen=True)
class Pictures:
    """All that F frames of some scenes of `size` (width, height) show, as numbers.

    `coarse`: of each octave (K, rows, columns) float32 values of K backgrounds; `tint` (K, 3), `widths` (K,) float32 pixels.
    `standing`: what is painted into backgrounds, `passing`: into frames. Of each frame `background` (F,) int64, `shift`
    (F,) float32 pixels from the left of it, and `noise` (F,) float32. `seed`: of the grain.
    """

    size: tuple[int, int]
    coarse: tuple[torch.Tensor, ...] = field(repr=False)
    tint: torch.Tensor = field(repr=False)
    widths: torch.Tensor = field(repr=False)
    standing: Strokes = field(repr=False)
    passing: Strokes = field(repr=False)
    background: torch.Tensor = field(repr=False)
    shift: torch.Tensor = field(repr=False)
    noise: torch.Tensor = field(repr=False)
    seed: int


def plan_pictures(
    scenes: Sequence[Scene], times_s: Sequence[npt.NDArray[np.float64]], *, seed: int
) -> Pictures:
    """The pictures of each of `scenes`, all of one size, at its own `times_s`, one scene after another."""
    width, height = size = scenes[0].size
    if any(scene.size != size for scene in scenes):
        raise ValueError(f"scenes of one size are drawn together, got {sorted({s.size for s in scenes})}")
    backgrounds: list[tuple[int, int]] = []
    standing, passing = _Plan(), _Plan()
    background, shift, noise = [], [], []
    for scene, times in zip(scenes, times_s, strict=True):
        margin = math.ceil(scene.drift_px)
        numbers: dict[int, int] = {}
        for time_s in times.tolist():
            shot = int(np.searchsorted(scene.shots_s, time_s, side="right")) - 1
            if shot not in numbers:
                numbers[shot] = len(backgrounds)
                backgrounds.append((scene.background_seeds[shot], width + 2 * margin + 1))
                start_s = scene.shots_s[shot]
                for item in filter(_always, scene.objects):
                    if item.opacity(start_s):
                        x, y = item.centre(start_s)
                        standing.add(numbers[shot], item, (x + margin, y), 1.0)
            camera = scene.camera_x(time_s)
            for item in scene.objects:
                opacity = item.opacity(time_s)
                if opacity and not _always(item):
                    x, y = item.centre(time_s)
                    passing.add(len(background), item, (x - camera, y), opacity)
            background.append(numbers[shot])
            shift.append(camera + margin)
            noise.append(scene.noise)
    coarse, tint = _coarse(backgrounds, height)
    return Pictures(
        size,
        coarse,
        tint,
        torch.tensor([width for _, width in backgrounds], dtype=torch.float32),
        standing.strokes(),
        passing.strokes(),
        torch.tensor(background),
        torch.tensor(shift, dtype=torch.float32),
        torch.tensor(noise, dtype=torch.float32),
        seed,
    )


@torch.no_grad()
def draw(pictures: Pictures, device: torch.device) -> torch.Tensor:
    """uint8 (F, H, W, 3) frames of `pictures` on `device`."""
    # Places in bf16 would be off by pixels.
    with torch.autocast(device.type, enabled=False):
        return _drawn(pictures, device)


def _drawn(pictures: Pictures, device: torch.device) -> torch.Tensor:
    width, height = pictures.size

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, non_blocking=True)

    canvases = _textures(
        [moved(octave) for octave in pictures.coarse],
        moved(pictures.tint),
        moved(pictures.widths),
        height=height,
        width=int(pictures.widths.max()),
    )
    _paint(canvases, pictures.standing, device)
    shift = moved(pictures.shift)
    left = shift.floor()
    part = (shift - left)[:, None, None, None]
    columns = (left.long()[:, None] + torch.arange(width, device=device))[:, None]
    rows = torch.arange(height, device=device)[None, :, None]
    which = moved(pictures.background)[:, None, None]
    frames = canvases[which, rows, columns]
    if bool((pictures.shift % 1 != 0).any()):
        frames = torch.lerp(frames, canvases[which, rows, columns + 1], part)
    _paint(frames, pictures.passing, device)
    generator = torch.Generator(device).manual_seed(pictures.seed)
    grain = torch.randn(frames.shape, generator=generator, device=device)
    frames.addcmul_(grain, moved(pictures.noise)[:, None, None, None])
    return frames.round_().clamp_(0, 255).to(torch.uint8)


def _always(item: SynthObject) -> bool:
    return item.role == "still" and not item.fade_s


class _Plan:
    """Strokes as they are found; the n-th of a picture is of round n."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._rows: list[tuple[int, int, tuple[float, ...]]] = []

    def add(self, picture: int, item: SynthObject, centre: tuple[float, float], opacity: float) -> None:
        turn = self._counts.get(picture, 0)
        self._counts[picture] = turn + 1
        colour = PLATE_COLOUR if item.role == "plate" else COLOURS[item.colour]
        values = (*centre, item.radius, opacity, float(_SHAPES.index(item.shape)), *map(float, colour))
        self._rows.append((turn, picture, values))

    def strokes(self) -> Strokes:
        rows = sorted(self._rows, key=lambda row: row[0])
        return Strokes(
            torch.tensor([row[0] for row in rows], dtype=torch.int64),
            torch.tensor([row[1] for row in rows], dtype=torch.int64),
            torch.tensor([row[2] for row in rows], dtype=torch.float32).view(-1, 8),
        )


def _coarse(
    backgrounds: Sequence[tuple[int, int]], height: int
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """The random numbers of each background by its seed and width, drawn as echoprune/draw.py draws them."""
    widest = max(width for _, width in backgrounds)
    octaves = [
        np.zeros((len(backgrounds), height // octave + 3, widest // octave + 3), np.float32)
        for octave, _ in _OCTAVES
    ]
    tint = np.zeros((len(backgrounds), 3), np.float32)
    for index, (seed, width) in enumerate(backgrounds):
        rng = np.random.default_rng(seed)
        for into, (octave, _) in zip(octaves, _OCTAVES, strict=True):
            columns = width // octave + 3
            into[index, :, :columns] = rng.standard_normal((height // octave + 3, columns))
        tint[index] = rng.uniform(0.9, 1.1, 3)
    return tuple(torch.from_numpy(octave) for octave in octaves), torch.from_numpy(tint)


def _textures(
    coarse: Sequence[torch.Tensor], tint: torch.Tensor, widths: torch.Tensor, *, height: int, width: int
) -> torch.Tensor:
    """float32 (K, H, W, 3), see `texture` of echoprune/draw.py: each octave is two matrix products."""
    device = tint.device
    total = torch.zeros((len(tint), height, width), device=device)
    for (octave, weight), values in zip(_OCTAVES, coarse, strict=True):
        down = _blend(height, values.shape[1], octave, device)
        across = _blend(width, values.shape[2], octave, device)
        total += weight * (down @ values @ across.T)
    slope = torch.linspace(22, -22, height, device=device)[:, None]
    brightness = 105 + 12 * total + slope
    # From -1 to 1 over each background's own width, which a wider one beside it does not change.
    across = 2 * torch.arange(width, device=device) / (widths[:, None] - 1) - 1
    warm = torch.tensor([-0.14, 0.0, 0.14], device=device)
    light = tint[:, None] + across[..., None] * warm
    return brightness[..., None] * light[:, None]


# Backgrounds are of some thirty widths: 8 kernels of a picture less.
@lru_cache(maxsize=512)
def _blend(size: int, count: int, octave: int, device: torch.device) -> torch.Tensor:
    """(size, count): the share of each coarse value in each row of pixels."""
    place = torch.arange(size, device=device) / octave
    whole = place.long()
    part = place - whole
    part = part * part * (3 - 2 * part)
    weights = torch.zeros((size, count), device=device)
    at = torch.arange(size, device=device)
    weights[at, whole] = 1 - part
    weights[at, whole + 1] = part
    return weights


def _paint(pictures: torch.Tensor, strokes: Strokes, device: torch.device) -> None:
    """Blends things into float32 `pictures` (P, H, W, 3) in place, round after round.

    What is painted where is worked out for all rounds at once: a kernel is started in 8 us whatever it does, and a
    round had 70 of them.
    """
    if not len(strokes.rounds):
        return
    _, height, width, _ = pictures.shape
    # A shape is at most 1.3 radii wide, and cut off 2 pixels beyond its radius as there.
    reach = (
        strokes.values[:, _RADIUS] * torch.where(strokes.values[:, _SHAPE] == len(_SHAPES) - 1, 1.3, 1.0) + 2
    )
    side = int(2 * float(reach.max())) + 4
    offsets = torch.arange(side, device=device)
    values, picture, far = (
        tensor.to(device, non_blocking=True) for tensor in (strokes.values, strokes.picture, reach)
    )
    x, y, radius, opacity, shape = values[:, :5].unbind(1)
    columns, in_columns = _span(x, far, offsets, width)
    rows, in_rows = _span(y, far, offsets, height)
    dx = (columns - x[:, None])[:, None, :]
    dy = (rows - y[:, None])[:, :, None]
    inside = _depth(shape[:, None, None], dx, dy, radius[:, None, None])
    seen = (in_rows[:, :, None] & in_columns[:, None, :]) * opacity[:, None, None]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    index = ((picture[:, None, None] * height + rows[:, :, None]) * width + columns[:, None, :]).flatten(1)
    rim = (inside + 0.5).clamp(0, 1) * seen
    fill = (inside - _RIM_PX + 0.5).clamp(0, 1) * seen
    # First the rim, then the colour over it: how much of what was there is lost, and what comes instead.
    lost = (1 - (1 - rim) * (1 - fill)).flatten(1)[..., None]
    of_rim = (rim * (1 - fill))[..., None] * torch.tensor(_RIM, device=device)
    comes = (of_rim + fill[..., None] * values[:, None, None, _RED:]).flatten(1, 2)
    flat = pictures.view(-1, 3)
    begin = 0
    for count in torch.bincount(strokes.rounds).tolist():
        part = slice(begin, begin + count)
        begin += count
        places = index[part].flatten()
        change = torch.addcmul(comes[part], flat[places].view(count, -1, 3), lost[part], value=-1)
        # Pixels beyond the border stand for ones at it, to which they add nothing.
        flat.index_add_(0, places, change.view(-1, 3))


def _span(
    centre: torch.Tensor, reach: torch.Tensor, offsets: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(E, side) int64 coordinates around `centre`, and which of them are painted."""
    first = (centre - reach).trunc().long()[:, None]
    stop = (centre + reach).trunc().long()[:, None] + 2
    places = first + offsets
    return places, (places >= 0) & (places < size) & (places < stop)


def _depth(shape: torch.Tensor, dx: torch.Tensor, dy: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Pixels inside the outline of the shape of each, see `_depth` of echoprune/draw.py."""
    across, down = dx.abs(), dy.abs()
    away = torch.hypot(dx, dy)
    arm = 0.32 * radius
    outlines = {
        "disc": radius - away,
        "square": 0.86 * radius - torch.maximum(across, down),
        "triangle": torch.minimum(0.8 * radius - dy, 0.447 * (dy + radius) - 0.894 * (across - 0.1 * radius)),
        "ring": arm - (away - 0.68 * radius).abs(),
        "cross": torch.maximum(
            torch.minimum(arm - across, 0.95 * radius - down),
            torch.minimum(arm - down, 0.95 * radius - across),
        ),
        "diamond": 0.707 * (radius - across - down),
        "bar": torch.minimum(0.38 * radius - down, radius - across),
        "hourglass": torch.minimum(0.9 * radius - down, 0.766 * (down + 0.12 * radius) - 0.643 * across),
        "plate": torch.minimum(1.3 * radius - across, 1.3 * radius - down),
    }
    found = outlines["disc"]
    for number, name in enumerate(_SHAPES):
        if name != "disc":
            found = torch.where(shape == number, outlines[name], found)
    return found
