"""Qwen2.5-VL: its vision tower and merger from the library's own class, without its language model.

The tower attends within one cell only, so that segments of any length give the tokens of the whole video. In a
prompt the video is one run of tokens, whose positions in time follow the seconds between cells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from echoprune.models.checkpoint import config_dtype, vision_tensors
from echoprune.models.encoder import Family, ModelSettings, Running
from echoprune.models.prompt import PromptStyle
from echoprune.models.qwen_vision import (
    QwenVision,
    identity,
    prompt_style,
    qwen_encoder,
    qwen_settings,
    vision_settings,
)
from echoprune.models.tower import TowerEncoder, load_tower
from echoprune.view import View

NAME = "qwen2_5_vl"
# The paper's setting for this family: tau 0.5 over the whole previous frame.
DEFAULT_TEMPERATURE = 0.5
DEFAULT_WINDOW: int | None = None

_VISION = QwenVision(
    family=NAME,
    patch_size=14,
    min_pixels=128 * 28 * 28,
    max_pixels=768 * 28 * 28,
    frame_limit=None,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    identity=(
        "depth",
        "fullatt_block_indexes",
        "hidden_act",
        "hidden_size",
        "in_channels",
        "intermediate_size",
        "num_heads",
        "out_hidden_size",
        "patch_size",
        "spatial_merge_size",
        "temporal_patch_size",
        "window_size",
    ),
)


def _settings(folder: Path, max_pixels: int | None) -> ModelSettings:
    vision = vision_settings(folder)
    return qwen_settings(
        folder,
        max_pixels,
        family=_VISION,
        dtype=config_dtype(folder, FAMILY),
        deepstack_layers=0,
        temperature=DEFAULT_TEMPERATURE,
        window=DEFAULT_WINDOW,
        token_flops=_token_flops(vision),
    )


def _token_flops(vision: dict[str, Any]) -> float:
    """Two operations a weight: blocks and patch embedding for the four patches of a token, and one merger."""
    hidden, inner = int(vision.get("hidden_size", 1280)), int(vision.get("intermediate_size", 3420))
    block = 4 * hidden**2 + 3 * hidden * inner
    embedding = 3 * 2 * 14 * 14 * hidden
    merger = (4 * hidden) ** 2 + 4 * hidden * int(vision.get("out_hidden_size", 3584))
    return 2.0 * (4 * (int(vision.get("depth", 32)) * block + embedding) + merger)


def _vision_config(folder: Path) -> Any:
    from transformers import Qwen2_5_VLConfig  # noqa: PLC0415 - a second that frame layouts need not pay

    return Qwen2_5_VLConfig.from_pretrained(folder).vision_config


def _identity(folder: Path) -> dict[str, object]:
    return identity(folder, _VISION, _vision_config(folder))


def _load(folder: Path, settings: ModelSettings, running: Running) -> TowerEncoder:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (  # noqa: PLC0415
        Qwen2_5_VisionTransformerPretrainedModel,
    )

    weights = dict(vision_tensors(folder, FAMILY))
    loaded = load_tower(
        Qwen2_5_VisionTransformerPretrainedModel,
        _vision_config(folder),
        weights,
        folder=folder,
        dtype=running.dtype,
    )
    return qwen_encoder(loaded, settings, running)


def _fast_refused(folder: Path) -> str:
    from echoprune.fast.qwen_vision import refused  # noqa: PLC0415 - it imports what this module does

    return refused(_vision_config(folder), gated=True)


def _prompt(config: Any) -> PromptStyle:
    tokens_per_second = config.vision_config.tokens_per_second

    def time(view: View, t: torch.Tensor) -> torch.Tensor:
        # In float32, as the library does it: where a product lies on a whole number, other widths round to its neighbour.
        step: torch.Tensor = tokens_per_second * torch.tensor(view.cell_s, dtype=torch.float32)
        return (t * step).long()

    return prompt_style(lambda view, placeholder: [placeholder], time)


FAMILY = Family(
    name=NAME,
    settings=_settings,
    identity=_identity,
    weights_class="Qwen2_5_VLForConditionalGeneration",
    vision_prefixes={"model.visual.": ""},
    load=_load,
    fast_refused=_fast_refused,
    prompt=_prompt,
)
