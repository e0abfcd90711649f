"""Muon: the momentum of a matrix's gradient with all of its singular values made equal, which is what the matrix moves by.

Described by K. Jordan and others (Muon, 2024), with the scale by which rates are those of AdamW from "Muon is scalable for
LLM training" (2025). torch has it as `torch.optim.Muon` (2.9), one matrix after another: 25 kernels for each of 80
matrices are as many as the rest of a training step. Here matrices of one shape go together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

# Of x -> a x + b x^3 + c x^5, whose powers take any singular value of (0, 1] to between 0.7 and 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_TURNS = 5
# Root mean square of an update by AdamW, about.
_RMS = 0.2


class Muon(torch.optim.Optimizer):
    """The optimiser of weights that are matrices, and of nothing else: embeddings and biases are not its affair."""

    def __init__(
        self,
        weights: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            if any(weight.ndim != 2 for weight in group["params"]):
                raise ValueError("Muon takes matrices alone")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves each matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for shape, weights in by_shape.items():
                for weight in weights:
                    if "momentum" not in self.state[weight]:
                        self.state[weight]["momentum"] = torch.zeros_like(weight)
                grads = [weight.grad for weight in weights]
                momenta = [self.state[weight]["momentum"] for weight in weights]
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
                moves = orthogonal(torch.stack(list(ahead)))
                rate = group["lr"] * _RMS * max(shape) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, list(moves.to(weights[0].dtype).unbind()), alpha=-rate)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """(K, rows, columns) `matrices` with singular values of 0.7 to 1.2 in place of their own, in bf16 on a GPU.

    By Newton and Schulz's iteration. Singular values below some hundredths of the Frobenius norm come out smaller; a matrix of
    zeros stays one.
    """
    x = matrices.to(torch.bfloat16) if matrices.is_cuda else matrices.float()
    high = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if high else x
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(_TURNS):
        square = x @ x.transpose(1, 2)
        inner = torch.baddbmm(square, square, square, beta=_B, alpha=_C)
        x = torch.baddbmm(x, inner, x, beta=_A)
    return x.transpose(1, 2) if high else x
