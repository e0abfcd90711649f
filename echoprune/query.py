"""Relevance: how well a visual token answers to the words of a question. Needs no neighbour in time.

The echo part of the score is in `echo.py`; the two meet in `prune.py`.
"""

from __future__ import annotations

import math

import torch

from echoprune.errors import ConfigError, ModelError
from echoprune.precision import full_float32

REDUCTIONS = ("max", "mean", "softmax")
# Tokens per product: 15 MB in float32 at width 3584. All products on a kind of device have one shape, the last one filled up,
# since matrix kernels are chosen by shape; and rows start on 64-byte boundaries, since at width 33 a row's sum depended
# on its place. So a token's relevance does not depend on the tokens it is scored with (tested on CPU and CUDA).
CHUNK_TOKENS = 1024
# On a GPU, where a product of 1,024 is started in longer than it takes: 10 of them were 4 ms of a question of 10,240 tokens. 117 MB
# of its memory at that width.
GPU_CHUNK_TOKENS = 8192
MULTIPLE = 32
# As in echo.py: a vector this short counts as a zero vector.
ZERO_NORM = 2.0**-60


@torch.no_grad()
def relevance(
    tokens: torch.Tensor,
    query: torch.Tensor,
    *,
    query_mask: torch.Tensor | None = None,
    reduce: str = "max",
    temperature: float = 0.1,
) -> torch.Tensor:
    """Relevance r (...) float32 of tokens (..., D) to query tokens (M, D), on the tokens' device; in [-1, 1].

    With a hat for the unit vector, r = max over m of v^ . q^[m], or, by `reduce`, their "mean", or their mean
    weighted by softmax over m of v^ . q^[m] / `temperature` ("softmax"; `temperature` > 0 is used there alone).
    `query`: input embeddings of the language model. `query_mask` (M,) bool: the query tokens that count, by
    default all. Any floating dtype; products and sums in float32. A zero vector has similarity 0 with everything;
    no tokens give an empty result.

    Raises ValueError where no query token counts or shapes differ, ConfigError for an unknown `reduce` or a
    temperature not above 0, ModelError for values that are not finite.
    """
    if reduce not in REDUCTIONS:
        raise ConfigError(f"reduction of relevance is {reduce!r}; give one of {', '.join(REDUCTIONS)}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(
            f"temperature of relevance is {temperature}; give a finite number above 0, such as 0.1"
        )
    if query.ndim != 2 or tokens.ndim < 1 or tokens.shape[-1] != query.shape[1]:
        raise ValueError(
            f"tokens (..., D) and query (M, D) do not fit: {tuple(tokens.shape)}, {tuple(query.shape)}"
        )
    if not (tokens.is_floating_point() and query.is_floating_point()):
        raise ValueError(f"tokens and query must be floating point, got {tokens.dtype} and {query.dtype}")
    if query_mask is not None:
        if query_mask.shape != query.shape[:1] or query_mask.dtype != torch.bool:
            raise ValueError(
                f"query_mask must be bool ({len(query)},), got {query_mask.dtype} {tuple(query_mask.shape)}"
            )
        query = query[query_mask.to(query.device)]
    if len(query) == 0:
        raise ValueError(
            "no query token counts: the query is empty or all masked; relevance needs at least one"
        )

    words, dim = query.shape
    padded = torch.zeros((_rounded_up(words), _rounded_up(dim)), dtype=torch.float32, device=tokens.device)
    padded[:words, :dim] = query
    query_norm = torch.linalg.vector_norm(padded, dim=-1)
    directions = padded * _inverse(query_norm)[:, None]
    flat = tokens.reshape(math.prod(tokens.shape[:-1]), tokens.shape[-1])
    result = torch.empty(len(flat), dtype=torch.float32, device=tokens.device)
    norm = torch.empty_like(result)
    together = GPU_CHUNK_TOKENS if tokens.is_cuda else CHUNK_TOKENS
    chunk = torch.zeros((together, _rounded_up(dim)), dtype=torch.float32, device=tokens.device)
    with full_float32():
        for start in range(0, len(flat), together):
            part = flat[start : start + together]
            chunk[: len(part), :dim] = part
            chunk_norm = torch.linalg.vector_norm(chunk, dim=-1)
            similarity = (chunk @ directions.T)[:, :words] * _inverse(chunk_norm)[:, None]
            result[start : start + len(part)] = _reduced(similarity, reduce, temperature)[: len(part)]
            norm[start : start + len(part)] = chunk_norm[: len(part)]
    for name, norms in (("query", query_norm[:words]), ("visual", norm)):
        bad = int((~norms.isfinite()).sum())
        if bad:
            raise ModelError(
                f"{bad} of {norms.numel()} {name} tokens are not finite; check the checkpoint, or run it in float32"
            )
    return result.view(tokens.shape[:-1])


def _rounded_up(size: int) -> int:
    return -(-size // MULTIPLE) * MULTIPLE


def _inverse(norm: torch.Tensor) -> torch.Tensor:
    return torch.where(norm > ZERO_NORM, norm.reciprocal(), 0.0)


def _reduced(similarity: torch.Tensor, reduce: str, temperature: float) -> torch.Tensor:
    """(n,) from similarities (n, M)."""
    if reduce == "max":
        return similarity.amax(dim=1)
    if reduce == "mean":
        return similarity.mean(dim=1)
    return (torch.softmax(similarity / temperature, dim=1) * similarity).sum(dim=1)
