"""One vector and one radius per cell, so that a search can skip cells without missing any token.

For a unit query q and any token v of a cell, with p the stored vector: q . v^ <= q . p + radius, since
q . v^ = q . p + q . (v^ - p) <= q . p + |v^ - p|. Searching itself is not here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from echoprune.dtype import codec

# Cells are worked on in batches of about this much float64, so that a 3-hour video needs no more than a short one.
_BATCH_BYTES = 64 << 20
# Sums of a few thousand float64 terms are right to about 1e-12; float32 would need a slack of 5e-7.
_ROUNDING = 1e-11


def pool_cells(tokens: torch.Tensor) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The stored vector (T, 2 D) uint8, bf16 bits, and the radius (T,) float32 of each cell.

    `tokens` (T, N, D), N >= 1, any float dtype and device, finite: ALL tokens of the cells, before pruning.
    The vector is the L2-normalised mean of the L2-normalised tokens, rounded to bf16 (so its length is 1 only
    to 2^-8). The radius is the greatest distance from it, as stored, to a normalised token, rounded upward.
    A zero token counts as the zero vector; a cell whose mean is zero has the zero vector.
    """
    cells, count, dim = tokens.shape
    pooled = np.empty((cells, 2 * dim), dtype=np.uint8)
    radius = np.empty(cells, dtype=np.float32)
    step = max(1, _BATCH_BYTES // (8 * count * dim))
    for start in range(0, cells, step):
        # float64: the bound is then rounded once, at the end, and the bits of the vector do not hang on the
        # order in which a device adds up.
        unit = tokens[start : start + step].double()
        unit = unit / _length(unit)
        mean = unit.mean(dim=1)
        stored = (mean / _length(mean)).to(torch.bfloat16)
        distance = torch.linalg.vector_norm(unit - stored.double()[:, None], dim=-1)
        upper = distance.amax(dim=1).cpu().numpy() + _ROUNDING
        rows = slice(start, start + len(upper))
        pooled[rows] = stored.cpu().contiguous().view(torch.uint8).numpy().reshape(len(upper), 2 * dim)
        radius[rows] = np.nextafter(upper.astype(np.float32), np.float32(np.inf))
    return pooled, radius


def unpool(pooled: npt.NDArray[np.uint8]) -> torch.Tensor:
    """(T, D) bfloat16: the stored vectors of `pool_cells`, or of the column `pooled` as (T, 2 D) bytes."""
    return codec("bf16").decode(np.array(pooled, dtype=np.uint8))


def _length(vectors: torch.Tensor) -> torch.Tensor:
    """(..., 1): the L2 norm, and 1 for a zero vector, so that dividing by it leaves zero."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(norm > 0, norm, 1.0)
