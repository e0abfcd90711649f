"""One vector and one radius per cell, so that a search can skip cells without missing any token.

For a unit query q and any token v of a cell, with p the stored vector: q . v^ <= q . p + radius, since
q . v^ = q . p + q . (v^ - p) <= q . p + |v^ - p|. Searching itself is not here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from echoprune.dtype import codec

# Cells are worked on in batches of about this much float64: 450 cells of 256 x 3,584 a second on 2 cores, and half
# of that with 64 MB, which no cache holds.
_BATCH_BYTES = 16 << 20
# On a GPU starting the 32 kernels of a batch takes longer than running them: eight cells of 1,024 tokens in one.
_GPU_BATCH_BYTES = 256 << 20
# A float64 sum of D products of unit vectors is off by at most D x 1.2e-16, whatever the order; three of them enter.
_ROUNDING = 1e-15


def pool_cells(tokens: torch.Tensor) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The stored vector (T, 2 D) uint8, bf16 bits, and the radius (T,) float32 of each cell.

    `tokens` (T, N, D), N >= 1, any float dtype and device, finite: ALL tokens of the cells, before pruning.
    The vector is the L2-normalised mean of the L2-normalised tokens, rounded to bf16 (so its length is 1 only
    to 2^-8). The radius is the greatest distance from it, as stored, to a normalised token, rounded upward.
    A zero token counts as the zero vector; a cell whose mean is zero has the zero vector.
    """
    pooled, radius = pool(tokens)
    return stored_pool(pooled.cpu(), radius.cpu())


def pool(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors (T, D) bfloat16 and radii (T,) float64, not rounded upward yet, on the tokens' device; see `pool_cells`."""
    cells, count, dim = tokens.shape
    pooled = torch.empty((cells, dim), dtype=torch.bfloat16, device=tokens.device)
    radius = torch.empty(cells, dtype=torch.float64, device=tokens.device)
    batch_bytes = _BATCH_BYTES if tokens.device.type == "cpu" else _GPU_BATCH_BYTES
    step = max(1, batch_bytes // (8 * count * dim))
    for start in range(0, cells, step):
        # In float64 |v^ - p|^2 = |v^|^2 - 2 v^ . p + |p|^2 loses nothing that matters to cancellation, and takes
        # two products instead of four passes over the tokens.
        wide = tokens[start : start + step].double()
        norm = torch.linalg.vector_norm(wide, dim=-1)
        weight = torch.where(norm > 0, 1 / norm, 0.0)
        mean = torch.bmm(weight[:, None], wide)[:, 0] / count
        length = torch.linalg.vector_norm(mean, dim=-1, keepdim=True)
        stored = (mean / torch.where(length > 0, length, 1.0)).to(torch.bfloat16)
        similarity = torch.bmm(wide, stored.double()[..., None])[..., 0] * weight
        squared = (norm > 0).double() - 2 * similarity + stored.double().square().sum(dim=-1, keepdim=True)
        pooled[start : start + step] = stored
        radius[start : start + step] = (squared.amax(dim=1).clamp(min=0) + _ROUNDING * dim).sqrt()
    return pooled, radius


def stored_pool(
    pooled: torch.Tensor, radius: torch.Tensor
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """What `pool` found, now on the CPU, as `pool_cells` gives it."""
    upper = np.nextafter(radius.numpy().astype(np.float32), np.float32(np.inf))
    return pooled.view(torch.uint8).numpy().reshape(len(pooled), 2 * pooled.shape[1]), upper


def unpool(pooled: npt.NDArray[np.uint8]) -> torch.Tensor:
    """(T, D) bfloat16: the stored vectors of `pool_cells`, or of the column `pooled` as (T, 2 D) bytes."""
    return codec("bf16").decode(np.array(pooled, dtype=np.uint8))
