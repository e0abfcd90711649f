"""Policy `random`: tokens drawn without replacement; published comparisons find it strong."""

from __future__ import annotations

import torch

from echoprune.policies.candidates import Candidates


def choose(candidates: Candidates) -> torch.Tensor:
    """Indices of the kept tokens, int64, ascending: a sample of min(K, n), each equally likely.

    It depends on `seed` and n alone, on every device; a smaller budget keeps a part of what a larger one keeps.
    """
    # On the CPU: a CUDA generator of the same seed gives other numbers.
    generator = torch.Generator().manual_seed(candidates.seed)
    return torch.randperm(len(candidates.stored.t), generator=generator)[: candidates.count].sort().values
