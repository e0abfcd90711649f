"""Small cases of each family, and the plain call of the library's classes on them: pixels in, every token seen.

Made without this package's prompt code, so that it can be its oracle.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from echoprune.data import Frames, TokenSet
from echoprune.models import frame_layout, load_answerer, load_encoder
from echoprune.models.answerer import Answerer
from echoprune.models.encoder import PatchLayout
from echoprune.models.llava_onevision import normalised
from echoprune.models.prompt import Prompt
from echoprune.models.qwen_vision import patchify
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.view import View, view_of

QUESTION = "What moved, and when?"
CELLS = {"qwen2_5_vl": 9, "qwen3_vl": 9, "llava_onevision": 3}
FPS = {"qwen2_5_vl": 2.0, "qwen3_vl": 2.0, "llava_onevision": 2.0}
# The same for all tests of this file; made once for each family.
PLAIN: dict[str, Plain] = {}


@dataclass
class Case:
    """One family: its checkpoint, frames of a video, and its tokens."""

    family: str
    folder: Path
    frames: Frames
    view: View
    tokens: TokenSet
    answerer: Answerer

    def prompt(self, text: str = QUESTION, keep: torch.Tensor | None = None) -> Prompt:
        kept = self.tokens if keep is None else pick(self.tokens, keep.nonzero()[:, 0])
        return self.answerer.place(self.answerer.skeleton(text, self.view), kept, self.view)


def pick(tokens: TokenSet, index: torch.Tensor) -> TokenSet:
    fields = ("tokens", "positions", "times_s", "correspondence", "echo", "anchor")
    chosen = {name: getattr(tokens, name)[index] for name in fields}
    deepstack = None if tokens.deepstack is None else tokens.deepstack[:, index]
    return TokenSet(**chosen, grid_thw=tokens.grid_thw, deepstack=deepstack)


def view_at(family: str, cells: int, grid_hw: tuple[int, int], fps: float = 2.0) -> View:
    step = 1 if family == "llava_onevision" else 2
    times = np.arange(cells) * step / fps
    view = view_of(times, times + step / fps, grid_hw=grid_hw, cell_frames=step)
    assert view is not None
    return view


def make_case(family: str, folder: Path, make_frames: Any) -> Case:
    """The case of `family`, with its tiny checkpoint written to `folder`."""
    write_tiny_checkpoint(family, folder, seed=3)
    layout = frame_layout(str(folder), max_pixels=None)
    # 4 x 7 tokens: neither square nor whole windows.
    height, width = (
        layout.frame_hw(4 * 28, 7 * 28) if family != "qwen3_vl" else layout.frame_hw(4 * 32, 7 * 32)
    )
    frames = make_frames(CELLS[family], height, width, seed=5, cell_frames=layout.cell_frames)
    encoder = load_encoder(str(folder), segment_cells=CELLS[family], device="cpu", compute_dtype="fp32")
    grid = encoder.encode(frames)
    t, h, w, dim = grid.tokens.shape
    positions = torch.stack(
        torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij"), dim=-1
    ).reshape(-1, 3)
    count = len(positions)
    tokens = TokenSet(
        tokens=grid.tokens.reshape(count, dim),
        positions=positions,
        times_s=positions[:, 0].double(),
        correspondence=torch.zeros(count),
        echo=torch.zeros(count),
        anchor=torch.zeros(count, dtype=torch.bool),
        grid_thw=(t, h, w),
        deepstack=None if grid.deepstack is None else grid.deepstack.reshape(-1, count, dim),
    )
    view = view_at(family, t, (h, w), FPS[family])
    return Case(family, folder, frames, view, tokens, load_answerer(str(folder), device="cpu"))


@dataclass
class Plain:
    """What a user of the library passes for one video and question, made without this package's prompt code."""

    model: Any
    ids: torch.Tensor
    pixels: dict[str, torch.Tensor]
    positions: torch.Tensor
    visual: torch.Tensor

    def logits(self, keep: torch.Tensor | None = None, *, compact: bool = False) -> torch.Tensor:
        """Logits after the prompt; tokens outside `keep` are there, but nothing may attend to them."""
        with torch.no_grad():
            logits: torch.Tensor = self.model(**self._seen(keep, compact=compact)).logits[0, -1]
        return logits

    def text_ids(self, keep: torch.Tensor, *, new: int, compact: bool, suppress: list[int]) -> list[int]:
        """What the library's own greedy `generate` writes in `new` tokens under the same mask."""
        inputs = self._seen(keep, compact=compact)
        made = self.model.generate(**inputs, max_new_tokens=new, do_sample=False, suppress_tokens=suppress)
        ids: list[int] = made[0, self.ids.shape[1] :].tolist()
        return ids

    def _seen(self, keep: torch.Tensor | None, *, compact: bool) -> dict[str, torch.Tensor]:
        mask = torch.ones_like(self.ids)
        positions = self.positions
        if keep is not None:
            mask[0, self.visual[: len(keep)][~keep]] = 0
            mask[0] &= self._timed(keep)
        if compact:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return {"input_ids": self.ids, "attention_mask": mask, "position_ids": positions, **self.pixels}

    def _timed(self, keep: torch.Tensor) -> torch.Tensor:
        """0 for the time text of cells that keep nothing, by reading the ids backwards from each empty cell."""
        mask = torch.ones_like(self.ids[0])
        if self.model.config.model_type != "qwen3_vl":
            return mask
        config = self.model.config
        starts = (self.ids[0] == config.vision_start_token_id).nonzero()[:, 0].tolist()
        ends = (self.ids[0] == config.vision_end_token_id).nonzero()[:, 0].tolist()
        # The outermost pair is the chat template's own.
        begin = starts[0] + 1
        for cell, end in enumerate(ends[:-1]):
            rows = int((self.ids[0, begin:end] == config.video_token_id).sum())
            if not keep.view(len(ends) - 1, rows)[cell].any():
                mask[begin : end + 1] = 0
            begin = end + 1
        return mask


def plain(case: Case) -> Plain:
    if case.family not in PLAIN:
        PLAIN[case.family] = _plain(case)
    return PLAIN[case.family]


def _plain(case: Case) -> Plain:
    model_class = getattr(
        transformers,
        {
            "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
            "qwen3_vl": "Qwen3VLForConditionalGeneration",
            "llava_onevision": "LlavaOnevisionForConditionalGeneration",
        }[case.family],
    )
    model = model_class.from_pretrained(case.folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(case.folder)
    content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    t, h, w = case.view.grid_thw
    layout = frame_layout(str(case.folder), max_pixels=None)
    pixels = torch.from_numpy(case.frames.pixels.copy())
    if case.family == "llava_onevision":
        ids = tokenizer(chat.replace("<video>", "<video>" * (t * h * w + 1)), return_tensors="pt")[
            "input_ids"
        ]
        inputs = {"pixel_values_videos": normalised(pixels, layout)[None]}
        positions = torch.arange(ids.shape[1])[None]
        visual = (ids[0] == model.config.video_token_id).nonzero()[:, 0]
        return Plain(model, ids, inputs, positions, visual)
    assert isinstance(layout, PatchLayout)
    grid = torch.tensor([[t, 2 * h, 2 * w]])
    inputs = {"pixel_values_videos": patchify(pixels, layout), "video_grid_thw": grid}
    extra = {}
    pad = "<|video_pad|>"
    if case.family == "qwen3_vl":
        # Frames at 2 a second, of which a cell holds two: means at 0.25, 1.25, ...
        shown = "".join(
            f"<{cell + 0.25:.1f} seconds><|vision_start|>{pad * (h * w)}<|vision_end|>" for cell in range(t)
        )
        text_ids = chat.replace(pad, shown)
    else:
        text_ids = chat.replace(pad, pad * (t * h * w))
        extra = {"second_per_grid_ts": torch.tensor([2 / FPS[case.family]])}
    ids = tokenizer(text_ids, return_tensors="pt")["input_ids"]
    kinds = 2 * (ids == model.config.video_token_id).int()
    positions, _ = model.model.get_rope_index(ids, kinds, video_grid_thw=grid, **extra)
    visual = (ids[0] == model.config.video_token_id).nonzero()[:, 0]
    return Plain(model, ids, inputs, positions, visual)


def keep_mask(case: Case, *, seed: int = 0) -> torch.Tensor:
    """A random third of the tokens, and nothing of the second cell."""
    keep = torch.rand(len(case.tokens), generator=torch.Generator().manual_seed(seed)) < 0.3
    keep[case.tokens.positions[:, 0] == 1] = False
    return keep


def first_logits(case: Case, prompt: Prompt) -> torch.Tensor:
    inputs = case.answerer._inputs([prompt])
    with torch.no_grad():
        logits: torch.Tensor = case.answerer.model(**inputs, logits_to_keep=1).logits[0, -1]
    return logits
