"""Muon over matrices of one shape at a time: what torch's own does one by one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.reference.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 16, 48), (3, 48, 16), (1, 32, 32)])
def test_singular_values_become_equal(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor([1e-6, 1.0, 1e4])[: shape[0], None, None]
    values = torch.linalg.svdvals(orthogonal(matrices).float())
    assert values.max() < 1.3
    # Of a random square matrix the least are near nothing, and grow by 3.4 a turn.
    assert values.median(dim=1).values.min() > 0.6
    u, _, v = torch.linalg.svd(matrices[0], full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity(orthogonal(matrices)[0].flatten(), (u @ v).flatten(), dim=0)
        > 0.9
    )


def test_a_matrix_of_zeros_stays_one() -> None:
    assert torch.equal(orthogonal(torch.zeros(2, 4, 8)), torch.zeros(2, 4, 8))


def test_its_steps_are_those_of_torch() -> None:
    torch.manual_seed(0)
    shapes = [(24, 8), (8, 24), (24, 8), (16, 16)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
    options = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    mine = Muon(ours, **options)
    other = torch.optim.Muon(theirs, nesterov=True, adjust_lr_fn="match_rms_adamw", **options)
    begun = [weight.detach().clone() for weight in ours]
    for step in range(5):
        for a, b in zip(ours, theirs, strict=True):
            # One has no gradient in the third step.
            none = step == 2 and a is ours[2]
            a.grad = None if none else torch.randn_like(a)
            b.grad = None if none else a.grad.clone()
        mine.step()
        other.step()
    for a, b, first in zip(ours, theirs, begun, strict=True):
        moved = (b - first).norm()
        # torch iterates in bf16 everywhere.
        assert (a - b).norm() < 0.02 * moved


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="matrices alone"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
