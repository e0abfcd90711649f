from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from echoprune.data import Frames
from echoprune.errors import ModelError
from echoprune.models import load_encoder
from echoprune.models.encoder import FrameLayout
from echoprune.models.qwen2_5_vl import Qwen2_5VLEncoder, patchify
from echoprune.models.tiny import write_tiny_checkpoint

MakeFrames = Callable[..., Frames]
GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "qwen2_vl_video_processor.npz"
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def layout(low: int = 3136, high: int = 200704) -> FrameLayout:
    return FrameLayout("qwen2_5_vl", 14, 2, 2, low, high, "bicubic", *CLIP)


def encoder_of(folder: Path, *, segment_cells: int, compute_dtype: str = "auto") -> Qwen2_5VLEncoder:
    encoder = load_encoder(
        str(folder), segment_cells=segment_cells, device="cpu", compute_dtype=compute_dtype
    )
    assert isinstance(encoder, Qwen2_5VLEncoder)
    return encoder


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
    encoder = encoder_of(folder, segment_cells=5)
    tokens = encoder.encode(frames).tokens
    assert tokens.shape == (5, 4, 7, 64) and tokens.dtype == encoder.dtype == full.dtype
    assert torch.equal(tokens.reshape(-1, 64), torch.cat(list(output)))
    # Run on more cells than the video has: the same tokens, up to what another matrix shape rounds otherwise.
    other = encoder_of(folder, segment_cells=8).encode(frames).tokens
    torch.testing.assert_close(other, tokens, rtol=0, atol=1e-4 if dtype == "fp32" else 0.1)


def test_tokens_are_in_raster_order(tiny: Path, make_frames: MakeFrames) -> None:
    encoder = encoder_of(tiny, segment_cells=2)
    before = make_frames(2, 112, 196)
    for t, h, w in [(0, 0, 1), (0, 1, 0), (1, 2, 5), (1, 3, 6)]:
        pixels = before.pixels.copy()
        pixels[2 * t : 2 * t + 2, 28 * h : 28 * h + 28, 28 * w : 28 * w + 28] = 255
        after = Frames(pixels, first_cell=0, cell_frames=2, decoder="pyav")
        moved = (encoder.encode(after).tokens - encoder.encode(before).tokens).norm(dim=-1)
        assert torch.unravel_index(moved.argmax(), moved.shape) == (t, h, w)
        assert float(moved[1 - t].max()) == 0.0


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("parts", [[8, 8], [2] * 8, [6, 10], [1] * 16])
def test_segments_give_the_bits_of_the_whole(
    dtype: str, parts: list[int], tiny: Path, make_frames: MakeFrames, cut: MakeFrames
) -> None:
    frames = make_frames(16, 84, 112)
    # 6 cells at a time: no cut of `parts` coincides with the encoder's own.
    encoder = encoder_of(tiny, segment_cells=6, compute_dtype=dtype)
    whole = encoder.encode(frames).tokens
    ends = np.cumsum(parts).tolist()
    pieces = [
        encoder.encode(cut(frames, start, stop)).tokens
        for start, stop in zip([0, *ends[:-1]], ends, strict=True)
    ]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_cell_does_not_see_its_neighbours(dtype: str, tiny: Path, make_frames: MakeFrames) -> None:
    encoder = encoder_of(tiny, segment_cells=5, compute_dtype=dtype)
    cell = make_frames(1, 84, 112, seed=9).pixels
    alone = encoder.encode(Frames(cell, first_cell=0, cell_frames=2, decoder="pyav")).tokens[0]
    for place in range(5):
        pixels = make_frames(5, 84, 112, seed=place).pixels.copy()
        pixels[2 * place : 2 * place + 2] = cell
        among = encoder.encode(Frames(pixels, first_cell=0, cell_frames=2, decoder="pyav")).tokens[place]
        assert torch.equal(among, alone)


def test_no_language_model_in_memory(tiny: Path) -> None:
    encoder = encoder_of(tiny, segment_cells=1)
    full = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny)
    held = {name: weight.numel() for name, weight in encoder._tower.named_parameters()}
    assert held == {name: weight.numel() for name, weight in full.model.visual.named_parameters()}
    assert sum(held.values()) < sum(weight.numel() for weight in full.parameters())
    assert not any(weight.requires_grad for weight in encoder._tower.parameters())


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_compute_dtype(dtype: str, tiny: Path, make_frames: MakeFrames) -> None:
    encoder = encoder_of(tiny, segment_cells=2, compute_dtype=dtype)
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    tokens = encoder.encode(make_frames(1, 56, 84)).tokens
    assert encoder.dtype == tokens.dtype == expected
    assert {weight.dtype for weight in encoder._tower.parameters()} == {expected}
    assert not tokens.requires_grad


def test_attributes_say_what_the_checkpoint_is(tiny: Path) -> None:
    encoder = encoder_of(tiny, segment_cells=3)
    assert (encoder.family, encoder.dim, encoder.deepstack_layers) == ("qwen2_5_vl", 64, 0)
    assert (encoder.default_temperature, encoder.default_window) == (0.5, None)
    assert encoder.device == torch.device("cpu")


def test_values_that_are_not_finite_are_an_error(
    edited: Callable[..., Path], make_frames: MakeFrames
) -> None:
    def break_one(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["model.visual.merger.mlp.2.bias"][3] = float("nan")
        return weights

    encoder = encoder_of(edited(break_one), segment_cells=2)
    with pytest.raises(
        ModelError, match=r"12 of 768 values of cells 7 to 8 are not finite .* --compute-dtype"
    ):
        encoder.encode(make_frames(2, 56, 84, first_cell=7))


def test_refuses_frames_of_another_layout(tiny: Path, make_frames: MakeFrames) -> None:
    encoder = encoder_of(tiny, segment_cells=2)
    with pytest.raises(ValueError, match="whole tokens"):
        encoder.encode(make_frames(1, 60, 84))
    frames = make_frames(1, 56, 84)
    with pytest.raises(ValueError, match="cells of 1 frames, expected 2"):
        encoder.encode(Frames(frames.pixels, first_cell=0, cell_frames=1, decoder="pyav"))
