"""An index run of each family beside Qwen2.5-VL, which the other tests use, and one of the fast tower; without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import echoprune
from echoprune.decode import decode
from echoprune.index import sampling_of
from echoprune.models import load_encoder
from echoprune.models.tiny import write_tiny_checkpoint
from pipelines.config import IndexConfig
from pipelines.decode_actor import VideoOpener
from tests import oracle
from tests.clips import Clip, even, write
from tests.pipelines import in_process


@pytest.mark.parametrize(
    ("family", "tower", "grid_thw", "maps", "temperature", "window"),
    [("qwen3_vl", "fast", (8, 3, 4), 3, 0.5, None), ("llava_onevision", "plain", (16, 14, 14), 0, 0.1, 3)],
)
def test_a_store_holds_the_oracles_choice_with_its_maps(
    family: str,
    tower: str,
    grid_thw: tuple[int, int, int],
    maps: int,
    temperature: float,
    window: int | None,
    tmp_path: Path,
) -> None:
    model = write_tiny_checkpoint(family, tmp_path / "model")
    clip = write(Clip("clip.mp4", even(200, step_ms=40)), tmp_path)
    in_process.index(
        IndexConfig(
            paths=(str(clip),), store=str(tmp_path / "store"), model=str(model), keep="0.25", anchor_every=0.0,
            segment_cells=4, tower=tower,
        )
    )  # fmt: skip
    store = echoprune.open_store(tmp_path / "store")
    kept = store.tokens("clip.mp4")
    settings = store.settings
    assert (settings.deepstack_layers, settings.temperature, settings.window) == (maps, temperature, window)
    assert kept.grid_thw == grid_thw

    assert settings.tower == tower
    encoder = load_encoder(
        str(model), segment_cells=4, device="cpu", max_pixels=settings.max_pixels, tower=tower
    )
    opened = VideoOpener(encoder.layout, sampling_of(settings), 4).open(str(clip))
    grids = [encoder.encode(frames) for frames in decode(opened.info, opened.grid)]
    tokens = torch.cat([grid.flat for grid in grids])
    cells, places, _ = tokens.shape
    index = kept.flat_index
    assert torch.equal(kept.tokens, tokens.flatten(0, 1)[index])
    if maps:
        assert kept.deepstack is not None
        every = torch.cat([grid.deepstack for grid in grids], dim=1).flatten(1, 3)
        assert torch.equal(kept.deepstack, every[:, index])
    else:
        assert kept.deepstack is None

    correspondence, echo = oracle.echo(
        tokens.numpy(), grid_hw=grid_thw[1:], temperature=temperature, window=window
    )
    np.testing.assert_allclose(kept.correspondence, correspondence.reshape(-1)[index], atol=1e-5)
    np.testing.assert_allclose(kept.echo, echo.reshape(-1)[index], atol=1e-5)
    budget = cells * places // 4
    assert index.tolist() == oracle.keep_without_question(correspondence, echo, budget=budget, by="change")
