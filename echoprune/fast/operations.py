"""The steps between matrix products, each in plain torch and, on a GPU, as one kernel.

The plain form says what is computed and runs wherever there is no GPU; `kernels.py` has the others.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F


@cache
def _kernels() -> ModuleType:
    from echoprune.fast import kernels  # noqa: PLC0415 - Triton comes with a CUDA build of torch alone

    return kernels


@cache
def _decode_kernels() -> ModuleType:
    from echoprune.fast import decode_kernels  # noqa: PLC0415

    return decode_kernels


def try_out(device: torch.device) -> None:
    """Runs one kernel on a GPU: what keeps Triton from compiling, such as no C compiler, is raised here."""
    ones = torch.ones((1, 16), device=device)
    norm(ones, ones[0], None, None, 1e-6).cpu()


def norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shift: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """(rows, D) normalised rows of `x` + `shift`: by their root mean square, or with a `bias` by mean and variance.

    `shift` (D,) float32 stands for biases that were left out of `x`; see `vision.py`.
    """
    if x.is_cuda:
        found: torch.Tensor = _kernels().norm(x, weight, bias, shift, eps)
        return found
    value = x.float() if shift is None else x.float() + shift
    if bias is not None:
        value = value - value.mean(-1, keepdim=True)
    value = value * torch.rsqrt(value.square().mean(-1, keepdim=True) + eps) * weight.float()
    return (value if bias is None else value + bias.float()).to(x.dtype)


def silu_product(x: torch.Tensor) -> torch.Tensor:
    """(rows, D) silu(gate) * up of `x` (rows, 2 D), which has the gates in its first half."""
    if x.is_cuda:
        found: torch.Tensor = _kernels().silu_product(x)
        return found
    gate, up = x.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(x.dtype)


def rotate(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int) -> None:
    """Turns queries and keys of `qkv` (rows, 3 x heads x 2 half) in place; row r by the angles of r modulo their number.

    `cos`, `sin` (positions, half) float32. Value i of a head is paired with value i + half.
    """
    if qkv.is_cuda:
        _kernels().rotate(qkv, cos, sin, heads)
        return
    half = cos.shape[1]
    turned = qkv[:, : 4 * heads * half].view(len(qkv), 2 * heads, 2, half)
    c, s = (each.repeat(len(qkv) // len(each), 1)[:, None] for each in (cos, sin))
    a, b = turned.float().unbind(2)
    turned.copy_(torch.stack([a * c - b * s, b * c + a * s], dim=2))


def window_attention(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, edges: torch.Tensor, *, longest: int, heads: int
) -> torch.Tensor:
    """(rows, heads x 2 half) attention within windows of rows, queries and keys turned first; `qkv` is left as it is.

    `edges` (windows + 1,) int32: where windows begin, and the end; none has more than `longest` rows. The rest is as in
    `rotate`.
    """
    if qkv.is_cuda:
        found: torch.Tensor = _kernels().window_attention(qkv, cos, sin, edges, longest, heads)
        return found
    turned = qkv.clone()
    rotate(turned, cos, sin, heads)
    query, key, value = turned.view(len(qkv), 3, heads, -1).permute(1, 2, 0, 3).unbind(0)
    parts = [
        F.scaled_dot_product_attention(query[:, begin:end], key[:, begin:end], value[:, begin:end])
        for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    return torch.cat(parts, dim=1).transpose(0, 1).reshape(len(qkv), -1)


def place(
    qkv: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    cache: tuple[torch.Tensor, torch.Tensor],
    *,
    slot: torch.Tensor,
    at: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor, float] | None,
) -> torch.Tensor:
    """(rows, heads, width) the queries of `qkv`, turned; its keys, turned, and values go to the `cache`.

    `qkv` (rows, heads + 2 kv heads, width) flat, queries changed in place. `angles`: cosine and sine (rows, width / 2)
    float32. `cache`: keys and values (slots, kv heads, capacity, width) of one layer; row r goes to slot[r], at[r]
    (int64). `norms`: weights of RMS norms of each query and key, and their epsilon.
    """
    if qkv.is_cuda:
        found: torch.Tensor = _decode_kernels().place(qkv, angles, cache, slot, at, norms)
        return found
    keys, values = cache
    kv_heads, width = keys.shape[1], keys.shape[3]
    parts = qkv.view(len(qkv), -1, width)
    heads = parts.shape[1] - 2 * kv_heads
    query, key, value = torch.split(parts, [heads, kv_heads, kv_heads], dim=1)
    q_weight, k_weight, eps = norms if norms is not None else (None, None, 0.0)
    query.copy_(_turned(query.float(), angles, q_weight, eps))
    keys[slot, :, at] = _turned(key.float(), angles, k_weight, eps).to(keys.dtype)
    values[slot, :, at] = value
    return query


def _turned(
    x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], weight: torch.Tensor | None, eps: float
) -> torch.Tensor:
    if weight is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()
    cos, sin = (each[:, None] for each in angles)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attend(query: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], seen: torch.Tensor) -> torch.Tensor:
    """(slots, heads x width) attention of one query (slots, heads, width) a slot over its first seen[slot] keys.

    `seen` (slots,) int64; a slot that sees nothing gives 0. The rest is as in `place`.
    """
    if query.is_cuda:
        found: torch.Tensor = _decode_kernels().attend(query, cache, seen)
        return found
    keys, values = cache
    out = torch.zeros_like(query)
    for slot, count in enumerate(seen.tolist()):
        if count:
            key, value = keys[slot, :, :count], values[slot, :, :count]
            one = query[slot][None, :, None]
            out[slot] = F.scaled_dot_product_attention(one, key[None], value[None], enable_gqa=True)[0, :, 0]
    return out.flatten(1)
