"""The plain call of the library's class about a video: the same sampled frames, every visual token, no store.

Decoding, resizing and the prompt's text are this package's own, so that both sides of a comparison see the same; the
vision tower, positions, prefill and generation are the library's, through its `generate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from echoprune.data import TokenGrid, TokenSet
from echoprune.decode import decode
from echoprune.index import sampling_of
from echoprune.models import frame_layout
from echoprune.models.answerer import Answerer
from echoprune.models.encoder import PatchLayout
from echoprune.models.llava_onevision import normalised
from echoprune.models.prompt import Prompt
from echoprune.models.qwen_vision import patchify
from echoprune.opening import Opened, open_source
from echoprune.schema import StoreSettings
from echoprune.view import view_of


class PlainCall:
    """One question about one video, asked of `answerer.model`; sampled and sized as `settings` of a store say."""

    def __init__(
        self, uri: str, *, model: str, answerer: Answerer, settings: StoreSettings, text: str
    ) -> None:
        self.uri, self.text = uri, text
        self.answerer, self.settings = answerer, settings
        self.layout = frame_layout(model, max_pixels=settings.max_pixels)

    def decode(self) -> tuple[Opened, npt.NDArray[np.uint8]]:
        """The video's time grid, and its sampled frames (F, H, W, 3), resized."""
        opened = open_source(
            self.uri,
            sampling_of(self.settings),
            sizes=self.layout,
            segment_cells=self.settings.segment_cells,
        )
        segments = decode(
            opened.info, opened.grid, decoder=self.settings.decoder, resample=self.layout.resample
        )
        return opened, np.concatenate([segment.pixels for segment in segments])

    def inputs(self, frames: tuple[Opened, npt.NDArray[np.uint8]]) -> dict[str, torch.Tensor]:
        """What a processor gives `generate`: ids with a placeholder for every token, pixels, and their grid."""
        opened, pixels = frames
        model, device = self.answerer.model, self.answerer.device
        times = np.append(opened.grid.cell_times_s, opened.grid.end_s)
        view = view_of(
            times[:-1], times[1:], grid_hw=opened.grid.grid_hw, cell_frames=self.layout.cell_frames
        )
        if view is None:
            raise ValueError(f"{self.uri} has no cells")
        frame = self.answerer.skeleton(self.text, view)
        t, h, w = view.grid_thw
        counts = torch.ones_like(frame.ids)
        closing = 0 if isinstance(self.layout, PatchLayout) else 1
        counts[frame.pads] = t * h * w // len(frame.pads) + closing
        ids = frame.ids.repeat_interleave(counts)[None].to(device)
        found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        # Values on the device as the library's own fast processors do it.
        values = torch.from_numpy(pixels).to(device)
        if not isinstance(self.layout, PatchLayout):
            return found | {"pixel_values_videos": normalised(values, self.layout)[None]}
        side = self.layout.merge_size
        found |= {
            "pixel_values_videos": patchify(values, self.layout),
            "video_grid_thw": torch.tensor([[t, side * h, side * w]], device=device),
            "mm_token_type_ids": 2 * (ids == model.config.video_token_id).int(),
        }
        if self.answerer.family == "qwen2_5_vl":
            step_s = float(opened.grid.end_s) / t
            found["second_per_grid_ts"] = torch.tensor([step_s], device=device)
        return found

    def visual_tokens(self, inputs: dict[str, torch.Tensor]) -> int:
        """How many of the ids are visual tokens."""
        config: Any = self.answerer.model.config
        placeholder = getattr(config, "video_token_id", None) or config.video_token_index
        return int((inputs["input_ids"] == placeholder).sum())

    def dense_prompt(self, opened: Opened, grid: TokenGrid) -> Prompt:
        """The prompt of this package with every token of `grid` in it."""
        cells, height, width, dim = grid.tokens.shape
        times = np.append(opened.grid.cell_times_s, opened.grid.end_s)
        view = view_of(times[:-1], times[1:], grid_hw=(height, width), cell_frames=self.layout.cell_frames)
        if view is None:
            raise ValueError(f"{self.uri} has no cells")
        positions = torch.cartesian_prod(torch.arange(cells), torch.arange(height), torch.arange(width))
        none = torch.zeros(len(positions))
        every = TokenSet(
            tokens=grid.tokens.reshape(-1, dim),
            positions=positions,
            times_s=torch.from_numpy(times[:-1]).repeat_interleave(height * width),
            correspondence=none,
            echo=none,
            anchor=none.bool(),
            grid_thw=(cells, height, width),
            deepstack=None if grid.deepstack is None else grid.deepstack.flatten(1, 3),
        )
        return self.answerer.place(self.answerer.skeleton(self.text, view), every, view)

    @torch.no_grad()
    def generate(
        self, inputs: dict[str, torch.Tensor], *, new_tokens: int, now: Callable[[], float]
    ) -> float:
        """Generates so many tokens; the seconds of it, by `now`, that the vision tower took."""
        model = self.answerer.model
        tower = model.model.visual if hasattr(model.model, "visual") else model.model.vision_tower
        marks: list[float] = []
        hooks = (
            tower.register_forward_pre_hook(lambda *_: marks.append(now())),
            tower.register_forward_hook(lambda *_: marks.append(now())),
        )
        try:
            model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        finally:
            for hook in hooks:
                hook.remove()
        if len(marks) != 2:
            raise RuntimeError(f"the vision tower was called {len(marks) / 2:g} times, expected once")
        return marks[1] - marks[0]
