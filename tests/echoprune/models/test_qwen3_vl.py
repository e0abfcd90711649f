from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from echoprune.data import Frames
from echoprune.errors import ConfigError, ModelError
from echoprune.models import fingerprint, frame_layout, load_encoder, model_settings
from echoprune.models.encoder import PatchLayout
from echoprune.models.qwen_vision import patchify
from echoprune.models.tiny import write_tiny_checkpoint

MakeFrames = Callable[..., Frames]


@pytest.fixture
def copied(tiny_of: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_of("qwen3_vl"), tmp_path / "copied"))


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def patches_by_loops(pixels: np.ndarray) -> np.ndarray:
    """The order written out: cell, token row, token column, patch row, patch column; channel, frame, row, column."""
    frames, height, width, _ = pixels.shape
    normal = (pixels.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
    rows = [
        np.concatenate(
            [normal[2 * cell + f, y : y + 16, x : x + 16, c].ravel() for c in range(3) for f in range(2)]
        )
        for cell in range(frames // 2)
        for top in range(0, height, 32)
        for left in range(0, width, 32)
        for y in (top, top + 16)
        for x in (left, left + 16)
    ]
    return np.stack(rows)


def test_patches_are_those_of_the_loop_oracle(
    tiny_of: Callable[[str], Path], make_frames: MakeFrames
) -> None:
    layout = frame_layout(str(tiny_of("qwen3_vl")), max_pixels=None)
    assert isinstance(layout, PatchLayout)
    pixels = make_frames(3, 96, 160).pixels
    np.testing.assert_array_equal(
        patchify(torch.from_numpy(pixels.copy()), layout).numpy(), patches_by_loops(pixels)
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stored_layout", ["model.visual", "visual"])
def test_tokens_and_deepstack_maps_are_those_of_the_full_model(
    dtype: str, stored_layout: str, tmp_path: Path, make_frames: MakeFrames
) -> None:
    folder = write_tiny_checkpoint("qwen3_vl", tmp_path / "model", layout=stored_layout, dtype=dtype)
    # 5 cells of 4 x 7 tokens: 8 x 14 patches, for which the learned grid of 8 x 8 positions is interpolated.
    frames = make_frames(5, 128, 224)
    full, info = Qwen3VLForConditionalGeneration.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        output = full.get_video_features(
            torch.from_numpy(patches_by_loops(frames.pixels)), torch.tensor([[5, 8, 14]])
        )
    encoder = load_encoder(str(folder), segment_cells=5, device="cpu", compute_dtype=dtype)
    grid = encoder.encode(frames)
    assert grid.tokens.shape == (5, 4, 7, 64) and grid.tokens.dtype == encoder.dtype == full.dtype
    assert grid.deepstack is not None and grid.deepstack.shape == (3, 5, 4, 7, 64)
    # The library's call has all cells in one: in bf16, processors with matrix units (AMX) round that otherwise.
    exact = 0.0 if dtype == "fp32" else 2.0**-5
    for found, whole in zip(
        (grid.tokens, *grid.deepstack), (output.pooler_output, *output.deepstack_features), strict=True
    ):
        torch.testing.assert_close(found.reshape(-1, 64), torch.cat(list(whole)), rtol=exact, atol=exact)
    # Neither tokens nor maps are copies of one another, so that mixing them up would show.
    for one in range(3):
        for other in (grid.tokens, *grid.deepstack[one + 1 :]):
            assert float((grid.deepstack[one] - other).abs().mean()) > 0.1
    # Run on more cells than the video has: the same tokens, up to what another matrix shape rounds otherwise.
    wider = load_encoder(str(folder), segment_cells=8, device="cpu", compute_dtype=dtype).encode(frames)
    torch.testing.assert_close(wider.tokens, grid.tokens, rtol=0, atol=1e-4 if dtype == "fp32" else 0.1)


def test_settings_come_from_configuration_alone(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    settings = model_settings(str(copied), max_pixels=200_704)
    assert (settings.family, settings.dim, settings.dtype) == ("qwen3_vl", 64, "fp32")
    assert (settings.deepstack_layers, settings.default_temperature, settings.default_window) == (
        3,
        0.5,
        None,
    )
    assert settings.layout.cell_frames == 2 and settings.layout.grid_hw((448, 320)) == (14, 10)
    # 640 x 360 scaled to 200,704 pixels, sides of whole tokens; as many for a clip of any length.
    assert settings.layout.frame_hw(360, 640) == (320, 576)
    vision = json.loads((copied / "config.json").read_text())["vision_config"]
    rewrite(copied / "config.json", vision_config=vision | {"deepstack_visual_indexes": [1]})
    fewer = model_settings(str(copied))
    assert fewer.deepstack_layers == 1
    # A deepstack merger less: 2 x (256^2 + 256 x 64) operations for each of the two that went.
    assert settings.token_flops - fewer.token_flops == 2 * 2 * (256 * 256 + 256 * 64)


def test_bounds_are_those_of_a_frame(copied: Path) -> None:
    def bounds(max_pixels: int | None = None) -> tuple[int, int]:
        layout = frame_layout(str(copied), max_pixels=max_pixels)
        assert isinstance(layout, PatchLayout)
        return layout.min_pixels, layout.max_pixels

    # The checkpoint allows 25 million pixels for a clip: the family's 768 tokens of a frame are what remains.
    assert bounds() == (4096, 768 * 1024)
    assert bounds(200_704) == (4096, 200_704)
    assert bounds(2048) == (1024, 2048)
    rewrite(copied / "video_preprocessor_config.json", size={"shortest_edge": 8192, "longest_edge": 65536})
    assert bounds() == (8192, 65536)
    with pytest.raises(ConfigError, match="max pixels 1023 is below one token: give at least 1024"):
        bounds(1023)
    rewrite(copied / "video_preprocessor_config.json", patch_size=14)
    with pytest.raises(ModelError, match="patch_size is 14 in the preprocessor and 16"):
        bounds()


def test_one_fingerprint_for_both_layouts_and_another_for_other_maps(copied: Path, tmp_path: Path) -> None:
    expected = fingerprint(str(copied))
    other = write_tiny_checkpoint("qwen3_vl", tmp_path / "visual", layout="visual")
    assert fingerprint(str(other)) == expected
    rewrite(other / "video_preprocessor_config.json", image_std=[0.4, 0.5, 0.5])
    vision = json.loads((copied / "config.json").read_text())["vision_config"]
    rewrite(copied / "config.json", vision_config=vision | {"deepstack_visual_indexes": [0, 2, 1]})
    assert len({expected, fingerprint(str(other)), fingerprint(str(copied))}) == 3
