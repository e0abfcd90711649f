"""LLaVA-OneVision's SigLIP tower by `vision.py`'s steps, and its tokens pooled in the order that they lie in memory."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from echoprune.errors import ConfigError
from echoprune.fast.vision import Block, Packing, Place, filled, run_blocks


class FastSiglipTower:
    """The states (frames, P, D) that the library's `tower` gives at `feature_layer`, from its weights.

    Raises ConfigError where several layers are asked for, or an activation other than GELU by tanh.
    """

    def __init__(self, tower: Any, feature_layer: int | list[int]) -> None:
        config = tower.config
        layers = list(tower.encoder.layers)
        reason = refused(config, feature_layer)
        if reason or not isinstance(feature_layer, int):
            raise ConfigError(f"{reason}: use --tower plain")
        used = feature_layer if feature_layer >= 0 else len(layers) + 1 + feature_layer
        embedding = tower.embeddings.patch_embedding
        self._patch = int(config.patch_size)
        self._heads = int(config.num_attention_heads)
        self._dtype = embedding.weight.dtype
        # As a product over values in the order row, column, channel: pixels are copied once, in pieces of a patch's row.
        # 588 of them are filled up: kernels are slow where rows are no multiple of 16 bytes.
        self._embedding = filled(embedding.weight.permute(0, 2, 3, 1).flatten(1), 1), embedding.bias
        self._learned = tower.embeddings.position_embedding.weight
        packing = Packing(config.hidden_size, embedding.weight.device)
        self._blocks = [_packed(packing, layer) for layer in layers[:used]]
        self._shift = packing.shift

    @torch.no_grad()
    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """(frames, P, D) of normalised pixels `values` (F, 3, H, W)."""
        frames, _, height, width = values.shape
        side = self._patch
        h, w = height // side, width // side
        # What does not fill a patch is cut off, as a convolution without padding does.
        cut = values[:, :, : h * side, : w * side].view(frames, 3, h, side, w, side)
        patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(frames * h * w, -1).to(self._dtype)
        x = F.linear(filled(patches, 1), *self._embedding)
        x = x.view(frames, h * w, -1).add_(self._learned).flatten(0, 1)
        x = run_blocks(x, self._blocks, Place(h * w, None, None), heads=self._heads)
        return (x.float() + self._shift).to(self._dtype).view(frames, h * w, -1)


def refused(config: Any, feature_layer: int | list[int]) -> str:
    """Why the fast tower does not take a checkpoint with the vision `config` and feature layers; "" if it does."""
    if not isinstance(feature_layer, int):
        return f"the fast tower gives one layer, the checkpoint wants {feature_layer}"
    if config.hidden_act != "gelu_pytorch_tanh":
        return f"the fast tower has gelu_pytorch_tanh, the checkpoint {config.hidden_act}"
    return ""


def pooled_tokens(projector: Any, states: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
    """(F, h, w, D) tokens of `states` (F, patches, D) by the weights of the library's `projector`.

    The library projects patches and pools planes of one channel each; on a GPU that pooling has a thread for each of the
    196 places and no more, which took half of an encoding. With channels last there is one for each value. Pooling
    weights add up to 1, so that it may as well come before the last product, which then has a quarter of the rows.
    """
    inner = projector.act(projector.linear_1(states))
    side = math.isqrt(inner.shape[1])
    planes = inner.view(len(inner), side, side, -1).permute(0, 3, 1, 2)
    pooled = F.interpolate(planes, size=grid_hw, mode="bilinear").permute(0, 2, 3, 1).contiguous()
    tokens: torch.Tensor = projector.linear_2(pooled)
    return tokens


def _packed(packing: Packing, layer: Any) -> Block:
    norm1 = packing.norm(layer.layer_norm1)
    attention, mlp = layer.self_attn, layer.mlp
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    qkv = torch.cat([each.weight for each in parts]), torch.cat([each.bias for each in parts])
    out = packing.added(attention.out_proj)
    norm2 = packing.norm(layer.layer_norm2)
    inner = packing.plain(mlp.fc1)
    return Block(norm1, qkv, out, norm2, inner, packing.outer(mlp.fc2), gated=False, windowed=False)
