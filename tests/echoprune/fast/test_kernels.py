"""Each kernel against the same in plain torch. Needs Triton: a GPU, or TRITON_INTERPRET=1 and the package `triton`."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton comes with a CUDA build of torch")
from benchmarks.scoring_gpu import exact_scores
from echoprune.echo import ZERO_NORM, echo_scores
from echoprune.fast import decode_kernels, echo_kernels, kernels, operations

CUDA = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(
    not CUDA and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a GPU, or TRITON_INTERPRET=1"
)
DEVICE = "cuda" if CUDA else "cpu"
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# Triton's interpreter multiplies no matrices of bfloat16.
product_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16 if CUDA else torch.float16])


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def on_device(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [None if each is None else each.to(DEVICE) for each in tensors]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # A result that rounds to the other neighbour in bf16 is off by 2^-8 of itself at most.
    exact = expected.dtype == torch.float32
    torch.testing.assert_close(
        found.cpu(), expected, rtol=1e-5 if exact else 8e-3, atol=2e-6 if exact else 2e-3
    )


@dtypes
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("width", [64, 100])
def test_norm(dtype: torch.dtype, centred: bool, shifted: bool, width: int) -> None:
    x, weight = random(5, width, dtype=dtype), random(width, dtype=dtype, seed=1)
    bias = random(width, dtype=dtype, seed=2) if centred else None
    shift = random(width, seed=3) if shifted else None
    expected = operations.norm(x, weight, bias, shift, 1e-6)
    close(kernels.norm(*on_device(x, weight, bias, shift), 1e-6), expected)


def test_norm_of_rows_that_lie_apart() -> None:
    x = random(5, 200)[:, 30:94]
    expected = operations.norm(x, random(64), None, None, 1e-6)
    apart = random(5, 200).to(DEVICE)[:, 30:94]
    close(kernels.norm(apart, random(64).to(DEVICE), None, None, 1e-6), expected)


@dtypes
@pytest.mark.parametrize("width", [128, 2500])
def test_silu_product(dtype: torch.dtype, width: int) -> None:
    x = 3 * random(3, 2 * width, dtype=dtype)
    close(kernels.silu_product(x.to(DEVICE)), operations.silu_product(x))


@dtypes
@pytest.mark.parametrize(("heads", "half"), [(3, 10), (4, 8)])
def test_rotate(dtype: torch.dtype, heads: int, half: int) -> None:
    angle = 5 * random(6, half, seed=4)
    expected = random(12, 3 * heads * 2 * half, dtype=dtype)
    found = expected.to(DEVICE, copy=True)
    kernels.rotate(found, *on_device(angle.cos(), angle.sin()), heads)
    operations.rotate(expected, angle.cos(), angle.sin(), heads)
    close(found, expected)


@product_dtypes
@pytest.mark.parametrize(("heads", "half"), [(2, 10), (1, 40)])
@pytest.mark.parametrize("lengths", [(16, 16), (16, 8, 4, 12), (20, 1, 11)])
def test_window_attention(dtype: torch.dtype, heads: int, half: int, lengths: tuple[int, ...]) -> None:
    cell = sum(lengths)
    edges = torch.tensor([0, *(2 * lengths)]).cumsum(0).to(torch.int32)
    angle = 5 * random(cell, half, seed=4)
    qkv = random(2 * cell, 3 * heads * 2 * half, dtype=dtype)
    expected = operations.window_attention(
        qkv, angle.cos(), angle.sin(), edges, longest=max(lengths), heads=heads
    )
    found = kernels.window_attention(*on_device(qkv, angle.cos(), angle.sin(), edges), max(lengths), heads)
    close(found, expected)


@dtypes
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(7, 1), (6, 3)])
def test_place(dtype: torch.dtype, normed: bool, heads: int, kv_heads: int) -> None:
    rows, width, slots, capacity = 5, 16, 3, 9
    qkv = random(rows, (heads + 2 * kv_heads) * width, dtype=dtype)
    angle = 5 * random(rows, width // 2, seed=1)
    angles = angle.cos(), angle.sin()
    slot, at = torch.tensor([0, 0, 2, 2, 1]), torch.tensor([3, 4, 0, 8, 5])
    norms = (random(width, dtype=dtype, seed=2), random(width, dtype=dtype, seed=3), 1e-6) if normed else None
    cache = random(2, slots, kv_heads, capacity, width, dtype=dtype, seed=4)
    theirs = cache.to(DEVICE, copy=True)
    moved = None if norms is None else (norms[0].to(DEVICE), norms[1].to(DEVICE), norms[2])
    found = decode_kernels.place(
        qkv.to(DEVICE, copy=True),
        tuple(each.to(DEVICE) for each in angles),
        (theirs[0], theirs[1]),
        slot.to(DEVICE),
        at.to(DEVICE),
        moved,
    )
    expected = operations.place(qkv, angles, (cache[0], cache[1]), slot=slot, at=at, norms=norms)
    close(found, expected)
    close(theirs, cache)


@product_dtypes
@pytest.mark.parametrize(("heads", "kv_heads"), [(7, 1), (6, 3)])
@pytest.mark.parametrize("seen", [(0, 1, 200), (64, 65, 129), (300, 3, 0)])
def test_attend(dtype: torch.dtype, heads: int, kv_heads: int, seen: tuple[int, ...]) -> None:
    width = 16
    query = random(3, heads, width, dtype=dtype)
    keys, values = 2 * random(2, 3, kv_heads, 300, width, dtype=dtype, seed=1)
    lengths = torch.tensor(seen)
    # What lies beyond a sequence must not count, whatever it is.
    for slot, count in enumerate(seen):
        keys[slot, :, count:] = values[slot, :, count:] = 1e4
    expected = operations.attend(query, (keys, values), lengths)
    found = decode_kernels.attend(query.to(DEVICE), (keys.to(DEVICE), values.to(DEVICE)), lengths.to(DEVICE))
    close(found, expected)


def test_a_sequence_is_cut_into_as_many_parts_as_fill_the_gpu() -> None:
    assert [decode_kernels.splits(slots, 4) for slots in (1, 2, 8, 16, 64, 256)] == [64, 64, 16, 8, 2, 1]


@product_dtypes
@pytest.mark.parametrize("radius", [None, 1, 2])
@pytest.mark.parametrize(("grid_hw", "dim"), [((3, 5), 70), ((1, 4), 16), ((7, 10), 64)])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_echo_scores(
    dtype: torch.dtype, radius: int | None, grid_hw: tuple[int, int], dim: int, temperature: float
) -> None:
    places = grid_hw[0] * grid_hw[1]
    drift = random(4, places, dim).cumsum(0) * 0.3 + random(1, places, dim, seed=1)
    tokens = (drift * (20 * random(4, places, 1, seed=2).abs() + 0.1)).to(dtype)
    tokens[1, 0] = tokens[2, -1] = 0
    window = None if radius is None else 2 * radius + 1
    expected = echo_scores(tokens, grid_hw=grid_hw, temperature=temperature, window=window)
    settings = {"grid_hw": grid_hw, "radius": radius, "temperature": temperature, "zero": ZERO_NORM}
    found = echo_kernels.scores(tokens.to(DEVICE), None, **settings)
    norm, correspondence, echo = found
    close_scores = {"atol": 1e-5 if temperature > 0.1 else 1e-4, "rtol": 0}
    torch.testing.assert_close(correspondence.cpu(), expected.correspondence, atol=1e-5, rtol=0)
    torch.testing.assert_close(echo.cpu(), expected.echo, **close_scores)
    torch.testing.assert_close(norm.cpu(), tokens.float().norm(dim=-1), rtol=1e-5, atol=1e-6)
    # In two parts, the second after the last cell of the first: the same bits.
    parts = [
        echo_kernels.scores(tokens[:2].to(DEVICE), None, **settings),
        echo_kernels.scores(tokens[2:].to(DEVICE), tokens[1].to(DEVICE), **settings),
    ]
    assert torch.equal(torch.cat(parts, dim=1), found)


@product_dtypes
def test_echo_scores_of_cells_of_several_tiles(dtype: torch.dtype) -> None:
    grid_hw, dim = (9, 15), 520  # beyond one tile of 128 tokens, and one sum of 512 values
    tokens = (random(1, 135, dim) + 0.5 * random(3, 135, dim, seed=1)).to(dtype)
    settings = {"grid_hw": grid_hw, "radius": None, "temperature": 0.1, "zero": ZERO_NORM}
    found = echo_kernels.scores(tokens[1:].to(DEVICE), tokens[0].to(DEVICE), **settings).cpu()
    expected = echo_scores(tokens, grid_hw=grid_hw, temperature=0.1)
    torch.testing.assert_close(found[1], expected.correspondence[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[2], expected.echo[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0], tokens[1:].float().norm(dim=-1), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
@pytest.mark.parametrize("radius", [None, 1])
@pytest.mark.parametrize("dim", [3584, 4096])
def test_echo_scores_of_bfloat16_tokens_are_exact_to_a_hundred_thousandth(
    radius: int | None, dim: int
) -> None:
    """Of one dimension of the released models: tensor cores lose more the more values they add up."""
    side = 16
    tokens = (random(1, side * side, dim) + 0.3 * random(9, side * side, dim, seed=1)).to(torch.bfloat16)
    temperature = 0.5 if radius is None else 0.1
    exact = exact_scores(tokens, side, None if radius is None else 2 * radius + 1, temperature)
    settings = {"grid_hw": (side, side), "radius": radius, "temperature": temperature, "zero": ZERO_NORM}
    found = echo_kernels.scores(tokens.to(DEVICE), None, **settings).cpu().double()
    for ours, theirs in zip(found[1:, 1:], exact, strict=True):
        assert float((ours - theirs).abs().max()) < 5e-6
