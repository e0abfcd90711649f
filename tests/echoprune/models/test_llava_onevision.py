from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionForConditionalGeneration

from echoprune.data import Frames
from echoprune.errors import ConfigError, ModelError
from echoprune.models import fingerprint, frame_layout, load_encoder, model_settings
from echoprune.models.encoder import SquareLayout
from echoprune.models.llava_onevision import normalised
from echoprune.models.tiny import write_tiny_checkpoint

MakeFrames = Callable[..., Frames]


@pytest.fixture
def copied(tiny_of: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_of("llava_onevision"), tmp_path / "copied"))


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stored_layout", ["model.vision_tower", "vision_tower"])
def test_tokens_are_those_of_the_full_model_without_the_newline(
    dtype: str, stored_layout: str, tmp_path: Path, make_frames: MakeFrames
) -> None:
    folder = write_tiny_checkpoint("llava_onevision", tmp_path / "model", layout=stored_layout, dtype=dtype)
    frames = make_frames(3, 384, 384, cell_frames=1)
    full, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    values = (frames.pixels.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
    with torch.no_grad():
        output = full.model.get_video_features(
            torch.from_numpy(values.transpose(0, 3, 1, 2).copy())[None]
        ).pooler_output
    assert output.shape == (1, 3 * 196 + 1, 64)
    assert torch.equal(output[0, -1], full.model.image_newline)
    encoder = load_encoder(str(folder), segment_cells=3, device="cpu", compute_dtype=dtype)
    grid = encoder.encode(frames)
    assert grid.tokens.shape == (3, 14, 14, 64) and grid.tokens.dtype == encoder.dtype == full.dtype
    assert grid.deepstack is None
    assert torch.equal(grid.tokens.reshape(-1, 64), output[0, :-1])


@pytest.mark.parametrize("layers", [-2, [1, -1]])
def test_other_feature_layers(layers: int | list[int], copied: Path, make_frames: MakeFrames) -> None:
    """Configurations may project another layer, or several side by side: those of the library's own call."""
    weights = LlavaOnevisionForConditionalGeneration.from_pretrained(copied)
    weights.config.vision_feature_layer = layers
    model = LlavaOnevisionForConditionalGeneration(weights.config)
    model.save_pretrained(copied)
    frames = make_frames(2, 384, 384, cell_frames=1)
    layout = frame_layout(str(copied), max_pixels=None)
    with torch.no_grad():
        expected = (
            model.eval()
            .model.get_video_features(normalised(torch.from_numpy(frames.pixels.copy()), layout)[None])
            .pooler_output[0, :-1]
        )
    tokens = load_encoder(str(copied), segment_cells=2, device="cpu").encode(frames).tokens
    assert torch.equal(tokens.reshape(-1, 64), expected)


def test_values_are_normalised_by_channel(tiny_of: Callable[[str], Path], make_frames: MakeFrames) -> None:
    layout = SquareLayout("llava_onevision", 28, 1, "bicubic", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    pixels = make_frames(2, 28, 28, cell_frames=1).pixels
    got = normalised(torch.from_numpy(pixels.copy()), layout)
    assert got.shape == (2, 3, 28, 28) and got.dtype == torch.float32
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 0.125)]):
        expected = (pixels[..., channel] / 255 - mean) / std
        np.testing.assert_allclose(got[:, channel].numpy(), expected, atol=1e-6)


def test_settings_come_from_configuration_alone(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    settings = model_settings(str(copied))
    assert (settings.family, settings.dim, settings.dtype) == ("llava_onevision", 64, "fp32")
    assert (settings.deepstack_layers, settings.default_temperature, settings.default_window) == (0, 0.1, 3)
    half = (0.5, 0.5, 0.5)
    assert settings.layout == SquareLayout("llava_onevision", 384, 14, "bicubic", half, half)
    # 729 patches of 3 blocks, 588 inputs and the projector make 196 tokens.
    block, projector = 4 * 64**2 + 2 * 64 * 128, 2 * 64 * 64
    assert settings.token_flops == pytest.approx(2 * 729 * (3 * block + 588 * 64 + projector) / 196)


def test_a_cap_below_the_one_size_is_refused(copied: Path) -> None:
    assert frame_layout(str(copied), max_pixels=384 * 384).frame_hw(1080, 1920) == (384, 384)
    assert frame_layout(str(copied), max_pixels=200_704) == frame_layout(str(copied), max_pixels=None)
    with pytest.raises(ConfigError, match=r"max pixels 147455 cannot be met.*384x384.*at least 147456"):
        frame_layout(str(copied), max_pixels=384 * 384 - 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"height": 336, "width": 384}}, "disagrees with itself: size"),
        ({"size": {"shortest_edge": 384}}, "disagrees with itself: size"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"do_rescale": False}, "do_rescale"),
        ({"resample": 1}, "resample 1"),
    ],
)
def test_preprocessors_that_would_change_the_pixels(
    changes: dict[str, object], message: str, copied: Path
) -> None:
    rewrite(copied / "video_preprocessor_config.json", **changes)
    with pytest.raises(ModelError, match=message) as caught:
        frame_layout(str(copied), max_pixels=None)
    assert "\n" not in str(caught.value)


def test_towers_that_are_none_of_the_family(copied: Path) -> None:
    rewrite(copied / "config.json", vision_feature_select_strategy="default")
    with pytest.raises(ModelError, match="feature selection 'default'; accepted is a siglip_vision_model"):
        load_encoder(str(copied), segment_cells=1)


def test_one_fingerprint_for_both_layouts(copied: Path, tmp_path: Path) -> None:
    expected = fingerprint(str(copied))
    other = write_tiny_checkpoint("llava_onevision", tmp_path / "published", layout="vision_tower")
    assert fingerprint(str(other)) == expected
    rewrite(other / "video_preprocessor_config.json", image_mean=[0.4, 0.5, 0.5])
    rewrite(copied / "config.json", projector_hidden_act="relu")
    assert len({expected, fingerprint(str(other)), fingerprint(str(copied))}) == 3


def test_the_newline_is_no_part_of_the_fingerprint(
    tiny_of: Callable[[str], Path], edited: Callable[..., Path]
) -> None:
    folder = tiny_of("llava_onevision")
    changed = edited(lambda weights: weights | {"model.image_newline": torch.ones(64)}, folder)
    assert fingerprint(str(changed)) == fingerprint(str(folder))
