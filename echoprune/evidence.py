"""Evidence: the moments of a video that the kept tokens point to.

Each kept token adds what its score has above the lowest one kept to the mass of its cell. Peaks of that mass, as wide
as their half height, are the moments. Pure functions on arrays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from echoprune.data import FloatArray
from echoprune.question import Evidence
from echoprune.view import View

MOMENTS = 5


def cell_mass(t: npt.NDArray[np.int64], score: npt.NDArray[np.float32], *, cells: int) -> FloatArray:
    """(T,) float64: the share of each cell in the mass, which adds up to 1.

    `t`, `score` (K,), K >= 1, of the kept tokens: r - c - e, with c = e = 1 in the first cell of a video, which nothing
    went before: its tokens count as perfect echoes. A token's mass is its score less the lowest one; where none stands
    out, each token has the same.
    """
    excess = score.astype(np.float64) - float(score.min())
    if not excess.any():
        excess = np.ones(len(t))
    mass = np.bincount(t, weights=excess, minlength=cells)
    return np.asarray(mass / mass.sum())


def moments(mass: FloatArray, view: View, *, limit: int = MOMENTS) -> tuple[Evidence, ...]:
    """At most `limit` moments, the heaviest first; of equal ones the earlier. One for the whole view if no cell stands out.

    From the heaviest cell that is left, a moment reaches on both sides as far as cells have at least half its height
    above the median of all cells; its score is the sum of its cells' mass. A cell is in one moment at most, and cells
    at or below the median start none.
    """
    floor = float(np.median(mass))
    height = mass - floor
    if len(mass) == 0 or float(height.max()) <= 0:
        return (Evidence(float(view.times_s[0]), float(view.ends_s[-1]), float(mass.sum())),)
    free = np.ones(len(mass), dtype=bool)
    found: list[Evidence] = []
    # Stable, so that of equal cells the earlier starts.
    for peak in np.argsort(-height, kind="stable").tolist():
        if height[peak] <= 0 or len(found) == limit:
            break
        if not free[peak]:
            continue
        wide = free & (height >= height[peak] / 2)
        begin = peak - int(np.argmin(np.append(wide[peak::-1], False))) + 1
        stop = peak + int(np.argmin(np.append(wide[peak:], False)))
        free[begin:stop] = False
        score = float(mass[begin:stop].sum())
        found.append(Evidence(float(view.times_s[begin]), float(view.ends_s[stop - 1]), score))
    return tuple(sorted(found, key=lambda moment: (-moment.score, moment.start_s)))
