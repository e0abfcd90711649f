"""Triton kernels for what lies between matrix products; each reads its input once and writes its output once.

Sums, exponentials and rotations are in float32; results are rounded to the tensor's own dtype. No kernel is compiled
for a number of rows, so that another video size or prompt length compiles nothing; Triton keeps what it compiled on
disk. What each computes is written in plain torch in `operations.py`, which the tests compare it with.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _norm(
    x, weight, bias, shift, out, width, x_stride, eps,
    CENTRED: tl.constexpr, SHIFTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    value = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if SHIFTED:
        value += tl.load(shift + at, mask=inside, other=0.0)
    if CENTRED:
        value = tl.where(inside, value - tl.sum(value, axis=0) / width, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / width + eps)
    value = value * scale * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if CENTRED:
        value += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, value.to(out.dtype.element_ty), mask=inside)


def norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shift: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """See `operations.norm`."""
    rows, width = x.shape
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    _norm[(rows,)](
        x, weight, weight if bias is None else bias, weight if shift is None else shift, out, width, x.stride(0), eps,
        CENTRED=bias is not None, SHIFTED=shift is not None, BLOCK=block, num_warps=8 if block >= 4096 else 4,
    )  # fmt: skip
    return out


@triton.jit
def _silu_product(x, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(x + row * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(
        out + row * width + at, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside
    )


def silu_product(x: torch.Tensor) -> torch.Tensor:
    """See `operations.silu_product`."""
    rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    _silu_product[(rows, triton.cdiv(width, 2048))](x, out, width, BLOCK=2048, num_warps=8)
    return out


@triton.jit
def _rotate(
    qkv, cos, sin, stride, period,
    HEADS: tl.constexpr, HALF: tl.constexpr, HEADS_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS_BLOCK)[:, None]
    at = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < HEADS) & (at < HALF)
    angle = (row % period) * HALF + at
    c = tl.load(cos + angle, mask=at < HALF, other=0.0)
    s = tl.load(sin + angle, mask=at < HALF, other=0.0)
    first = qkv + row * stride + head * (2 * HALF) + at
    a = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(first + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(first, (a * c - b * s).to(qkv.dtype.element_ty), mask=inside)
    tl.store(first + HALF, (b * c + a * s).to(qkv.dtype.element_ty), mask=inside)


def rotate(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int) -> None:
    """See `operations.rotate`."""
    rows, half = qkv.shape[0], cos.shape[1]
    _rotate[(rows,)](
        qkv, cos, sin, qkv.stride(0), cos.shape[0],
        HEADS=2 * heads, HALF=half, HEADS_BLOCK=triton.next_power_of_2(2 * heads),
        HALF_BLOCK=triton.next_power_of_2(half), num_warps=4,
    )  # fmt: skip


@triton.jit
def _window_attention(
    qkv, cos, sin, edges, out, stride, period, scale,
    HEADS: tl.constexpr, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, LONGEST: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    window = tl.program_id(0)
    head = tl.program_id(1)
    begin = tl.load(edges + window)
    end = tl.load(edges + window + 1)
    row = begin + tl.arange(0, LONGEST)
    at = tl.arange(0, HALF_BLOCK)
    inside = (row < end)[:, None] & (at < HALF)[None, :]
    angle = (row % period)[:, None] * HALF + at[None, :]
    c = tl.load(cos + angle, mask=inside, other=0.0)
    s = tl.load(sin + angle, mask=inside, other=0.0)
    query = qkv + row[:, None].to(tl.int64) * stride + head * (2 * HALF) + at[None, :]
    key = query + HEADS * 2 * HALF
    value = key + HEADS * 2 * HALF
    kind = qkv.dtype.element_ty

    a = tl.load(query, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(query + HALF, mask=inside, other=0.0).to(tl.float32)
    query_a = (a * c - b * s).to(kind)
    query_b = (b * c + a * s).to(kind)
    a = tl.load(key, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(key + HALF, mask=inside, other=0.0).to(tl.float32)
    key_a = (a * c - b * s).to(kind)
    key_b = (b * c + a * s).to(kind)

    score = tl.dot(query_a, tl.trans(key_a), input_precision=PRECISION)
    score += tl.dot(query_b, tl.trans(key_b), input_precision=PRECISION)
    score = tl.where((row < end)[None, :], score * scale, float("-inf"))
    weight = tl.exp(score - tl.max(score, axis=1)[:, None])
    total = tl.sum(weight, axis=1)[:, None]
    weight = weight.to(kind)
    value_a = tl.load(value, mask=inside, other=0.0)
    value_b = tl.load(value + HALF, mask=inside, other=0.0)
    place = out + row[:, None].to(tl.int64) * (HEADS * 2 * HALF) + head * (2 * HALF) + at[None, :]
    found_a = tl.dot(weight, value_a, input_precision=PRECISION) / total
    found_b = tl.dot(weight, value_b, input_precision=PRECISION) / total
    tl.store(place, found_a.to(kind), mask=inside)
    tl.store(place + HALF, found_b.to(kind), mask=inside)


def window_attention(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, edges: torch.Tensor, longest: int, heads: int
) -> torch.Tensor:
    """See `operations.window_attention`."""
    rows, half = qkv.shape[0], cos.shape[1]
    out = torch.empty((rows, heads * 2 * half), dtype=qkv.dtype, device=qkv.device)
    _window_attention[(len(edges) - 1, heads)](
        qkv, cos, sin, edges, out, qkv.stride(0), cos.shape[0], (2 * half) ** -0.5,
        HEADS=heads, HALF=half, HALF_BLOCK=max(16, triton.next_power_of_2(half)),
        LONGEST=max(16, triton.next_power_of_2(longest)), PRECISION="ieee", num_warps=4,
    )  # fmt: skip
    return out
