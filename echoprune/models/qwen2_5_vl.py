"""Qwen2.5-VL: its vision tower and merger from the library's own class, without its language model.

Pixels are cut into patches here rather than by the library's processor, which needs torchvision. The tower attends
within one cell only, so that segments of any length give the tokens of the whole video. Positions of tokens in the
language model, and prompts, are not covered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import isclose
from pathlib import Path
from typing import Any

import torch

from echoprune.data import Frames, TokenGrid
from echoprune.errors import ConfigError, ModelError
from echoprune.models.checkpoint import config_dtype, read_json, read_preprocessor, vision_tensors
from echoprune.models.encoder import Family, FrameLayout, ModelSettings

NAME = "qwen2_5_vl"
# The paper's setting for this family: tau 0.5 over the whole previous frame.
DEFAULT_TEMPERATURE = 0.5
DEFAULT_WINDOW: int | None = None

# What the library's video processor takes where a checkpoint is silent.
_MIN_PIXELS = 128 * 28 * 28
_MAX_PIXELS = 768 * 28 * 28
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
# Numbers are those of PIL's filters, as preprocessor files spell them.
_RESAMPLE = {2: "bilinear", 3: "bicubic"}

# Configuration that tokens depend on; the names are the library's.
_IDENTITY = (
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
)


class Qwen2_5VLEncoder:  # noqa: N801 - the family's own spelling
    """The `Encoder` of Qwen2.5-VL; made by `load_encoder`.

    Each call to the tower has `segment_cells` cells, the last of them black when there are fewer frames: matrix
    kernels are chosen by row count, so that one shape per frame size is what makes equal cells give equal bits.
    Measured on an H200 with a random tower of 7B shape: any cut of 16 cells gave equal bits at 8 cells a call, in
    bf16, fp16 and fp32; against 3 cells a call values differed by up to 0.17 in bf16.
    """

    family = NAME
    deepstack_layers = 0
    default_temperature = DEFAULT_TEMPERATURE
    default_window = DEFAULT_WINDOW

    def __init__(self, tower: torch.nn.Module, *, layout: FrameLayout, dim: int, segment_cells: int) -> None:
        weight = next(tower.parameters())
        self.layout = layout
        self.dim = dim
        self.dtype = weight.dtype
        self.device = weight.device
        self.segment_cells = segment_cells
        self._tower = tower

    @torch.no_grad()
    def encode(self, frames: Frames) -> TokenGrid:
        """TokenGrid of (cells, h, w, D), tokens in raster order; see `Encoder.encode`."""
        if frames.cell_frames != self.layout.cell_frames:
            raise ValueError(f"cells of {frames.cell_frames} frames, expected {self.layout.cell_frames}")
        _, height, width, _ = frames.pixels.shape
        grid = self.layout.grid_hw((height, width))
        cells = [
            self._encode_cells(frames, start, min(start + self.segment_cells, frames.cells), grid)
            for start in range(0, frames.cells, self.segment_cells)
        ]
        tokens = cells[0] if len(cells) == 1 else torch.cat(cells)
        finite = torch.isfinite(tokens)
        if not bool(finite.all()):
            raise ModelError(
                f"{int((~finite).sum())} of {tokens.numel()} values of cells {frames.first_cell} to "
                f"{frames.first_cell + frames.cells - 1} are not finite in {self.dtype}; "
                "try --compute-dtype bf16 or fp32, or check the weights"
            )
        return TokenGrid(tokens)

    def _encode_cells(self, frames: Frames, start: int, stop: int, grid: tuple[int, int]) -> torch.Tensor:
        per_cell = self.layout.cell_frames
        shape = (self.segment_cells * per_cell, *frames.pixels.shape[1:])
        # Copied by numpy: frames that come out of Ray's object store are read-only, which torch cannot express.
        pixels = torch.zeros(shape, dtype=torch.uint8)
        pixels.numpy()[: (stop - start) * per_cell] = frames.pixels[start * per_cell : stop * per_cell]
        patches = patchify(pixels.to(self.device), self.layout).to(self.dtype)
        merge = self.layout.merge_size
        thw = torch.tensor([[self.segment_cells, grid[0] * merge, grid[1] * merge]], device=self.device)
        # The merger undoes the window order: rows come cell by cell, tokens in raster order.
        tokens: torch.Tensor = self._tower(patches, grid_thw=thw).pooler_output
        return tokens.view(self.segment_cells, *grid, self.dim)[: stop - start]


def patchify(pixels: torch.Tensor, layout: FrameLayout) -> torch.Tensor:
    """(cells * patches, C * temporal_patch * patch_size^2) float32 normalised patches, as the tower takes them.

    `pixels` uint8 (F, H, W, 3) with F a multiple of `temporal_patch`, H and W of `token_side`. Patches are ordered
    cell, token row, token column, patch row and column within the token; values channel, frame, row, column.
    """
    frames, height, width, channels = pixels.shape
    time, merge, side = layout.temporal_patch, layout.merge_size, layout.patch_size
    h, w = layout.grid_hw((height, width))
    cut = pixels.view(frames // time, time, h, merge, side, w, merge, side, channels)
    cut = cut.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    # Rescaling by 1/255 is folded into mean and std as the library does it, for equal bits.
    mean = (torch.tensor(layout.mean, device=pixels.device) * 255.0).view(channels, 1, 1, 1)
    std = (torch.tensor(layout.std, device=pixels.device) * 255.0).view(channels, 1, 1, 1)
    values = cut.to(torch.float32).sub_(mean).div_(std)
    return values.reshape(-1, channels * time * side * side)


def _settings(folder: Path, max_pixels: int | None) -> ModelSettings:
    vision = read_json(folder / "config.json").get("vision_config") or {}
    return ModelSettings(
        family=NAME,
        layout=_layout(folder, vision, max_pixels),
        dim=int(vision.get("out_hidden_size", 3584)),
        dtype=config_dtype(folder, FAMILY),
        deepstack_layers=0,
        default_temperature=DEFAULT_TEMPERATURE,
        default_window=DEFAULT_WINDOW,
        patch_flops=_patch_flops(vision),
    )


def _patch_flops(vision: dict[str, Any]) -> float:
    """Two operations per weight that a patch meets: blocks, embedding, and a quarter of the merger."""
    hidden, inner = int(vision.get("hidden_size", 1280)), int(vision.get("intermediate_size", 3420))
    block = 4 * hidden**2 + 3 * hidden * inner
    embedding = 3 * 2 * 14 * 14 * hidden
    merger = ((4 * hidden) ** 2 + 4 * hidden * int(vision.get("out_hidden_size", 3584))) / 4
    return 2.0 * (int(vision.get("depth", 32)) * block + embedding + merger)


def _layout(folder: Path, vision: dict[str, Any], max_pixels: int | None) -> FrameLayout:
    given = read_preprocessor(folder)
    size = given.get("size") or {"shortest_edge": _MIN_PIXELS, "longest_edge": _MAX_PIXELS}
    lowest = size.get("shortest_edge") if given.get("min_pixels") is None else given["min_pixels"]
    highest = size.get("longest_edge") if given.get("max_pixels") is None else given["max_pixels"]
    resample = _RESAMPLE.get(given.get("resample", 3))
    if lowest is None or highest is None or resample is None:
        raise ModelError(
            f"{folder} has a preprocessor with size {size}, resample {given.get('resample')}; accepted are "
            f"shortest_edge and longest_edge in pixels, and resample {list(_RESAMPLE)}: take its original files"
        )
    # Where a checkpoint switches a step off, its tokens would silently be those of other pixels.
    off = [step for step in ("do_resize", "do_rescale", "do_normalize") if not given.get(step, True)]
    if off or not isclose(given.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-9):
        raise ModelError(
            f"{folder} has a preprocessor without {off or 'rescale_factor 1/255'}; take its original files"
        )
    sizes = {}
    for name, config_name, default in (
        ("patch_size", "patch_size", 14),
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
        # A cap below the checkpoint's floor removes the floor: growing small frames to it would break the cap.
        lowest, highest = (lowest if lowest <= max_pixels else token_pixels), max_pixels
    return FrameLayout(
        family=NAME,
        patch_size=sizes["patch_size"],
        merge_size=sizes["merge_size"],
        temporal_patch=sizes["temporal_patch_size"],
        min_pixels=int(lowest),
        max_pixels=int(highest),
        resample=resample,
        mean=_rgb(given.get("image_mean", _MEAN)),
        std=_rgb(given.get("image_std", _STD)),
    )


def _rgb(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _vision_config(folder: Path) -> Any:
    from transformers import Qwen2_5_VLConfig  # noqa: PLC0415 - a second that frame layouts need not pay

    return Qwen2_5_VLConfig.from_pretrained(folder).vision_config


def _identity(folder: Path) -> dict[str, object]:
    config = _vision_config(folder)
    layout = _layout(folder, read_json(folder / "config.json").get("vision_config") or {}, None)
    rope = getattr(config, "rope_parameters", None) or {}
    return {
        "vision": {name: getattr(config, name) for name in _IDENTITY}
        | {"rope_theta": rope.get("rope_theta", 10000.0)},
        "preprocessor": [layout.min_pixels, layout.resample, layout.mean, layout.std],
    }


def _load(
    folder: Path, settings: ModelSettings, segment_cells: int, device: torch.device, dtype: torch.dtype
) -> Qwen2_5VLEncoder:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (  # noqa: PLC0415
        Qwen2_5_VisionTransformerPretrainedModel,
    )

    with _no_progress_bar():
        tower, info = Qwen2_5_VisionTransformerPretrainedModel.from_pretrained(
            None,
            config=_vision_config(folder),
            state_dict=dict(vision_tensors(folder, FAMILY)),
            dtype=dtype,
            attn_implementation="sdpa",
            # Reported below with the rest, instead of raised half-way with a page of text.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    # The library fills what is missing with random values and a warning; tokens of such a tower are worthless.
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = sorted(str(key) for key in info[kind])
        if names:
            raise ModelError(
                f"{folder}: {len(names)} {kind.replace('_keys', '')} vision weights, such as {names[0]}; "
                "download the checkpoint again"
            )
    tower = tower.to(device).eval().requires_grad_(False)
    return Qwen2_5VLEncoder(tower, layout=settings.layout, dim=settings.dim, segment_cells=segment_cells)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging  # noqa: PLC0415

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


FAMILY = Family(
    name=NAME,
    settings=_settings,
    identity=_identity,
    weights_class="Qwen2_5_VLForConditionalGeneration",
    vision_prefix="model.visual.",
    load=_load,
)
