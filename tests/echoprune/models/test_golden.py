"""Pixels, times and prompts against what the library's own processors made of the same video (see tests/golden.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from echoprune.data import TokenSet
from echoprune.models import families, frame_layout, load_answerer
from echoprune.models.encoder import PatchLayout
from echoprune.models.llava_onevision import normalised
from echoprune.models.qwen_vision import patchify
from echoprune.resize import resize_frames
from echoprune.view import View, view_of
from tests.golden import FRAMES, GOLDEN, HEIGHT, QUESTION, SOURCE_FPS, STEP, STRIDE, WIDTH, video


def grid_of(folder: Path) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """(cells, frame size, token grid) of the golden video."""
    layout = frame_layout(str(folder), max_pixels=None)
    hw = layout.frame_hw(HEIGHT, WIDTH)
    return -(-FRAMES // layout.cell_frames), hw, layout.grid_hw(hw)


def view(folder: Path) -> View:
    layout = frame_layout(str(folder), max_pixels=None)
    cells, _, grid_hw = grid_of(folder)
    step_s = STEP / SOURCE_FPS
    times = np.arange(cells) * step_s * layout.cell_frames
    ends = np.append(times[1:], FRAMES * step_s)
    found = view_of(times, ends, grid_hw=grid_hw, cell_frames=layout.cell_frames)
    assert found is not None
    return found


@pytest.mark.parametrize("family", families())
def test_pixel_values(family: str, tiny_of: Callable[[str], Path]) -> None:
    golden = np.load(GOLDEN / f"{family}_processor.npz")
    layout = frame_layout(str(tiny_of(family)), max_pixels=None)
    cells, hw, grid_hw = grid_of(tiny_of(family))
    frames = resize_frames(video(), hw, resample=layout.resample)
    # The decode processes fill the last cell by its last frame.
    filled = np.concatenate([frames, frames[-1:].repeat(cells * layout.cell_frames - FRAMES, axis=0)])
    pixels = torch.from_numpy(filled)
    if isinstance(layout, PatchLayout):
        values = patchify(pixels, layout)
        assert golden["video_grid_thw"].tolist() == [[cells, 2 * grid_hw[0], 2 * grid_hw[1]]]
    else:
        values = normalised(pixels, layout)[None]
    assert values.shape == tuple(golden["pixel_shape"])
    sample = values.reshape(-1)[::STRIDE].numpy()
    # The bicubic filter rounds to 8 bits; a CPU without the same vector instructions may round a tie otherwise.
    assert np.mean(sample != golden["pixels"]) < 0.01
    np.testing.assert_allclose(sample, golden["pixels"], atol=1.01 / 255 / 0.26)


@pytest.mark.parametrize("family", families())
def test_prompt(family: str, tiny_of: Callable[[str], Path]) -> None:
    golden = np.load(GOLDEN / f"{family}_processor.npz")
    answerer = load_answerer(str(tiny_of(family)), device="cpu")
    seen = view(tiny_of(family))
    positions = torch.stack(torch.meshgrid(*map(torch.arange, seen.grid_thw), indexing="ij"), -1).reshape(
        -1, 3
    )
    count = seen.tokens
    everything = TokenSet(
        tokens=torch.zeros(count, answerer.dim),
        positions=positions,
        times_s=positions[:, 0].double(),
        correspondence=torch.zeros(count),
        echo=torch.zeros(count),
        anchor=torch.zeros(count, dtype=torch.bool),
        grid_thw=seen.grid_thw,
        deepstack=torch.zeros(answerer.deepstack_layers, count, answerer.dim)
        if answerer.deepstack_layers
        else None,
    )
    prompt = answerer.place(answerer.skeleton(QUESTION, seen), everything, seen)
    assert answerer.tokenizer.decode(prompt.input_ids) == answerer.tokenizer.decode(golden["input_ids"])
    assert prompt.input_ids.tolist() == golden["input_ids"].tolist()


def test_seconds_from_cell_to_cell(tiny_of: Callable[[str], Path]) -> None:
    golden = np.load(GOLDEN / "qwen2_5_vl_processor.npz")
    assert [view(tiny_of("qwen2_5_vl")).cell_s] == golden["second_per_grid_ts"].tolist()
