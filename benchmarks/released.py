"""Models of the released shapes with random weights, made on the device that they run on: no file, no float32 copy.

Sizes are those of the published config.json files of Qwen2.5-VL-7B, Qwen3-VL-8B and LLaVA-OneVision-7B; `tiny` keeps the
structure and shrinks the rest, to try a benchmark on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from echoprune.models.encoder import FrameLayout, PatchLayout, SquareLayout
from echoprune.models.tiny import write_tiny_checkpoint

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision")
_HALF = (0.5, 0.5, 0.5)


# What --tiny makes of either Qwen, so that a benchmark runs on a CPU.
_TINY_TEXT = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 2048,
}  # fmt: skip
_TINY_VISION = {"hidden_size": 64, "intermediate_size": 100, "num_heads": 2, "out_hidden_size": 256}


def layout(family: str) -> FrameLayout:
    """How the family's published preprocessor cuts frames."""
    if family == "llava_onevision":
        return SquareLayout(family, 384, 14, "bicubic", _HALF, _HALF)
    patch = 14 if family == "qwen2_5_vl" else 16
    return PatchLayout(family, patch, 2, 2, 4 * patch**2, 10**8, "bicubic", _HALF, _HALF)


def config(family: str, *, tiny: bool = False) -> Any:
    """The library's configuration of the whole model."""
    import transformers  # noqa: PLC0415 - seconds that --help need not pay

    text: dict[str, Any]
    if family == "qwen2_5_vl":
        text = {
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 128000, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        }  # fmt: skip
        vision = {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
            "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        }  # fmt: skip
        if tiny:
            text |= _TINY_TEXT | {"num_hidden_layers": 2}
            vision |= _TINY_VISION | {"depth": 2, "fullatt_block_indexes": [1]}
        ids = {"video_token_id": text["vocab_size"] - 1, "image_token_id": text["vocab_size"] - 2}
        return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    if family == "qwen3_vl":
        text = {
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True,
            },
        }  # fmt: skip
        vision = {
            "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
        }  # fmt: skip
        if tiny:
            text |= _TINY_TEXT | {"num_hidden_layers": 4}
            vision |= _TINY_VISION | {"depth": 4, "deepstack_visual_indexes": [0, 1, 2]}
        ids = {"video_token_id": text["vocab_size"] - 1, "image_token_id": text["vocab_size"] - 2}
        return transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    text = {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152000, "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
        "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    if tiny:
        text |= {
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
        text |= {"num_key_value_heads": 1, "vocab_size": 2048}
        vision |= {
            "hidden_size": 64,
            "intermediate_size": 100,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
    ids = {"video_token_index": text["vocab_size"] - 1, "image_token_index": text["vocab_size"] - 2}
    return transformers.LlavaOnevisionConfig(text_config=text, vision_config=vision, **ids)


def random_tower(family: str, *, device: torch.device, dtype: torch.dtype, tiny: bool = False) -> Any:
    """The vision tower (Qwen), or a ModuleDict of `tower` and `projector` (LLaVA-OneVision)."""
    import transformers  # noqa: PLC0415

    whole = config(family, tiny=tiny)
    with _made_on(device, dtype):
        if family == "llava_onevision":
            from transformers.models.llava_onevision.modeling_llava_onevision import (  # noqa: PLC0415
                LlavaOnevisionMultiModalProjector,
            )

            tower: Any = torch.nn.ModuleDict(
                {
                    "tower": transformers.SiglipVisionModel._from_config(whole.vision_config, dtype=dtype),
                    "projector": LlavaOnevisionMultiModalProjector(whole),
                }
            )
        elif family == "qwen3_vl":
            tower = transformers.Qwen3VLVisionModel._from_config(whole.vision_config, dtype=dtype)
        else:
            from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (  # noqa: PLC0415
                Qwen2_5_VisionTransformerPretrainedModel,
            )

            tower = Qwen2_5_VisionTransformerPretrainedModel._from_config(whole.vision_config, dtype=dtype)
    return _randomised(tower)


def random_model(family: str, *, device: torch.device, dtype: torch.dtype, tiny: bool = False) -> Any:
    """The whole model, as the library's class."""
    import transformers  # noqa: PLC0415

    name = {
        "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
        "qwen3_vl": "Qwen3VLForConditionalGeneration",
        "llava_onevision": "LlavaOnevisionForConditionalGeneration",
    }[family]
    with _made_on(device, dtype):
        model = getattr(transformers, name)._from_config(config(family, tiny=tiny), dtype=dtype)
    model.generation_config.eos_token_id = [0]
    model.generation_config.pad_token_id = 0
    return _randomised(model)


def write_checkpoint(
    folder: Path, *, device: torch.device, dtype: torch.dtype = torch.bfloat16, text_layers: int | None = None
) -> Path:
    """`folder` with a random Qwen2.5-VL-7B, made on `device`: 16 GB, or with few `text_layers` and words its tower alone.

    Tokenizer, chat template and preprocessors are those of the tiny checkpoint of the family, whose ids it has.
    """
    import transformers  # noqa: PLC0415

    write_tiny_checkpoint("qwen2_5_vl", folder, dim=64)
    ids = transformers.Qwen2_5_VLConfig.from_pretrained(folder)
    whole = config("qwen2_5_vl")
    for name in ("video_token_id", "image_token_id", "vision_start_token_id", "vision_end_token_id"):
        setattr(whole, name, getattr(ids, name))
    if text_layers is not None:
        whole.text_config.num_hidden_layers = text_layers
        whole.text_config.layer_types = ["full_attention"] * text_layers
        whole.text_config.vocab_size = 1024
    generation = transformers.GenerationConfig.from_pretrained(folder)
    with _made_on(device, dtype):
        model = transformers.Qwen2_5_VLForConditionalGeneration._from_config(whole, dtype=dtype)
    model = _randomised(model)
    model.generation_config = generation
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="4GB")
    return folder


@contextmanager
def _made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def _randomised(model: Any) -> Any:
    """`model` with norms about 1 and everything else about 0, biases too, which would be 0 and hide mistakes."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim == 1 and not name.endswith("bias"):
            weight.normal_(1.0, 0.1, generator=generator)
        else:
            weight.normal_(0.0, 0.02, generator=generator)
    return model.eval().requires_grad_(False)
