"""Qwen3-VL: its vision tower with merger and deepstack mergers from the library's own class, without its language model.

The tower attends within one cell only, so that segments of any length give the tokens of the whole video. Beside its
tokens it gives deepstack maps: one vector per token for each of the first layers of the language model, to be gathered
with the same indices. Frames are sized one by one within `max_pixels`: the official processor divides a budget of
pixels among all frames of a clip, which leaves 2 tokens a cell of a two-hour video. In a prompt each cell is
a video of its own after its time as text, which is how the model knows time.
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

NAME = "qwen3_vl"
# No source names a setting for this family; this is Qwen2.5-VL's.
DEFAULT_TEMPERATURE = 0.5
DEFAULT_WINDOW: int | None = None

_VISION = QwenVision(
    family=NAME,
    patch_size=16,
    min_pixels=128 * 32 * 32,
    max_pixels=768 * 32 * 32,
    # Checkpoints bound the pixels of whole clips (published: 25 million); of a frame, 768 tokens are official.
    frame_limit=768 * 32 * 32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    identity=(
        "deepstack_visual_indexes",
        "depth",
        "hidden_act",
        "hidden_size",
        "in_channels",
        "intermediate_size",
        "num_heads",
        "num_position_embeddings",
        "out_hidden_size",
        "patch_size",
        "spatial_merge_size",
        "temporal_patch_size",
    ),
)


def _settings(folder: Path, max_pixels: int | None) -> ModelSettings:
    vision = vision_settings(folder)
    return qwen_settings(
        folder,
        max_pixels,
        family=_VISION,
        dtype=config_dtype(folder, FAMILY),
        deepstack_layers=len(_deepstack(vision)),
        temperature=DEFAULT_TEMPERATURE,
        window=DEFAULT_WINDOW,
        token_flops=_token_flops(vision),
    )


def _deepstack(vision: dict[str, Any]) -> list[int]:
    return list(vision.get("deepstack_visual_indexes", (8, 16, 24)))


def _token_flops(vision: dict[str, Any]) -> float:
    """Two operations a weight: blocks and patch embedding for the four patches of a token, and one of each merger."""
    hidden, inner = int(vision.get("hidden_size", 1152)), int(vision.get("intermediate_size", 4304))
    block = 4 * hidden**2 + 2 * hidden * inner
    embedding = 3 * 2 * 16 * 16 * hidden
    merger = (4 * hidden) ** 2 + 4 * hidden * int(vision.get("out_hidden_size", 3584))
    patches = 4 * (int(vision.get("depth", 27)) * block + embedding)
    return 2.0 * (patches + (1 + len(_deepstack(vision))) * merger)


def _vision_config(folder: Path) -> Any:
    from transformers import Qwen3VLConfig  # noqa: PLC0415 - a second that frame layouts need not pay

    return Qwen3VLConfig.from_pretrained(folder).vision_config


def _identity(folder: Path) -> dict[str, object]:
    return identity(folder, _VISION, _vision_config(folder))


def _load(folder: Path, settings: ModelSettings, running: Running) -> TowerEncoder:
    from transformers import Qwen3VLVisionModel  # noqa: PLC0415

    weights = dict(vision_tensors(folder, FAMILY))
    loaded = load_tower(
        Qwen3VLVisionModel, _vision_config(folder), weights, folder=folder, dtype=running.dtype
    )
    return qwen_encoder(loaded, settings, running)


def _slot_texts(view: View, placeholder: str) -> list[str]:
    """The time of each cell, then the cell, as the library's processor writes them."""
    return [
        f"<{centre_s:.1f} seconds><|vision_start|>{placeholder}<|vision_end|>" for centre_s in view.centres_s
    ]


def _fast_refused(folder: Path) -> str:
    from echoprune.fast.qwen_vision import refused  # noqa: PLC0415 - it imports what this module does

    return refused(_vision_config(folder), gated=False)


def _prompt(config: Any) -> PromptStyle:
    return prompt_style(_slot_texts, lambda view, t: torch.zeros_like(t))


FAMILY = Family(
    name=NAME,
    settings=_settings,
    identity=_identity,
    weights_class="Qwen3VLForConditionalGeneration",
    vision_prefixes={"model.visual.": ""},
    load=_load,
    fast_refused=_fast_refused,
    prompt=_prompt,
)
