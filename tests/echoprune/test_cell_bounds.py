from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from echoprune.cell_bounds import directions, upper_bounds
from echoprune.pool import pool_cells, unpool
from echoprune.query import REDUCTIONS, relevance


@hypothesis_settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    dim=st.sampled_from([1, 2, 3, 24, 200]),
    spread=st.sampled_from([0.0, 1e-4, 0.1, 1.0, 10.0]),
    reduce=st.sampled_from(REDUCTIONS),
    near=st.booleans(),
)
def test_no_token_exceeds_its_cells_bound(
    seed: int, dim: int, spread: float, reduce: str, near: bool
) -> None:
    random = torch.Generator().manual_seed(seed)
    centre = torch.randn(20, 1, dim, generator=random)
    tokens = centre + spread * torch.randn(20, 6, dim, generator=random)
    tokens[torch.rand(20, 6, generator=random) < 0.05] = 0
    tokens[0] = 0
    tokens[1, 1:] = -tokens[1, :1]
    query = torch.randn(3, dim, generator=random)
    if near:
        query[:2] = tokens[5, :2]
    query[2] *= 0
    pooled, radius = pool_cells(tokens)
    of = directions(query, reduce)
    upper = upper_bounds(unpool(pooled), radius, of=of)
    best = relevance(tokens, query, reduce=reduce).amax(dim=1).numpy()
    assert (best <= upper).all()
    plain = (unpool(pooled).float() @ of.unit.T).amax(dim=1).numpy() + radius
    assert (upper <= of.length * plain.clip(min=0) + 2 * of.slack).all()


def test_the_bound_of_cells_of_one_direction_is_close() -> None:
    random = torch.Generator().manual_seed(1)
    centre = torch.nn.functional.normalize(torch.randn(50, 1, 500, generator=random), dim=-1)
    tokens = centre + 0.02 * torch.nn.functional.normalize(torch.randn(50, 4, 500, generator=random), dim=-1)
    query = torch.randn(3, 500, generator=random)
    pooled, radius = pool_cells(tokens)
    upper = upper_bounds(unpool(pooled), radius, of=directions(query, "max"))
    best = relevance(tokens, query).amax(dim=1).numpy()
    assert (upper - best).max() == pytest.approx(0.0, abs=0.06)


def test_an_arc_is_closer_than_a_ball() -> None:
    tokens = torch.nn.functional.normalize(torch.tensor([[[1.0, 1.0], [1.0, -1.0]]]), dim=-1)
    pooled, radius = pool_cells(tokens)
    query = torch.tensor([[0.0, 1.0]])
    upper = upper_bounds(unpool(pooled), radius, of=directions(query, "max"))
    assert float(radius[0]) == pytest.approx(0.7654, abs=1e-3)
    # The token at 45 degrees has similarity 0.7071; q . p + radius would be 0.7654.
    assert float(upper[0]) == pytest.approx(0.7071, abs=1e-3)
