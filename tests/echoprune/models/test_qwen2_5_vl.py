from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from echoprune.data import Frames
from echoprune.models import load_encoder
from echoprune.models.encoder import PatchLayout
from echoprune.models.qwen_vision import patchify
from echoprune.models.tiny import write_tiny_checkpoint

MakeFrames = Callable[..., Frames]
GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "qwen2_vl_video_processor.npz"
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def layout(low: int = 3136, high: int = 200704) -> PatchLayout:
    return PatchLayout("qwen2_5_vl", 14, 2, 2, low, high, "bicubic", *CLIP)


def patches_by_loops(pixels: np.ndarray) -> np.ndarray:
    """The order written out: cell, token row, token column, patch row, patch column; channel, frame, row, column."""
    frames, height, width, _ = pixels.shape
    mean, std = (np.array(values, dtype=np.float32) * np.float32(255) for values in CLIP)
    normal = (pixels.astype(np.float32) - mean) / std
    rows = []
    for cell in range(frames // 2):
        for top in range(0, height, 28):
            for left in range(0, width, 28):
                for down in (0, 14):
                    for right in (0, 14):
                        y, x = top + down, left + right
                        patch = [
                            normal[2 * cell + f, y : y + 14, x : x + 14, c]
                            for c in range(3)
                            for f in range(2)
                        ]
                        rows.append(np.concatenate([part.ravel() for part in patch]))
    return np.stack(rows)


def test_patches_are_those_of_the_loop_oracle(make_frames: MakeFrames) -> None:
    pixels = make_frames(3, 84, 140).pixels
    got = patchify(torch.from_numpy(pixels.copy()), layout())
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), patches_by_loops(pixels))


def test_patches_are_those_of_the_official_processor() -> None:
    """Resize, normalise and patchify against values stored from Qwen2VLVideoProcessor (versions are in the file)."""
    from echoprune.resize import resize_frames

    golden = np.load(GOLDEN)
    frames, height, width = golden["size"].tolist()
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    video = (((x * (3 + c) + y * 5 + t * 17) // 4 + (x * y) // (31 + 7 * c)) % 256).astype(np.uint8)
    rule = layout(*golden["bounds"].tolist())
    hw = rule.frame_hw(height, width)
    patches = patchify(torch.from_numpy(resize_frames(video, hw)), rule)
    cells, rows, columns = golden["grid_thw"].tolist()
    assert (frames // 2, hw[0] // 14, hw[1] // 14) == (cells, rows, columns)
    every_row, every_value = golden["stride"].tolist()
    sample = patches[::every_row, ::every_value].numpy()
    # The bicubic filter rounds to 8 bits; a CPU without the same vector instructions may round a tie otherwise.
    assert np.mean(sample != golden["patches"]) < 0.001
    np.testing.assert_allclose(sample, golden["patches"], atol=1.01 / 255 / 0.26)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stored_layout", ["model.visual", "visual"])
def test_tokens_are_those_of_the_full_model(
    dtype: str, stored_layout: str, tmp_path: Path, make_frames: MakeFrames
) -> None:
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model", layout=stored_layout, dtype=dtype)
    # 5 cells of 4 x 7 tokens: not square, wider than the 2 x 2 windows, and 7 is no multiple of 2.
    frames = make_frames(5, 112, 196)
    full = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        output = full.get_video_features(
            torch.from_numpy(patches_by_loops(frames.pixels)), torch.tensor([[5, 8, 14]])
        ).pooler_output
    encoder = load_encoder(str(folder), segment_cells=5, device="cpu", compute_dtype=dtype)
    tokens = encoder.encode(frames).tokens
    assert tokens.shape == (5, 4, 7, 64) and tokens.dtype == encoder.dtype == full.dtype
    assert torch.equal(tokens.reshape(-1, 64), torch.cat(list(output)))
    # Run on more cells than the video has: the same tokens, up to what another matrix shape rounds otherwise.
    other = (
        load_encoder(str(folder), segment_cells=8, device="cpu", compute_dtype=dtype).encode(frames).tokens
    )
    torch.testing.assert_close(other, tokens, rtol=0, atol=1e-4 if dtype == "fp32" else 0.1)
