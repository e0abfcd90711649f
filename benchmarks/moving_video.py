"""A video of any length with something new in every cell, written in constant memory: what no archive can promise.

A textured scene that changes every so often, and four blocks that cross it; no noise and no sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

SCENE_S = 45
_BLOCKS = 4
_GOP_S = 2


def write_moving_video(
    path: Path,
    *,
    seconds: float,
    side: int,
    fps: int,
    seed: int = 0,
    preset: str = "ultrafast",
    gop_s: int = _GOP_S,
    noise: int = 0,
) -> None:
    """Writes H.264 in MP4: `side` x `side` pixels (even), `fps` frames a second, at least one frame.

    `preset`: of x264. `gop_s`: seconds between keyframes. `noise`: values of -noise to noise are added to all others.
    """
    options = {"preset": preset, "crf": "26", "threads": "1"}
    grain = np.random.default_rng(seed).integers(-noise, noise + 1, (8, side * 3 // 2, side), dtype=np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop_s * fps
        pictures = _frames(max(1, round(seconds * fps)), side=side, fps=fps, seed=seed)
        for index, planes in enumerate(pictures):
            noisy = np.clip(planes + grain[index % len(grain)], 0, 255).astype(np.uint8) if noise else planes
            frame = av.VideoFrame.from_ndarray(noisy, format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _frames(count: int, *, side: int, fps: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """(3/2 side, side) planes Y, U, V one below the other: drawing in RGB would cost more than encoding."""
    for first in range(0, count, SCENE_S * fps):
        rng = np.random.default_rng([seed, first])
        scene = _background(rng, side)
        size = rng.integers(side // 8, side // 3, _BLOCKS)
        luma = rng.integers(30, 226, _BLOCKS)
        start, speed = rng.uniform(0, 2, (_BLOCKS, 2)), rng.uniform(-0.3, 0.3, (_BLOCKS, 2))
        for index in range(first, min(first + SCENE_S * fps, count)):
            picture = scene.copy()
            # Triangle waves of 0 to 1: blocks turn back at the border.
            place = 1 - np.abs((start + speed * (index - first) / fps) % 2 - 1)
            for block in range(_BLOCKS):
                y, x = (place[block] * (side - size[block])).astype(int)
                picture[y : y + size[block], x : x + size[block]] = luma[block]
            yield picture


def _background(rng: np.random.Generator, side: int) -> npt.NDArray[np.uint8]:
    coarse = rng.integers(60, 190, (side // 8 + 1, side // 8 + 1), dtype=np.uint8)
    luma = np.kron(coarse, np.ones((8, 8), np.uint8))[:side, :side]
    chroma = np.repeat(rng.integers(100, 156, (2, 1), dtype=np.uint8), side // 4, axis=0)
    return np.concatenate([luma, np.broadcast_to(chroma, (side // 2, side))])
