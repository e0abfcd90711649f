from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from echoprune.data import Frames
from echoprune.errors import ConfigError
from echoprune.models import load_encoder, model_settings
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.models.tiny_families import FAMILIES


def whole_class(family: str) -> Any:
    return getattr(transformers, FAMILIES[family].model_class)


def test_weights_are_byte_equal_by_seed_and_leave_the_generator_alone(tiny: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    again = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "again")
    assert torch.equal(state, torch.random.get_rng_state())
    for file in sorted(path.name for path in tiny.iterdir()):
        assert (tiny / file).read_bytes() == (again / file).read_bytes(), file
    other = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "other", seed=1)
    assert (tiny / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("layout", ["model.visual", "visual"])
def test_the_library_loads_the_whole_model(layout: str, tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model", layout=layout, dtype="bf16")
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16
    assert 200_000 < sum(weight.numel() for weight in model.parameters()) < 600_000
    sections = model.config.text_config.rope_parameters["mrope_section"]
    assert sum(sections) == 64 // 4 // 2
    assert model_settings(str(folder)).dtype == "bf16"


def test_tokenizer_round_trips_text_and_marks_a_video(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    text = "Wer läuft? 走る 🏃 <b>\n\t2×3"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode()) and max(ids) < 256
    assert tokenizer.decode(ids) == text
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What moves?"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert prompt == (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What moves?<|im_end|>\n<|im_start|>assistant\n"
    )
    config = Qwen2_5_VLForConditionalGeneration.config_class.from_pretrained(tiny)
    marked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert marked.count(config.video_token_id) == 1
    assert marked.count(config.vision_start_token_id) == marked.count(config.vision_end_token_id) == 1


def test_generates_from_text(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny)
    batch = tokenizer("Hello", return_tensors="pt")
    out = model.generate(**batch, max_new_tokens=3, suppress_tokens=list(range(256, 264)))
    assert out.shape[1] <= batch["input_ids"].shape[1] + 3


@pytest.mark.parametrize(
    ("family", "hw", "grid_hw", "moved_most", "apart_mean"),
    [
        ("llava_onevision", (384, 384), (14, 14), 0.93, 0.8),
        ("qwen2_5_vl", (224, 308), (8, 11), 0.8, 0.5),
        ("qwen3_vl", (256, 352), (8, 11), 0.9, 0.75),
    ],
)
def test_tokens_tell_moved_from_still(
    family: str,
    hw: tuple[int, int],
    grid_hw: tuple[int, int],
    moved_most: float,
    apart_mean: float,
    tiny_of: Callable[[str], Path],
) -> None:
    """A square that jumps over a still, faintly noisy scene: what stays is an echo, what changes is not."""
    rng = np.random.default_rng(3)
    height, width = hw
    y, x = np.mgrid[:height, :width]
    scene = np.stack(
        [120 + 60 * np.sin(x / 23 + y / 31), 110 + 50 * np.cos(x / 41 - y / 17), 90 + 0 * x], axis=-1
    )
    encoder = load_encoder(str(tiny_of(family)), segment_cells=2)
    each = encoder.layout.cell_frames
    rows, columns = grid_hw
    pictures = []
    for column in np.repeat([1, 7], each):
        picture = scene + rng.normal(0, 2, scene.shape)
        across = slice(column * width // columns, (column + 2) * width // columns)
        picture[3 * height // rows : 5 * height // rows, across] = (220, 40, 40)
        pictures.append(np.clip(picture, 0, 255).astype(np.uint8))
    frames = Frames(np.stack(pictures), first_cell=0, cell_frames=each, decoder="pyav")
    tokens = encoder.encode(frames).tokens
    assert tokens.shape == (2, *grid_hw, 64)
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    cosine = (unit[0] * unit[1]).sum(-1)
    moved = torch.zeros(grid_hw, dtype=torch.bool)
    moved[3:5, 1:3] = moved[3:5, 7:9] = True
    assert cosine[~moved].median() > 0.98
    assert cosine[moved].max() < moved_most
    assert cosine[moved].mean() < 0.8
    # Below the square: places that share no window with it.
    assert cosine[6:, 4:6].min() > 0.9
    apart = unit[0].reshape(-1, 64) @ unit[0].reshape(-1, 64).T
    assert apart[~torch.eye(rows * columns, dtype=torch.bool)].mean() < apart_mean


def test_wide_tokens(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "wide", dim=272, dtype="fp16")
    settings = model_settings(str(folder))
    assert (settings.dim, settings.dtype) == (272, "fp16")
    Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize(
    ("family", "options", "cure"),
    [
        ("llava", {}, "use llava_onevision, qwen2_5_vl, qwen3_vl"),
        ("qwen2_5_vl", {"layout": "vision_tower"}, "model.visual or visual"),
        ("llava_onevision", {"layout": "visual"}, "model.vision_tower or vision_tower"),
        ("qwen2_5_vl", {"dtype": "int8"}, "fp32, bf16, fp16"),
        ("qwen2_5_vl", {"dim": 100}, "multiple of 16"),
    ],
)
def test_refuses_what_it_cannot_write(
    family: str, options: dict[str, object], cure: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=cure):
        write_tiny_checkpoint(family, tmp_path / "none", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()


def test_refuses_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="choose another"):
        write_tiny_checkpoint("qwen2_5_vl", tmp_path / "taken")


@pytest.mark.parametrize(
    ("family", "prompt", "marker"),
    [
        (
            "llava_onevision",
            "<|im_start|>user <video>\n\nWhat moves?<|im_end|><|im_start|>assistant\n",
            "<video>",
        ),
        (
            "qwen3_vl",
            "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What moves?<|im_end|>\n"
            "<|im_start|>assistant\n",
            "<|video_pad|>",
        ),
    ],
)
def test_chat_template_and_generation_of_the_other_families(
    family: str, prompt: str, marker: str, tiny_of: Callable[[str], Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_of(family))
    parts = [{"type": "video"}, {"type": "text", "text": "What moves?"}]
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    assert shown == prompt
    model = whole_class(family).from_pretrained(tiny_of(family))
    marked = tokenizer(shown, add_special_tokens=False)["input_ids"]
    assert marked.count(model.config.video_token_id) == 1
    assert tokenizer.convert_tokens_to_ids(marker) == model.config.video_token_id
    batch = tokenizer("Hello", return_tensors="pt")
    out = model.generate(**batch, max_new_tokens=3, suppress_tokens=list(range(256, len(tokenizer))))
    assert batch["input_ids"].shape[1] < out.shape[1] <= batch["input_ids"].shape[1] + 3


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_width_of_every_family_loads(family: str, tmp_path: Path) -> None:
    for dim in (16, 48, 272):
        folder = write_tiny_checkpoint(family, tmp_path / str(dim), dim=dim)
        assert load_encoder(str(folder), segment_cells=1).dim == dim
        whole_class(family).from_pretrained(folder)
