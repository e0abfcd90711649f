from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from echoprune.data import Frames
from echoprune.errors import ConfigError
from echoprune.models import load_encoder, model_settings
from echoprune.models.tiny import write_tiny_checkpoint


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


def test_tokens_tell_moved_from_still(tiny: Path) -> None:
    """A square that jumps over a still, faintly noisy scene: what stays is an echo, what changes is not."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:224, :308]
    scene = np.stack(
        [120 + 60 * np.sin(x / 23 + y / 31), 110 + 50 * np.cos(x / 41 - y / 17), 90 + 0 * x], axis=-1
    )
    pictures = []
    for left in (28, 28, 196, 196):
        picture = scene + rng.normal(0, 2, scene.shape)
        picture[84:140, left : left + 56] = (220, 40, 40)
        pictures.append(np.clip(picture, 0, 255).astype(np.uint8))
    frames = Frames(np.stack(pictures), first_cell=0, cell_frames=2, decoder="pyav")
    tokens = load_encoder(str(tiny), segment_cells=2).encode(frames).tokens
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    cosine = (unit[0] * unit[1]).sum(-1)
    moved = torch.zeros(8, 11, dtype=torch.bool)
    moved[3:5, 1:3] = moved[3:5, 7:9] = True
    assert cosine[:, ~moved.any(0)].median() > 0.95
    assert cosine[moved].max() < 0.8
    # Far corners, which share no window with the square.
    assert cosine[6:, 4:6].min() > 0.9
    apart = unit[0].reshape(-1, 64) @ unit[0].reshape(-1, 64).T
    assert apart[~torch.eye(88, dtype=torch.bool)].mean() < 0.5


def test_wide_tokens(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "wide", dim=272, dtype="fp16")
    settings = model_settings(str(folder))
    assert (settings.dim, settings.dtype) == (272, "fp16")
    Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)


@pytest.mark.parametrize(
    ("family", "options", "cure"),
    [
        ("qwen3_vl", {}, "use qwen2_5_vl"),
        ("qwen2_5_vl", {"layout": "vision_tower"}, "model.visual or visual"),
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
