"""What each visual token shows, from the truth of a scene."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from echoprune.scene import COLOURS, DIRECTIONS, SHAPES, Scene

IGNORED = -100
TRUTHS = ("colour", "shape", "row", "column", "way")
# Of the first third, the middle and the last: the middle has no word of its own in "top left".
_THIRDS = (1, 0, 2)


def token_truth(
    scene: Scene, times_s: npt.NDArray[np.float64], *, grid_hw: tuple[int, int], cell_frames: int
) -> npt.NDArray[np.int64]:
    """(5, T, N) int64 by TRUTHS: 0 for no colour, shape or movement and for the middle third, IGNORED where it is unclear.

    Row, column and way are those of things alone.
    """
    h, w = grid_hw
    width, height = scene.size
    ys = ((np.arange(h) + 0.5) * height / h)[:, None]
    xs = ((np.arange(w) + 0.5) * width / w)[None]
    reach = max(width / w, height / h) / 2
    cells = len(times_s) // cell_frames
    truth = np.zeros((len(TRUTHS), cells, h, w), np.int64)
    truth[2:] = IGNORED
    for index, time_s in enumerate(times_s.tolist()):
        cell = index // cell_frames
        camera = scene.camera_x(time_s)
        for item in scene.objects:
            opacity = item.opacity(time_s)
            if not opacity:
                continue
            x, y = item.centre(time_s)
            x -= camera
            apart = np.maximum(np.abs(xs - x), np.abs(ys - y))
            plate = item.role == "plate"
            truth[:, cell][:, apart < item.radius + reach * (1.5 if plate else 1.0)] = IGNORED
            if plate or opacity < 0.5:
                continue
            shown = (
                list(COLOURS).index(item.colour) + 1,
                SHAPES.index(item.shape) + 1,
                _THIRDS[min(2, max(0, int(3 * y / height)))],
                _THIRDS[min(2, max(0, int(3 * x / width)))],
                DIRECTIONS.index(item.direction) + 1 if item.direction else 0,
            )
            truth[:, cell][:, apart < 0.75 * item.radius] = np.asarray(shown)[:, None]
    return truth.reshape(len(TRUTHS), cells, -1)
