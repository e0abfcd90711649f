"""Running a vision tower over videos in runs of equal shape, and loading its weights without making any up.

The encoder of every family is a `TowerEncoder` around that family's way from pixels to tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from echoprune.data import Frames, TokenGrid
from echoprune.errors import ModelError
from echoprune.models.encoder import ModelSettings
from echoprune.models.preprocessor import Channels


class TowerEncoder:
    """The `Encoder` of every family; made by `load_encoder`.

    `run` takes uint8 pixels (F, H, W, 3) of some whole cells on the device, and gives their TokenGrid. Each call of it
    has as many cells, the last of them black when there are fewer frames: matrix kernels are chosen by row count, so
    that one shape per frame size is what makes equal cells give equal bits. On a GPU these are `segment_cells`. Measured
    on an H200 with a random Qwen2.5-VL tower of 7B shape: any cut of 16 cells gave equal bits at 8 cells a call, in
    bf16, fp16 and fp32; against 3 cells a call values differed by up to 0.17 in bf16. On a CPU it is one cell: its
    libraries share rows out among threads, and on 16 cores the bits of a LLaVA-OneVision frame followed its place among
    others. Alone in float32 a tiny Qwen2.5-VL tower took a quarter of the time so, the others' 1.1 to 1.7 times; an
    index of three hours took 1.1 times the CPU.
    """

    def __init__(
        self,
        tower: torch.nn.Module,
        run: Callable[[torch.Tensor], TokenGrid],
        *,
        settings: ModelSettings,
        segment_cells: int,
    ) -> None:
        weight = next(tower.parameters())
        self.family = settings.family
        self.layout = settings.layout
        self.dim = settings.dim
        self.dtype = weight.dtype
        self.device = weight.device
        self.deepstack_layers = settings.deepstack_layers
        self.default_temperature = settings.default_temperature
        self.default_window = settings.default_window
        self._call_cells = segment_cells if weight.device.type != "cpu" else 1
        self._tower = tower
        self._run = run

    @torch.no_grad()
    def encode(self, frames: Frames, *, check: bool = True) -> TokenGrid:
        """TokenGrid of (cells, h, w, D), tokens in raster order; see `Encoder.encode`."""
        if frames.cell_frames != self.layout.cell_frames:
            raise ValueError(f"cells of {frames.cell_frames} frames, expected {self.layout.cell_frames}")
        _, height, width, _ = frames.pixels.shape
        self.layout.grid_hw((height, width))
        parts = [
            self._encode_cells(frames, start, min(start + self._call_cells, frames.cells))
            for start in range(0, frames.cells, self._call_cells)
        ]
        found = parts[0]
        if len(parts) > 1:
            maps = [part.deepstack for part in parts if part.deepstack is not None]
            tokens = torch.cat([part.tokens for part in parts])
            found = TokenGrid(tokens, torch.cat(maps, dim=1) if maps else None)
        if check:
            self.require_finite(found, first_cell=frames.first_cell)
        return found

    def require_finite(self, found: TokenGrid, *, first_cell: int) -> None:
        """Raises ModelError unless all values of `found` are finite; see `Encoder.require_finite`."""
        values = [found.tokens] if found.deepstack is None else [found.tokens, found.deepstack]
        # The extremes of a tensor are finite where all of it is, and take a fiftieth of the time of looking at each value.
        if all(bool(torch.isfinite(torch.stack(torch.aminmax(value))).all()) for value in values):
            return
        broken = sum(int((~torch.isfinite(value)).sum()) for value in values)
        raise ModelError(
            f"{broken} of {sum(value.numel() for value in values)} values of cells {first_cell} to "
            f"{first_cell + len(found.tokens) - 1} are not finite in {self.dtype}; "
            "try --compute-dtype bf16 or fp32, or check the weights"
        )

    def _encode_cells(self, frames: Frames, start: int, stop: int) -> TokenGrid:
        per_cell = self.layout.cell_frames
        shape = (self._call_cells * per_cell, *frames.pixels.shape[1:])
        used = (stop - start) * per_cell
        # Pinned memory for a GPU, so that the copy to it needs no second one, and this process goes on meanwhile.
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        # Copied by numpy: frames that come out of Ray's object store are read-only, which torch cannot express.
        pixels.numpy()[:used] = frames.pixels[start * per_cell : stop * per_cell]
        pixels[used:] = 0
        with _float32_convolutions():
            found = self._run(pixels.to(self.device, non_blocking=True))
        maps = None if found.deepstack is None else found.deepstack[:, : stop - start]
        return TokenGrid(found.tokens[: stop - start], maps)


@contextmanager
def _float32_convolutions() -> Iterator[None]:
    """Convolutions of float32 values keep all of their bits inside.

    By default cuDNN rounds them to 10 bits (TF32): tokens of a Qwen tower in float32 were off by 3e-4 of their length on an H200.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@cache
def channel_values(mean: Channels, std: Channels, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (3,) float32 of values 0 to 255, on `device`; made once, since making them waits for a GPU.

    Rescaling by 1/255 is folded into them as the library does it, for equal bits.
    """
    return torch.tensor(mean, device=device) * 255.0, torch.tensor(std, device=device) * 255.0


def load_tower(
    tower_class: Any, config: Any, weights: dict[str, torch.Tensor], *, folder: Path, dtype: torch.dtype
) -> torch.nn.Module:
    """A `tower_class`, one of the library's models, on the CPU with `weights`; ModelError unless they fit exactly."""
    with _no_progress_bar():
        tower, info = tower_class.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=dtype,
            attn_implementation="sdpa",
            # Reported below with the rest, instead of raised half-way with a page of text.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    # The library fills what is missing with random values and a warning; tokens of such a tower are worthless.
    for kind in ("missing", "mismatched", "unexpected"):
        refuse_weights(kind, info[f"{kind}_keys"], folder)
    loaded: torch.nn.Module = tower
    return loaded


def load_layers(
    layers: torch.nn.Module, weights: dict[str, torch.Tensor], *, folder: Path, dtype: torch.dtype
) -> torch.nn.Module:
    """`layers`, made without memory and free of buffers, now with `weights`; ModelError unless they fit exactly."""
    wanted = layers.state_dict()
    refuse_weights("missing", wanted.keys() - weights.keys(), folder)
    refuse_weights("unexpected", weights.keys() - wanted.keys(), folder)
    refuse_weights(
        "mismatched", [name for name in wanted if wanted[name].shape != weights[name].shape], folder
    )
    layers.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)
    return layers


def refuse_weights(kind: str, names: Iterable[object], folder: Path) -> None:
    """Raises ModelError if there are any `names` of `kind` (missing, mismatched, unexpected)."""
    found = sorted(str(name) for name in names)
    if found:
        raise ModelError(
            f"{folder}: {len(found)} {kind} vision weights, such as {found[0]}; download the checkpoint again"
        )


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging  # noqa: PLC0415 - a second that others need not pay

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
