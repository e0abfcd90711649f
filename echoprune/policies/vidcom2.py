"""Policy `vidcom2`, after VidCom2 (arXiv 2505.14454) as its authors' code has it: what stands out of its cell and video.

    channels   the half (rounded down) of them with the lowest variance over all tokens; unit vectors x of those
    k(x, y)  = sum over a in {1/8, 1/4, 1/2, 1, 2} of exp(-|x - y|^2 / 2a)
    v = k(x, mean of all x),  u = k(x, mean of the cell's x)         high = like the others
    p = softmax over cells of (-mean of v in the cell / 0.01),  R = K / T N
    quota[t] = max(1, round(min(1, R (1 + p[t] - mean of p)) N));  a cell keeps its quota of the lowest v + u

Then, to meet the budget: with too many, the highest v + u among them go; with too few, the lowest v + u of the others come.
So below one token a cell some cells keep nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from echoprune.policies.candidates import Candidates, finite_norms, units

CHANNEL_SHARE = 0.5
WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
TEMPERATURE = 0.01
# Of float32 vectors at a time: 64 MB, enough work for one step, little beside the video itself.
CHUNK_BYTES = 64 << 20


def choose(candidates: Candidates) -> torch.Tensor:
    """Indices of the kept tokens, int64, ascending. Ties: the lower index wins. Raises ModelError if not finite."""
    vectors = candidates.require_vectors()
    places = vectors.shape[1]
    to_video, to_cell = similarities(vectors)
    quota = cell_quotas(to_video, budget=candidates.count).to(vectors.device)
    score = -(to_video + to_cell)
    order = torch.sort(score, dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(places, device=order.device).expand_as(order)
    )
    within = (rank < quota[:, None]).flatten()
    # By quota first and by score second: what is over goes, and what is missing comes, from the end of either.
    by_score = torch.sort(score.flatten(), descending=True, stable=True).indices
    by_both = by_score[torch.sort(within[by_score].to(torch.uint8), descending=True, stable=True).indices]
    return by_both[: candidates.count].sort().values


def similarities(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel of each token with the mean of the video, v, and of its cell, u; (T, N) float32 each."""
    cells, places, _ = vectors.shape
    channels = _steady_channels(vectors)
    cell_mean = torch.empty((cells, len(channels)), dtype=torch.float32, device=vectors.device)
    for part in _parts(vectors):
        cell_mean[part] = units(vectors[part][:, :, channels]).mean(dim=1)
    video_mean = cell_mean.mean(dim=0)
    to_video, to_cell = torch.empty((2, cells, places), dtype=torch.float32, device=vectors.device)
    for part in _parts(vectors):
        unit = units(vectors[part][:, :, channels])
        to_video[part] = _kernel(unit, video_mean)
        to_cell[part] = _kernel(unit, cell_mean[part][:, None])
    return to_video, to_cell


def cell_quotas(to_video: torch.Tensor, *, budget: int) -> torch.Tensor:
    """(T,) int64: how many tokens each cell may keep, 1 to N, before the budget is met exactly."""
    cells, places = to_video.shape
    # In float64, as the division by 0.01 makes much of small differences.
    unlike = -to_video.double().mean(dim=1)
    weight = torch.softmax((unlike - unlike.max()) / TEMPERATURE, dim=0)
    share = budget / (cells * places) * (1 + weight - weight.mean())
    return (share.clamp(max=1.0) * places).round().long().clamp(min=1)


def _steady_channels(vectors: torch.Tensor) -> torch.Tensor:
    """Indices, ascending, of the channels with the lowest variance; of equal ones the lower index."""
    cells, places, dim = vectors.shape
    total = torch.zeros(dim, dtype=torch.float64, device=vectors.device)
    for part in _parts(vectors):
        # Here, as a channel that is not finite is none of the steady ones.
        finite_norms(vectors[part])
        total += vectors[part].sum(dim=(0, 1), dtype=torch.float64)
    mean = (total / (cells * places)).float()
    spread = torch.zeros_like(total)
    for part in _parts(vectors):
        spread += (vectors[part].float() - mean).square().sum(dim=(0, 1), dtype=torch.float64)
    order = torch.sort(spread, stable=True).indices
    return order[: max(1, int(dim * CHANNEL_SHARE))].sort().values


def _kernel(unit: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    distance = (unit - centre).square().sum(dim=-1)
    return torch.stack([torch.exp(-distance / (2 * width)) for width in WIDTHS]).sum(dim=0)


def _parts(vectors: torch.Tensor) -> Iterator[slice]:
    cells, places, dim = vectors.shape
    step = max(1, CHUNK_BYTES // (4 * places * dim))
    for begin in range(0, cells, step):
        yield slice(begin, begin + step)
