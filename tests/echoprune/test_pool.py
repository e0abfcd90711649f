from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from echoprune import pool
from echoprune.pool import pool_cells, unpool


def unit(vectors: torch.Tensor) -> torch.Tensor:
    wide = vectors.double()
    norm = wide.norm(dim=-1, keepdim=True)
    return wide / torch.where(norm > 0, norm, 1.0)


@settings(max_examples=200, deadline=None)
@given(
    values=hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    query=hnp.arrays(np.float64, (4,), elements=st.floats(-1, 1)),
)
def test_the_bound_holds_for_every_token_and_query(values: np.ndarray, query: np.ndarray) -> None:
    tokens = torch.from_numpy(values)
    pooled, radius = pool_cells(tokens)
    q = unit(torch.from_numpy(query))
    bound = unpool(pooled).double() @ q + torch.from_numpy(radius).double()
    assert bool((unit(tokens) @ q <= bound[:, None]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_bound_is_reached_in_the_worst_direction(dtype: torch.dtype) -> None:
    tokens = torch.randn(5, 49, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    pooled, radius = pool_cells(tokens)
    away = unit(tokens) - unpool(pooled).double()[:, None]
    distance = away.norm(dim=-1)
    worst = distance.argmax(dim=1)
    assert bool((distance.amax(dim=1) <= torch.from_numpy(radius).double()).all())
    for cell, token in enumerate(worst.tolist()):
        q = unit(away[cell, token])
        gap = unpool(pooled).double()[cell] @ q + float(radius[cell]) - unit(tokens)[cell, token] @ q
        assert 0 <= float(gap) < 1e-6


def test_a_still_cell_is_its_own_token() -> None:
    token = torch.randn(16, generator=torch.Generator().manual_seed(1))
    pooled, radius = pool_cells(token.expand(2, 9, 16))
    assert torch.equal(unpool(pooled)[0], unit(token).to(torch.bfloat16))
    assert 0 < radius[0] < 2**-8


def test_zero_tokens_are_harmless() -> None:
    pooled, radius = pool_cells(torch.zeros(1, 4, 8))
    assert not pooled.any() and 0 < radius[0] < 1e-6


def test_batches_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.randn(7, 6, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    whole = pool_cells(tokens)
    monkeypatch.setattr(pool, "_BATCH_BYTES", 2 * 8 * 6 * 32)
    for one, other in zip(whole, pool_cells(tokens), strict=True):
        assert np.array_equal(one, other)


def test_no_cells_give_no_rows() -> None:
    pooled, radius = pool_cells(torch.zeros(0, 4, 8))
    assert pooled.shape == (0, 16) and radius.shape == (0,)
