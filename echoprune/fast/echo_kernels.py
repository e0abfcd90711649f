"""Echo scores as Triton kernels: products, softmax and mean of a cell against the one before; no similarity is stored.

Three launches for all cells of a segment, the first of which meets the last cell of the segment before: lengths of the
tokens, one program for each tile of similarities (or each place, with a window), and the tiles of a row put together.
Tokens are multiplied as they are, sums and the softmax are float32. What a program computes, and in which order, depends
on the numbers of places and of values alone, so that scores do not depend on how a video is cut. `echoprune/echo.py`
says what is computed, and computes it in plain torch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Below every similarity, and finite: the difference of two infinities is not a number.
LOWEST = tl.constexpr(-4.0)
# Tensor cores cut their running sums off, they do not round: over 3,584 values that took 8e-6 of the 1e-5 that a score may
# be off. Sums of so many are added up in float32 proper.
SPAN = 512
# 32 tiles of 128 x 128 for eight cells of 256 tokens leave most of a GPU idle, and still take a tenth of a percent of the
# encoding; at 1,024 tokens smaller ones would read the tokens from the cache twice as often.
LARGEST_TILE = 128


@triton.jit(do_not_specialize=["skipped"])
def _lengths(tokens, last, length, places, dim, skipped, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) + skipped
    at = tl.arange(0, BLOCK)
    if row < places:
        value = tl.load(last + row * dim + at, mask=at < dim, other=0.0).to(tl.float32)
    else:
        value = tl.load(tokens + (row - places) * dim + at, mask=at < dim, other=0.0).to(tl.float32)
    tl.store(length + row, tl.sqrt(tl.sum(value * value, axis=0)))


@triton.jit
def _inverse(length, zero):
    return tl.where(length > zero, 1.0 / length, 0.0)


@triton.jit(do_not_specialize=["first", "cells"])
def _tiles(
    tokens, last, length, correspondence, parts, places, dim, first, cells, cold, zero,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, SPAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(places, COLUMNS)
    cell = tl.program_id(1).to(tl.int64) + first
    tile = tl.program_id(0) % across
    i = (tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)
    j = tile * COLUMNS + tl.arange(0, COLUMNS)
    now = tokens + cell * places * dim
    past = last if cell == 0 else tokens + (cell - 1) * places * dim
    product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for outer in range(0, dim, SPAN):
        part = tl.zeros((ROWS, COLUMNS), tl.float32)
        for inner in range(0, SPAN, INNER):
            lane = outer + inner + tl.arange(0, INNER)
            rows = tl.load(
                now + i[:, None] * dim + lane[None, :],
                mask=(i < places)[:, None] & (lane < dim)[None, :], other=0.0,
            )  # fmt: skip
            columns = tl.load(
                past + j[None, :] * dim + lane[:, None],
                mask=(j < places)[None, :] & (lane < dim)[:, None], other=0.0,
            )  # fmt: skip
            part = tl.dot(rows, columns, part, input_precision=PRECISION)
        product += part
    # Lengths begin with those of the last cell before.
    column_scale = _inverse(tl.load(length + cell * places + j, mask=j < places, other=0.0), zero)
    row_scale = _inverse(tl.load(length + (cell + 1) * places + i, mask=i < places, other=0.0), zero)
    similarity = product * row_scale[:, None] * column_scale[None, :]
    same = tl.sum(tl.where(i[:, None] == j[None, :], similarity, 0.0), axis=1)
    met = (i < places) & (i >= tile * COLUMNS) & (i < (tile + 1) * COLUMNS)
    tl.store(correspondence + cell * places + i, same, mask=met)
    inside = (j < places)[None, :]
    best = tl.max(tl.where(inside, similarity, LOWEST), axis=1)
    weight = tl.where(inside, tl.exp((similarity - best[:, None]) * cold), 0.0)
    place = parts + (cell * across + tile) * places + i
    apart = cells * across * places
    tl.store(place, best, mask=i < places)
    tl.store(place + apart, tl.sum(weight, axis=1), mask=i < places)
    tl.store(place + 2 * apart, tl.sum(weight * similarity, axis=1), mask=i < places)


@triton.jit(do_not_specialize=["first", "cells"])
def _joined(parts, echo, places, first, cells, across, cold, BLOCK: tl.constexpr):
    cell = tl.program_id(1).to(tl.int64) + first
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    apart = cells * across * places
    best = tl.full((BLOCK,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    mean = tl.zeros((BLOCK,), tl.float32)
    for tile in range(0, across):
        place = parts + (cell * across + tile) * places + i
        of_tile = tl.load(place, mask=i < places, other=LOWEST)
        higher = tl.maximum(best, of_tile)
        faded = tl.exp((best - higher) * cold)
        weight = tl.exp((of_tile - higher) * cold)
        total = total * faded + weight * tl.load(place + apart, mask=i < places, other=1.0)
        mean = mean * faded + weight * tl.load(place + 2 * apart, mask=i < places, other=0.0)
        best = higher
    tl.store(echo + cell * places + i, mean / total, mask=i < places)


@triton.jit(do_not_specialize=["first"])
def _window(
    tokens, last, length, correspondence, echo, height, width, dim, first, reach_h, reach_w, cold, zero,
    BLOCK: tl.constexpr,
):  # fmt: skip
    places = height * width
    cell = tl.program_id(1).to(tl.int64) + first
    i = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    past = last if cell == 0 else tokens + (cell - 1) * places * dim
    token = tl.load(tokens + (cell * places + i) * dim + at, mask=at < dim, other=0.0).to(tl.float32)
    scale = _inverse(tl.load(length + (cell + 1) * places + i), zero)
    best = LOWEST
    total = 0.0
    mean = 0.0
    same = 0.0
    for offset in range(0, (2 * reach_h + 1) * (2 * reach_w + 1)):
        down = offset // (2 * reach_w + 1) - reach_h
        right = offset % (2 * reach_w + 1) - reach_w
        row = i // width + down
        column = i % width + right
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        j = tl.where(inside, row * width + column, 0)
        other = tl.load(past + j * dim + at, mask=at < dim, other=0.0).to(tl.float32)
        other_scale = _inverse(tl.load(length + cell * places + j), zero)
        similarity = tl.sum(token * other, axis=0) * scale * other_scale
        same += tl.where((down == 0) & (right == 0), similarity, 0.0)
        higher = tl.maximum(best, tl.where(inside, similarity, LOWEST))
        faded = tl.exp((best - higher) * cold)
        weight = tl.where(inside, tl.exp((similarity - higher) * cold), 0.0)
        total = total * faded + weight
        mean = mean * faded + weight * similarity
        best = higher
    tl.store(correspondence + cell * places + i, same)
    tl.store(echo + cell * places + i, mean / total)


def scores(
    tokens: torch.Tensor,
    last: torch.Tensor | None,
    *,
    grid_hw: tuple[int, int],
    radius: int | None,
    temperature: float,
    zero: float,
) -> torch.Tensor:
    """(3, T, N) float32 length, correspondence and echo of `tokens` (T, N, D), the first cell against `last` (N, D).

    Without a `last` the first cell's scores are 0. `radius`: of the window, None for the whole cell. A token no longer
    than `zero` resembles nothing.
    """
    cells, places, dim = tokens.shape
    tokens = tokens.contiguous()
    first = int(last is None)
    before = tokens if last is None else last.contiguous()
    # Lengths begin with those of the last cell before.
    found = torch.empty((3 * cells + 1, places), dtype=torch.float32, device=tokens.device)
    correspondence, echo = found[1 + cells : 1 + 2 * cells], found[1 + 2 * cells :]
    if cells:
        _lengths[((cells + 1 - first) * places,)](
            tokens, before, found, places, dim, first * places, BLOCK=triton.next_power_of_2(dim), num_warps=8
        )
    if first:
        found[1 + cells :].zero_()
    if cells > first and radius is None:
        side, inner = _tile(places, tokens.dtype)
        across = triton.cdiv(places, side)
        parts = torch.empty((3, cells, across, places), dtype=torch.float32, device=tokens.device)
        _tiles[(across * across, cells - first)](
            tokens, before, found, correspondence, parts, places, dim, first, cells, 1.0 / temperature, zero,
            ROWS=side, COLUMNS=side, INNER=inner, SPAN=min(SPAN, triton.cdiv(dim, inner) * inner), PRECISION="ieee",
            num_warps=8 if side == LARGEST_TILE else 4, num_stages=4,
        )  # fmt: skip
        _joined[(triton.cdiv(places, 128), cells - first)](
            parts, echo, places, first, cells, across, 1.0 / temperature, BLOCK=128, num_warps=4
        )
    elif cells > first and radius is not None:
        height, width = grid_hw
        _window[(places, cells - first)](
            tokens, before, found, correspondence, echo, height, width, dim, first,
            min(radius, height - 1), min(radius, width - 1), 1.0 / temperature, zero,
            BLOCK=triton.next_power_of_2(dim), num_warps=8,
        )  # fmt: skip
    return found[1:].view(3, cells, places)


def _tile(places: int, dtype: torch.dtype) -> tuple[int, int]:
    """The side of a tile, and how many values of its tokens are multiplied at a time."""
    if dtype == torch.float32:
        # Not by tensor cores: a larger tile's sums do not fit in the registers.
        return (64 if places > 32 else 16), 32
    return next((side for side in (16, 64) if places <= side), LARGEST_TILE), 64
