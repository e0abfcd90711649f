"""Triton kernels of a language model's attention over a cache: placing keys and values, and one new query a sequence.

Sums, exponentials and rotations are in float32. Heads must be 16, 32, 64, 128 or 256 wide. See `operations.py` for what
each computes, and `kernels.py` for the others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 64
# Programs of one call: two for each multiprocessor of an H100 or H200, so that one long sequence fills the GPU too.
PROGRAMS = 264
MOST_SPLITS = 64


@triton.jit
def _turned(first, at_cos, at_sin, weight, lane, inside, eps, HALF: tl.constexpr, NORMED: tl.constexpr):
    a = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(first + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORMED:
        square = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)
        scale = (1.0 / tl.sqrt(square / (2 * HALF) + eps))[:, None]
        a = a * scale * tl.load(weight + lane).to(tl.float32)
        b = b * scale * tl.load(weight + HALF + lane).to(tl.float32)
    return a * at_cos - b * at_sin, b * at_cos + a * at_sin


@triton.jit
def _place(
    qkv, cos, sin, keys, values, slot, at, q_weight, k_weight, stride, slot_stride, head_stride, eps,
    QUERIES: tl.constexpr, QUERIES_BLOCK: tl.constexpr, KEYS: tl.constexpr, KEYS_BLOCK: tl.constexpr,
    HALF: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, HALF)[None, :]
    c = tl.load(cos + row * HALF + lane)
    s = tl.load(sin + row * HALF + lane)
    kind = qkv.dtype.element_ty
    head = tl.arange(0, QUERIES_BLOCK)[:, None]
    inside = (head < QUERIES) & (lane < HALF)
    first = qkv + row * stride + head * (2 * HALF) + lane
    a, b = _turned(first, c, s, q_weight, lane, inside, eps, HALF, NORMED)
    tl.store(first, a.to(kind), mask=inside)
    tl.store(first + HALF, b.to(kind), mask=inside)

    head = tl.arange(0, KEYS_BLOCK)[:, None]
    inside = (head < KEYS) & (lane < HALF)
    first = qkv + row * stride + (QUERIES + head) * (2 * HALF) + lane
    place = tl.load(slot + row) * slot_stride + tl.load(at + row) * (2 * HALF)
    place = place + head.to(tl.int64) * head_stride + lane
    a, b = _turned(first, c, s, k_weight, lane, inside, eps, HALF, NORMED)
    tl.store(keys + place, a.to(kind), mask=inside)
    tl.store(keys + place + HALF, b.to(kind), mask=inside)
    first += KEYS * 2 * HALF
    tl.store(values + place, tl.load(first, mask=inside, other=0.0), mask=inside)
    tl.store(values + place + HALF, tl.load(first + HALF, mask=inside, other=0.0), mask=inside)


def place(
    qkv: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    cache: tuple[torch.Tensor, torch.Tensor],
    slot: torch.Tensor,
    at: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor, float] | None,
) -> torch.Tensor:
    """See `operations.place`."""
    (cos, sin), (keys, values) = angles, cache
    rows, half, kv_heads = len(qkv), cos.shape[1], keys.shape[1]
    heads = qkv.shape[1] // (2 * half) - 2 * kv_heads
    q_weight, k_weight, eps = norms if norms is not None else (cos, cos, 0.0)
    _place[(rows,)](
        qkv, cos, sin, keys, values, slot, at, q_weight, k_weight, qkv.stride(0), keys.stride(0), keys.stride(1), eps,
        QUERIES=heads, QUERIES_BLOCK=triton.next_power_of_2(heads),
        KEYS=kv_heads, KEYS_BLOCK=triton.next_power_of_2(kv_heads),
        HALF=half, NORMED=norms is not None, num_warps=4,
    )  # fmt: skip
    return qkv[:, : heads * 2 * half].view(rows, heads, 2 * half)


@triton.jit
def _attend(
    query, keys, values, seen, part, peak, total, query_stride, slot_stride, head_stride, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, HEAD: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(seen + slot).to(tl.int32)
    share = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    begin = split * share
    end = tl.minimum(begin + share, length)
    member = tl.arange(0, GROUP_BLOCK)
    lane = tl.arange(0, HEAD)
    head = kv_head * GROUP + member
    asked = tl.load(
        query + slot * query_stride + head[:, None] * HEAD + lane[None, :],
        mask=(member < GROUP)[:, None] & (lane < HEAD)[None, :], other=0.0,
    )  # fmt: skip
    base = slot * slot_stride + kv_head.to(tl.int64) * head_stride
    best = tl.full((GROUP_BLOCK,), float("-inf"), tl.float32)
    weights = tl.zeros((GROUP_BLOCK,), tl.float32)
    found = tl.zeros((GROUP_BLOCK, HEAD), tl.float32)
    for first in range(begin, end, BLOCK):
        place = first + tl.arange(0, BLOCK)
        inside = place < end
        key = tl.load(
            keys + base + place[None, :].to(tl.int64) * HEAD + lane[:, None], mask=inside[None, :], other=0.0
        )
        value = tl.load(
            values + base + place[:, None].to(tl.int64) * HEAD + lane[None, :],
            mask=inside[:, None],
            other=0.0,
        )
        score = tl.dot(asked, key, input_precision=PRECISION) * scale
        score = tl.where(inside[None, :], score, float("-inf"))
        higher = tl.maximum(best, tl.max(score, axis=1))
        faded = tl.exp(best - higher)
        weight = tl.exp(score - higher[:, None])
        weights = weights * faded + tl.sum(weight, axis=1)
        found = found * faded[:, None] + tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)
        best = higher
    place = (slot * (KV_HEADS * GROUP) + head) * SPLITS + split
    tl.store(peak + place, best, mask=member < GROUP)
    tl.store(total + place, weights, mask=member < GROUP)
    tl.store(part + place[:, None] * HEAD + lane[None, :], found, mask=(member < GROUP)[:, None])


@triton.jit
def _combine(part, peak, total, out, HEADS: tl.constexpr, HEAD: tl.constexpr, SPLITS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * HEADS + tl.program_id(1)
    split = tl.arange(0, SPLITS)
    lane = tl.arange(0, HEAD)
    best = tl.load(peak + place * SPLITS + split)
    # A split that had nothing to see counts nothing; a sequence of no keys gives 0.
    weight = tl.where(best == float("-inf"), 0.0, tl.exp(best - tl.max(best, axis=0)))
    whole = tl.sum(weight * tl.load(total + place * SPLITS + split), axis=0)
    found = tl.load(part + (place * SPLITS + split)[:, None] * HEAD + lane[None, :])
    found = tl.sum(found * weight[:, None], axis=0) / tl.where(whole > 0, whole, 1.0)
    tl.store(out + place * HEAD + lane, found.to(out.dtype.element_ty))


def splits(slots: int, kv_heads: int) -> int:
    """Into how many parts a sequence is cut, a power of two; the same for all lengths, as a CUDA graph requires."""
    needed = -(-PROGRAMS // (slots * kv_heads))
    return min(MOST_SPLITS, 1 << (needed - 1).bit_length())


def attend(query: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], seen: torch.Tensor) -> torch.Tensor:
    """See `operations.attend`."""
    keys, values = cache
    (slots, heads, head), kv_heads = query.shape, keys.shape[1]
    cut = splits(slots, kv_heads)
    part = torch.empty((slots, heads, cut, head), dtype=torch.float32, device=query.device)
    peak, total = torch.empty((2, slots, heads, cut), dtype=torch.float32, device=query.device)
    out = torch.empty((slots, heads * head), dtype=query.dtype, device=query.device)
    group = heads // kv_heads
    _attend[(slots, kv_heads, cut)](
        query, keys, values, seen, part, peak, total, query.stride(0), keys.stride(0), keys.stride(1), head**-0.5,
        KV_HEADS=kv_heads, GROUP=group, GROUP_BLOCK=max(16, triton.next_power_of_2(group)), HEAD=head, SPLITS=cut,
        BLOCK=BLOCK, PRECISION="ieee", num_warps=4, num_stages=3,
    )  # fmt: skip
    _combine[(slots, heads)](part, peak, total, out, HEADS=heads, HEAD=head, SPLITS=cut, num_warps=2)
    return out
