"""What the vision parts of the Qwen-VL families share: frame layout from the preprocessor, patches, the tower's call.

Pixels are cut into patches here rather than by the library's processor, which needs torchvision. What differs between
the families is a `QwenVision` record and their adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from echoprune.data import TokenGrid
from echoprune.errors import ConfigError, ModelError
from echoprune.fast.graphed import graphed
from echoprune.models.checkpoint import read_json, read_preprocessor
from echoprune.models.encoder import ModelSettings, PatchLayout, Running
from echoprune.models.preprocessor import Channels, pixel_rule
from echoprune.models.prompt import PromptStyle
from echoprune.models.tower import TowerEncoder, channel_values
from echoprune.view import View


@dataclass(frozen=True)
class QwenVision:
    """What the library takes for one family where a checkpoint is silent, and what its tokens depend on.

    `min_pixels`, `max_pixels`: of one frame. `frame_limit`: pixels of one frame that no checkpoint's own bound
    exceeds, None for no limit. `identity`: names of the vision configuration.
    """

    family: str
    patch_size: int
    min_pixels: int
    max_pixels: int
    frame_limit: int | None
    mean: Channels
    std: Channels
    identity: tuple[str, ...]


def vision_settings(folder: Path) -> dict[str, Any]:
    """The vision part of the folder's config.json; {} if it has none."""
    vision = read_json(folder / "config.json").get("vision_config")
    return vision if isinstance(vision, dict) else {}


def patch_layout(folder: Path, family: QwenVision, max_pixels: int | None) -> PatchLayout:
    """The layout that the preprocessor in `folder` describes, `max_pixels` (H x W of a frame) taking precedence.

    Raises ModelError for a preprocessor that is not followed or contradicts config.json, ConfigError for
    `max_pixels` below one token.
    """
    given, vision = read_preprocessor(folder), vision_settings(folder)
    size = given.get("size") or {"shortest_edge": family.min_pixels, "longest_edge": family.max_pixels}
    lowest = size.get("shortest_edge") if given.get("min_pixels") is None else given["min_pixels"]
    highest = size.get("longest_edge") if given.get("max_pixels") is None else given["max_pixels"]
    if lowest is None or highest is None:
        raise ModelError(
            f"{folder} has a preprocessor with size {size}; accepted are shortest_edge and longest_edge in "
            "pixels: take its original files"
        )
    rule = pixel_rule(given, folder, mean=family.mean, std=family.std)
    sizes = {}
    for name, config_name, default in (
        ("patch_size", "patch_size", family.patch_size),
        ("merge_size", "spatial_merge_size", 2),
        ("temporal_patch_size", "temporal_patch_size", 2),
    ):
        sizes[name] = int(given.get(name, default))
        if sizes[name] != vision.get(config_name, default):
            raise ModelError(
                f"{folder} disagrees with itself: {name} is {sizes[name]} in the preprocessor and "
                f"{vision.get(config_name, default)} in config.json; take its original files"
            )
    token_pixels = (sizes["patch_size"] * sizes["merge_size"]) ** 2
    if max_pixels is not None:
        if max_pixels < token_pixels:
            raise ConfigError(f"max pixels {max_pixels} is below one token: give at least {token_pixels}")
        # A limit never enlarges: a checkpoint has not seen frames above its own.
        highest = min(highest, max_pixels)
    elif family.frame_limit is not None:
        highest = min(highest, family.frame_limit)
    # A cap below the checkpoint's floor removes the floor: growing small frames to it would break the cap.
    lowest = lowest if lowest <= highest else token_pixels
    return PatchLayout(
        family=family.family,
        patch_size=sizes["patch_size"],
        merge_size=sizes["merge_size"],
        temporal_patch=sizes["temporal_patch_size"],
        min_pixels=int(lowest),
        max_pixels=int(highest),
        resample=rule.resample,
        mean=rule.mean,
        std=rule.std,
    )


def qwen_settings(
    folder: Path,
    max_pixels: int | None,
    *,
    family: QwenVision,
    dtype: str,
    deepstack_layers: int,
    temperature: float,
    window: int | None,
    token_flops: float,
) -> ModelSettings:
    """What the configuration of a Qwen checkpoint says; see `ModelSettings`."""
    return ModelSettings(
        family=family.family,
        layout=patch_layout(folder, family, max_pixels),
        dim=int(vision_settings(folder).get("out_hidden_size", 3584)),
        dtype=dtype,
        deepstack_layers=deepstack_layers,
        default_temperature=temperature,
        default_window=window,
        token_flops=token_flops,
    )


def identity(folder: Path, family: QwenVision, config: Any) -> dict[str, object]:
    """All that tokens depend on beside the weights, as JSON values; `config`: the library's vision configuration."""
    layout = patch_layout(folder, family, None)
    rope = getattr(config, "rope_parameters", None) or {}
    return {
        "vision": {name: getattr(config, name) for name in family.identity}
        | {"rope_theta": rope.get("rope_theta", 10000.0)},
        "preprocessor": [layout.min_pixels, layout.resample, layout.mean, layout.std],
    }


def qwen_encoder(tower: torch.nn.Module, settings: ModelSettings, running: Running) -> TowerEncoder:
    """The encoder around a loaded `tower` of a Qwen family, moved to its device."""
    layout = settings.layout
    if not isinstance(layout, PatchLayout):
        raise TypeError(f"a Qwen tower takes a PatchLayout, got {type(layout).__name__}")
    tower = tower.to(running.device).eval().requires_grad_(False)
    run: Callable[[torch.Tensor], TokenGrid] = partial(tokens_of, tower, layout)
    if running.tower == "fast":
        from echoprune.fast.qwen_vision import FastQwenTower  # noqa: PLC0415 - it imports this module

        run = FastQwenTower(tower, layout)
    return TowerEncoder(tower, graphed(run, running), settings=settings, segment_cells=running.segment_cells)


def tokens_of(tower: torch.nn.Module, layout: PatchLayout, pixels: torch.Tensor) -> TokenGrid:
    """TokenGrid of uint8 `pixels` (F, H, W, 3), F whole cells, on the tower's device; with its deepstack maps, if any.

    Towers undo the order of their windows: rows come cell by cell, tokens in raster order.
    """
    frames, height, width, _ = pixels.shape
    cells, (h, w) = frames // layout.temporal_patch, layout.grid_hw((height, width))
    patches = patchify(pixels, layout).to(next(tower.parameters()).dtype)
    thw = torch.tensor([[cells, h * layout.merge_size, w * layout.merge_size]], device=pixels.device)
    output = tower(patches, grid_thw=thw)
    tokens = output.pooler_output.view(cells, h, w, -1)
    maps = getattr(output, "deepstack_features", None)
    return TokenGrid(tokens, torch.stack(list(maps)).view(-1, *tokens.shape) if maps else None)


def prompt_style(
    slot_texts: Callable[[View, str], list[str]], time: Callable[[View, torch.Tensor], torch.Tensor]
) -> PromptStyle:
    """The style of a Qwen family, whose tokens have positions in time, height and width from where their slot begins.

    `time(view, t)`: what t adds in time. A slot takes as many positions as the longer side of its grid, however many
    cells it has: so the library counts, though times may reach beyond the text that follows.
    """

    def positions(view: View, kept: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        t, h, w = kept.unbind(1)
        return torch.stack([starts + time(view, t), starts + h, starts + w])

    return PromptStyle(
        axes=3, slot_texts=slot_texts, slot_width=lambda view: max(view.grid_thw[1:]), positions=positions
    )


def patchify(pixels: torch.Tensor, layout: PatchLayout) -> torch.Tensor:
    """(cells * patches, C * temporal_patch * patch_size^2) float32 normalised patches, as the tower takes them.

    `pixels` uint8 (F, H, W, 3) with F a multiple of `temporal_patch`, H and W of `token_side`. Patches are ordered
    cell, token row, token column, patch row and column within the token; values channel, frame, row, column.
    """
    frames, height, width, channels = pixels.shape
    time, merge, side = layout.temporal_patch, layout.merge_size, layout.patch_size
    h, w = layout.grid_hw((height, width))
    cut = pixels.view(frames // time, time, h, merge, side, w, merge, side, channels)
    cut = cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    mean, std = channel_values(layout.mean, layout.std, pixels.device)
    values = cut.to(torch.float32).sub_(mean.view(-1, 1, 1, 1)).div_(std.view(-1, 1, 1, 1))
    return values.reshape(-1, channels * time * side * side)
