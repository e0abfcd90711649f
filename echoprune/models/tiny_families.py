"""What a tiny checkpoint of each family consists of: sizes, special tokens, chat template, preprocessors, weight names.

Sizes are chosen so that what binds in a real model binds here: windows, several deepstack maps, the true 27 x 27
patches of LLaVA-OneVision. Loads no model library until a configuration is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Symbols of a byte-level tokenizer, before its special tokens.
BYTES = 256

_TEXT_HEADS = 4
_CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_TOKENS = (
    *_CHAT,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAVA_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ '\n' + message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>\n{% elif part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyFamily:
    """The recipe of one family's checkpoint.

    `config(dim, ids)`: the library's configuration for tokens of width `dim`, given the ids of the special tokens.
    `layouts`: what vision weights are called on disk -> today's name to the name on disk, the library's own first.
    `preprocessors`: file name -> its content. `attention`: what an attention block of the tower adds to a token is
    scaled by this. Where every block sees the whole cell it must be small: a random tower otherwise smears a frame
    into one vector, with cosines of 0.93 between places instead of 0.7, and 0.9 instead of 0.6 to 0.8 for what moved.
    """

    model_class: str
    special_tokens: tuple[str, ...]
    chat_template: str
    config: Callable[[int, dict[str, int]], Any]
    layouts: dict[str, Callable[[str], str]]
    preprocessors: dict[str, dict[str, Any]]
    attention: float = 1.0


def _text(dim: int, ids: dict[str, int], *, layers: int = 2) -> dict[str, Any]:
    return {
        "vocab_size": BYTES + len(ids),
        "hidden_size": dim,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": _TEXT_HEADS,
        "num_key_value_heads": 2,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }


def _qwen_ids(ids: dict[str, int]) -> dict[str, int]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def _qwen2_5_vl_config(dim: int, ids: dict[str, int]) -> Any:
    from transformers import Qwen2_5_VLConfig  # noqa: PLC0415 - listing the families must not load a model library

    rotary = dim // _TEXT_HEADS // 2
    time = rotary // 4
    rope = {
        "rope_type": "default",
        "rope_theta": 1000000.0,
        "mrope_section": [time, (rotary - time) // 2, (rotary - time + 1) // 2],
    }
    return Qwen2_5_VLConfig(
        text_config=_text(dim, ids) | {"rope_parameters": rope},
        # Windows of 2 x 2 tokens, so that they bind in all but the tiniest frames; every second layer sees the cell.
        vision_config={
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "window_size": 56,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": dim,
        },
        **_qwen_ids(ids),
    )


def _qwen3_vl_config(dim: int, ids: dict[str, int]) -> Any:
    from transformers import Qwen3VLConfig  # noqa: PLC0415

    # Rotary pairs go to time, height and width in turn, five sixteenths to each of the last two, as published.
    rotary = dim // _TEXT_HEADS // 2
    side = rotary * 5 // 16
    rope = {
        "rope_type": "default",
        "rope_theta": 5000000.0,
        "mrope_section": [rotary - 2 * side, side, side],
        "mrope_interleaved": True,
    }
    return Qwen3VLConfig(
        text_config=_text(dim, ids, layers=4) | {"head_dim": dim // _TEXT_HEADS, "rope_parameters": rope},
        # Three deepstack maps, as published; a learned grid of 8 x 8 positions, so that most frames interpolate it.
        vision_config={
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
            "out_hidden_size": dim,
        },
        **_qwen_ids(ids),
    )


def _llava_onevision_config(dim: int, ids: dict[str, int]) -> Any:
    from transformers import LlavaOnevisionConfig  # noqa: PLC0415

    return LlavaOnevisionConfig(
        text_config=_text(dim, ids) | {"model_type": "qwen2"},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=[[384, 384], [384, 768], [768, 384]],
    )


def _qwen2_5_published(name: str) -> str:
    """Names as in the files of 2025: the language model at the root."""
    return name.replace("model.visual.", "visual.", 1).replace("model.language_model.", "model.", 1)


def _base_model(name: str) -> str:
    """Names as written by the class without a head."""
    return name.removeprefix("model.")


def _llava_published(name: str) -> str:
    """Names as in the files of 2024: four parts side by side, each with the prefixes of its own class."""
    for today, published in (
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.", ""),
    ):
        if name.startswith(today):
            return published + name.removeprefix(today)
    return name


def _preprocessors(
    kind: str, shared: dict[str, Any], image: dict[str, Any], video: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    steps = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
    }
    return {
        "preprocessor_config.json": {
            **steps,
            **shared,
            "image_processor_type": f"{kind}ImageProcessor",
            **image,
        },
        "video_preprocessor_config.json": {
            **steps,
            **shared,
            "video_processor_type": f"{kind}VideoProcessor",
            **video,
        },
    }


FAMILIES = {
    "qwen2_5_vl": TinyFamily(
        model_class="Qwen2_5_VLForConditionalGeneration",
        special_tokens=_QWEN_TOKENS,
        chat_template=_QWEN_TEMPLATE,
        config=_qwen2_5_vl_config,
        layouts={"model.visual": str, "visual": _qwen2_5_published},
        # Each file in the spelling of bounds that is usual in it, so that readers meet both.
        preprocessors=_preprocessors(
            "Qwen2VL",
            {
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
            },
            {"min_pixels": 4 * 28 * 28, "max_pixels": 16384 * 28 * 28},
            {"size": {"shortest_edge": 4 * 28 * 28, "longest_edge": 768 * 28 * 28}},
        ),
    ),
    "qwen3_vl": TinyFamily(
        model_class="Qwen3VLForConditionalGeneration",
        special_tokens=_QWEN_TOKENS,
        chat_template=_QWEN_TEMPLATE,
        config=_qwen3_vl_config,
        layouts={"model.visual": str, "visual": _base_model},
        preprocessors=_preprocessors(
            "Qwen3VL",
            {
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
                "patch_size": 16,
                "temporal_patch_size": 2,
                "merge_size": 2,
            },
            {
                "size": {"shortest_edge": 64 * 32 * 32, "longest_edge": 16384 * 32 * 32},
                "image_processor_type": "Qwen2VLImageProcessorFast",
            },
            {"size": {"shortest_edge": 4 * 32 * 32, "longest_edge": 24576 * 32 * 32}},
        ),
        attention=0.25,
    ),
    "llava_onevision": TinyFamily(
        model_class="LlavaOnevisionForConditionalGeneration",
        special_tokens=(*_CHAT, "<image>", "<video>"),
        chat_template=_LLAVA_TEMPLATE,
        config=_llava_onevision_config,
        layouts={"model.vision_tower": str, "vision_tower": _llava_published},
        preprocessors=_preprocessors(
            "LlavaOnevision",
            {
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
                "size": {"height": 384, "width": 384},
                "do_pad": True,
            },
            {"image_grid_pinpoints": [[384, 384], [384, 768], [768, 384]]},
            {"do_sample_frames": False},
        ),
        attention=0.25,
    ),
}
