"""LLaVA-OneVision: its SigLIP tower and projector from the library's own classes, without its language model.

Each frame is a cell: resized to the one size that the tower takes (384 x 384, whatever its shape), cut into 27 x 27
patches, projected, and pooled to 14 x 14 tokens. The one newline token that the language model sees after a whole
video is no part of the grid: it is a weight, the same for all videos, never scored, and closes the video in a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from echoprune.data import TokenGrid
from echoprune.errors import ConfigError, ModelError
from echoprune.fast.graphed import graphed
from echoprune.models.checkpoint import config_dtype, read_json, read_preprocessor, vision_tensors
from echoprune.models.encoder import Family, FrameLayout, ModelSettings, Running, SquareLayout
from echoprune.models.preprocessor import pixel_rule
from echoprune.models.prompt import PromptStyle
from echoprune.models.tower import TowerEncoder, channel_values, load_layers, load_tower
from echoprune.view import View

# From normalised pixels (F, 3, H, W) to the tower's states (F, patches, D).
States = Callable[[torch.Tensor], torch.Tensor]
# From those states to tokens (F, h, w, D) of the grid (h, w).
Tokens = Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]

NAME = "llava_onevision"
# The paper's setting for this family: tau 0.1 over 3 x 3 tokens.
DEFAULT_TEMPERATURE = 0.1
DEFAULT_WINDOW: int | None = 3

# What the library's video processor takes where a checkpoint is silent; published checkpoints state 0.5 throughout.
_SIDE = 384
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
# Tokens along a side are this many times fewer than patches, rounded up.
_POOL = 2

# Configuration that tokens depend on; the names are the library's.
_VISION_IDENTITY = (
    "hidden_act",
    "hidden_size",
    "image_size",
    "intermediate_size",
    "layer_norm_eps",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
    "patch_size",
)
_PROJECTOR_IDENTITY = ("multimodal_projector_bias", "projector_hidden_act", "vision_feature_layer")


def _settings(folder: Path, max_pixels: int | None) -> ModelSettings:
    config = read_json(folder / "config.json")
    vision, text = config.get("vision_config") or {}, config.get("text_config") or {}
    layout = _layout(folder, vision)
    if max_pixels is not None and max_pixels < layout.max_pixels:
        raise ConfigError(
            f"max pixels {max_pixels} cannot be met: {folder} takes frames of {layout.side}x{layout.side} alone; "
            f"give 0 (its own size) or at least {layout.max_pixels}"
        )
    dim = int(text.get("hidden_size", 4096))
    return ModelSettings(
        family=NAME,
        layout=layout,
        dim=dim,
        dtype=config_dtype(folder, FAMILY),
        deepstack_layers=0,
        default_temperature=DEFAULT_TEMPERATURE,
        default_window=DEFAULT_WINDOW,
        token_flops=_token_flops(vision, dim) / layout.grid_side**2,
    )


def _token_flops(vision: dict[str, Any], dim: int) -> float:
    """Operations of one frame, two a weight for each patch: blocks, patch embedding and projector."""
    hidden, inner = int(vision.get("hidden_size", 1152)), int(vision.get("intermediate_size", 4304))
    block = 4 * hidden**2 + 2 * hidden * inner
    patch = int(vision.get("patch_size", 14))
    weights = int(vision.get("num_hidden_layers", 26)) * block + 3 * patch**2 * hidden + (hidden + dim) * dim
    return 2.0 * weights * _patch_side(vision) ** 2


def _patch_side(vision: dict[str, Any]) -> int:
    return int(vision.get("image_size", _SIDE)) // int(vision.get("patch_size", 14))


def _layout(folder: Path, vision: dict[str, Any]) -> SquareLayout:
    given = read_preprocessor(folder)
    size = given.get("size") or {"height": _SIDE, "width": _SIDE}
    side = int(vision.get("image_size", _SIDE))
    if (size.get("height"), size.get("width")) != (side, side):
        raise ModelError(
            f"{folder} disagrees with itself: size is {size} in the preprocessor and {side} in config.json; "
            "take its original files"
        )
    rule = pixel_rule(given, folder, mean=_MEAN, std=_STD)
    return SquareLayout(
        family=NAME,
        side=side,
        grid_side=math.ceil(_patch_side(vision) / _POOL),
        resample=rule.resample,
        mean=rule.mean,
        std=rule.std,
    )


def _config(folder: Path) -> Any:
    from transformers import LlavaOnevisionConfig  # noqa: PLC0415 - a second that frame layouts need not pay

    config = LlavaOnevisionConfig.from_pretrained(folder)
    tower, strategy = config.vision_config.model_type, config.vision_feature_select_strategy
    if tower != "siglip_vision_model" or strategy != "full":
        raise ModelError(
            f"{folder} has a {tower} with feature selection {strategy!r}; accepted is a siglip_vision_model with "
            "'full': take a published LLaVA-OneVision"
        )
    return config


def _identity(folder: Path) -> dict[str, object]:
    config = _config(folder)
    layout = _layout(folder, read_json(folder / "config.json").get("vision_config") or {})
    return {
        "vision": {name: getattr(config.vision_config, name) for name in _VISION_IDENTITY},
        "projector": {name: getattr(config, name) for name in _PROJECTOR_IDENTITY}
        | {"hidden_size": config.text_config.hidden_size},
        "preprocessor": [layout.side, layout.resample, layout.mean, layout.std],
    }


def library_states(
    tower: torch.nn.Module, feature_layer: int | list[int], values: torch.Tensor
) -> torch.Tensor:
    """(F, patches, D) states of normalised pixels `values` (F, 3, H, W), by the library's own forward.

    `feature_layer`: the tower's layer, or layers side by side, whose states are projected.
    """
    values = values.to(next(tower.parameters()).dtype)
    states = tower(values, output_hidden_states=feature_layer, return_dict=True).hidden_states
    several = [feature_layer] if isinstance(feature_layer, int) else feature_layer
    return torch.cat([states[index] for index in several], dim=-1)


def library_tokens(
    projector: torch.nn.Module, states: torch.Tensor, grid_hw: tuple[int, int]
) -> torch.Tensor:
    """(F, h, w, D) tokens of `states` (F, patches, D): projected by the library's module, then pooled as it does."""
    features = projector(states)
    side = math.isqrt(features.shape[1])
    # One memory order for the pooling kernel, the library's: on a CPU other orders round otherwise.
    planes = features.view(len(features), side, side, -1).permute(0, 3, 1, 2).contiguous()
    pooled = F.interpolate(planes, size=grid_hw, mode="bilinear")
    return pooled.permute(0, 2, 3, 1).contiguous()


def tokens_of(states: States, tokens: Tokens, layout: FrameLayout, pixels: torch.Tensor) -> TokenGrid:
    """TokenGrid (F, h, w, D) of uint8 `pixels` (F, H, W, 3) on the tower's device."""
    _, height, width, _ = pixels.shape
    return TokenGrid(tokens(states(normalised(pixels, layout)), layout.grid_hw((height, width))))


def normalised(pixels: torch.Tensor, layout: FrameLayout) -> torch.Tensor:
    """(F, 3, H, W) float32 normalised values of uint8 `pixels` (F, H, W, 3)."""
    mean, std = channel_values(layout.mean, layout.std, pixels.device)
    values = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return values.sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))


def _load(folder: Path, settings: ModelSettings, running: Running) -> TowerEncoder:
    from transformers import SiglipVisionModel  # noqa: PLC0415
    from transformers.models.llava_onevision.modeling_llava_onevision import (  # noqa: PLC0415
        LlavaOnevisionMultiModalProjector,
    )

    config = _config(folder)
    parts: dict[str, dict[str, torch.Tensor]] = {"tower": {}, "projector": {}}
    for name, tensor in vision_tensors(folder, FAMILY):
        part, _, own_name = name.partition(".")
        parts[part][own_name] = tensor
    loaded = load_tower(
        SiglipVisionModel, config.vision_config, parts["tower"], folder=folder, dtype=running.dtype
    )
    with torch.device("meta"):
        projector = LlavaOnevisionMultiModalProjector(config)
    projector = load_layers(projector, parts["projector"], folder=folder, dtype=running.dtype)
    both = torch.nn.ModuleDict({"tower": loaded, "projector": projector})
    both = both.to(running.device).eval().requires_grad_(False)
    layer = config.vision_feature_layer
    states: States = partial(library_states, both["tower"], layer)
    tokens: Tokens = partial(library_tokens, both["projector"])
    if running.tower == "fast":
        # Who does not ask need not load it.
        from echoprune.fast.siglip_vision import FastSiglipTower, pooled_tokens  # noqa: PLC0415

        states, tokens = FastSiglipTower(both["tower"], layer), partial(pooled_tokens, both["projector"])
    run = graphed(partial(tokens_of, states, tokens, settings.layout), running)
    return TowerEncoder(both, run, settings=settings, segment_cells=running.segment_cells)


def _fast_refused(folder: Path) -> str:
    from echoprune.fast.siglip_vision import refused  # noqa: PLC0415

    config = _config(folder)
    return refused(config.vision_config, config.vision_feature_layer)


def _positions(view: View, kept: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    _, height, width = view.grid_thw
    t, h, w = kept.unbind(1)
    return (starts + (t * height + h) * width + w)[None]


def _prompt(config: Any) -> PromptStyle:
    return PromptStyle(
        axes=1,
        slot_texts=lambda view, placeholder: [placeholder],
        slot_width=lambda view: view.tokens + 1,
        positions=_positions,
        closing=1,
    )


FAMILY = Family(
    name=NAME,
    settings=_settings,
    identity=_identity,
    weights_class="LlavaOnevisionForConditionalGeneration",
    vision_prefixes={"model.vision_tower.": "tower.", "model.multi_modal_projector.": "projector."},
    load=_load,
    fast_refused=_fast_refused,
    prompt=_prompt,
)
