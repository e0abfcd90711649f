"""The vision towers of the Qwen-VL families by `vision.py`'s steps: windows and gated MLPs of the one, maps of the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from echoprune.data import TokenGrid
from echoprune.errors import ConfigError
from echoprune.fast.vision import Block, Norm, Packing, Place, axial_angles, merged_places, run_blocks
from echoprune.models.encoder import PatchLayout
from echoprune.models.qwen_vision import patchify

# Places in a table, and the shares of the places after them.
Taps = tuple[torch.Tensor, torch.Tensor]


class FastQwenTower:
    """What `qwen_vision.tokens_of` does with the library's `tower` (Qwen2.5-VL's or Qwen3-VL's), from its weights.

    A frame size that was not seen before costs a few tensors of positions. Raises ConfigError for other activations than
    those of the published checkpoints.
    """

    def __init__(self, tower: Any, layout: PatchLayout) -> None:
        config = tower.config
        gated = bool(tower.blocks) and hasattr(tower.blocks[0].mlp, "gate_proj")
        reason = refused(config, gated=gated)
        if reason:
            raise ConfigError(f"{reason}: use --tower plain")
        self.layout = layout
        self._heads = int(config.num_heads)
        self._dtype = tower.patch_embed.proj.weight.dtype
        self._device = tower.patch_embed.proj.weight.device
        self._embedding = tower.patch_embed.proj.weight.flatten(1), tower.patch_embed.proj.bias
        half = config.hidden_size // config.num_heads // 2
        theta = float((getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0))
        self._inverse = 1.0 / (theta ** (torch.arange(0, half, 2, dtype=torch.float32) / half))
        self._window = config.window_size // layout.token_side if hasattr(config, "window_size") else 0
        full = set(config.fullatt_block_indexes) if self._window else set()
        packing = Packing(config.hidden_size, self._device)
        self._blocks: list[Block] = []
        self._mergers: dict[int, tuple[Norm, Any]] = {}
        deepstack = list(getattr(config, "deepstack_visual_indexes", ()))
        for index, block in enumerate(tower.blocks):
            self._blocks.append(_packed(packing, block, windowed=bool(self._window) and index not in full))
            if index in deepstack:
                module = tower.deepstack_merger_list[deepstack.index(index)]
                self._mergers[index] = _after_shuffle(packing, module), module
        merger = tower.merger
        self._final = packing.norm(merger.ln_q if hasattr(merger, "ln_q") else merger.norm)
        self._merger = merger
        self._table = getattr(tower, "pos_embed", None)
        self._places: dict[tuple[int, tuple[int, int]], tuple[Place, torch.Tensor, torch.Tensor | None]] = {}

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> TokenGrid:
        """TokenGrid of uint8 `pixels` (F, H, W, 3), F whole cells, on the tower's device."""
        frames, height, width, _ = pixels.shape
        layout = self.layout
        cells, grid_hw = frames // layout.temporal_patch, layout.grid_hw((height, width))
        place, order, learned = self._place(cells, grid_hw)
        x = F.linear(patchify(pixels, layout).to(self._dtype), *self._embedding)
        unit = layout.merge_size**2
        tokens = grid_hw[0] * grid_hw[1]
        if self._window:
            x = x.view(cells, tokens, unit, -1)[:, order[0]].flatten(0, 2)
        if learned is not None:
            x = x.view(cells, tokens * unit, -1).add_(learned).flatten(0, 1)
        maps: dict[int, torch.Tensor] = {}

        def after(index: int, rows: torch.Tensor) -> None:
            if index in self._mergers:
                norm, module = self._mergers[index]
                maps[index] = _merged(module, norm(rows.view(-1, unit * rows.shape[1])), unit)

        x = run_blocks(x, self._blocks, place, heads=self._heads, after=after if self._mergers else None)
        merged = _merged(self._merger, self._final(x), unit)
        if self._window:
            merged = merged.view(cells, tokens, -1)[:, order[1]]
        shape = (cells, *grid_hw, merged.shape[-1])
        if not maps:
            return TokenGrid(merged.reshape(shape))
        # In the order of the library's list of mergers.
        return TokenGrid(
            merged.view(shape), torch.stack([maps[index] for index in self._mergers]).view(-1, *shape)
        )

    def _place(self, cells: int, grid_hw: tuple[int, int]) -> tuple[Place, torch.Tensor, torch.Tensor | None]:
        known = self._places.get((cells, grid_hw))
        if known is None:
            known = self._places[cells, grid_hw] = self._new_place(cells, grid_hw)
        return known

    def _new_place(
        self, cells: int, grid_hw: tuple[int, int]
    ) -> tuple[Place, torch.Tensor, torch.Tensor | None]:
        merge, unit, device = self.layout.merge_size, self.layout.merge_size**2, self._device
        rows, columns = merged_places(grid_hw, merge)
        order = torch.arange(grid_hw[0] * grid_hw[1])
        edges = None
        if self._window:
            order, counts = _windows(grid_hw, self._window)
            rows, columns = (each.view(-1, unit)[order].flatten() for each in (rows, columns))
            edges = F.pad(unit * counts.repeat(cells).cumsum(0), (1, 0)).to(torch.int32)
        cos, sin = axial_angles(rows, columns, self._inverse)
        place = Place(
            len(rows),
            cos.to(device),
            sin.to(device),
            None if edges is None else edges.to(device),
            unit * self._window**2,
        )
        learned = None
        if self._table is not None:
            side = round(self._table.num_embeddings**0.5)
            taps = [_taps(at, size * merge, side) for at, size in zip((rows, columns), grid_hw, strict=True)]
            learned = _interpolated(self._table.weight, side, *taps)
        return place, torch.stack([order, order.argsort()]).to(device), learned


def refused(config: Any, *, gated: bool) -> str:
    """Why the fast tower does not take a checkpoint with the vision `config`; "" if it does."""
    accepted = "silu" if gated else "gelu_pytorch_tanh"
    if config.hidden_act == accepted:
        return ""
    return f"the fast tower has {accepted}, the checkpoint {config.hidden_act}"


def _packed(packing: Packing, block: Any, *, windowed: bool) -> Block:
    norm1 = packing.norm(block.norm1)
    out = packing.added(block.attn.proj)
    norm2 = packing.norm(block.norm2)
    mlp = block.mlp
    gated = hasattr(mlp, "gate_proj")
    inner = packing.gated(mlp.gate_proj, mlp.up_proj) if gated else packing.plain(mlp.linear_fc1)
    outer = packing.outer(mlp.down_proj if gated else mlp.linear_fc2)
    qkv = block.attn.qkv
    return Block(norm1, (qkv.weight, qkv.bias), out, norm2, inner, outer, gated, windowed)


def _after_shuffle(packing: Packing, module: Any) -> Norm:
    """The norm of a merger that looks at all patches of a token side by side."""
    norm = packing.norm(module.norm)
    if norm.shift is None:
        return norm
    return replace(norm, shift=norm.shift.repeat(len(norm.weight) // len(norm.shift)))


def _merged(module: Any, normed: torch.Tensor, unit: int) -> torch.Tensor:
    """Tokens of normalised patches; `normed` may have a token's patches in one row already."""
    layers = module.mlp if hasattr(module, "mlp") else (module.linear_fc1, module.act_fn, module.linear_fc2)
    wide = layers[0].in_features
    x = normed.view(-1, wide)
    for layer in layers:
        x = layer(x)
    return x


def _windows(grid_hw: tuple[int, int], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of a cell's tokens window by window, (h x w,), and how many each window has: fewer at the border."""
    h, w = grid_hw
    index = torch.arange(h * w).view(h, w)
    windows = [
        index[top : top + side, left : left + side].flatten()
        for top in range(0, h, side)
        for left in range(0, w, side)
    ]
    return torch.cat(windows), torch.tensor([len(each) for each in windows])


def _interpolated(table: torch.Tensor, side: int, rows: Taps, columns: Taps) -> torch.Tensor:
    """(P, D) learned positions of a cell's patches, from a grid of side x side by linear interpolation, ends on ends."""
    (top, down), (left, right) = rows, columns
    found = torch.zeros((len(top), table.shape[1]), dtype=torch.float32, device=table.device)
    for row, row_weight in ((top, 1 - down), (top + 1, down)):
        for column, column_weight in ((left, 1 - right), (left + 1, right)):
            index = row.clamp(max=side - 1) * side + column.clamp(max=side - 1)
            weight = (row_weight * column_weight)[:, None].to(table.device)
            found += table[index.to(table.device)].float() * weight
    return found.to(table.dtype)


def _taps(at: torch.Tensor, size: int, side: int) -> Taps:
    """The lower of two neighbours in the table, and the share of the upper."""
    where = at.float() * (side - 1) / max(size - 1, 1)
    low = where.floor()
    return low.long(), where - low
