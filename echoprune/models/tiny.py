"""Tiny random checkpoints of the real model classes, for tests and for trying the commands without a download.

A checkpoint has what the published ones have: configuration, safetensors weights, tokenizer with chat template,
preprocessor and generation settings. It answers nonsense, but its visual tokens are those of a real tower: equal
pictures give equal tokens and different pictures different ones. Nothing here is trained.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from echoprune.errors import ConfigError

if TYPE_CHECKING:
    import torch

LAYOUTS = ("model.visual", "visual")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

# Byte-level tokenizers have one symbol per byte; these follow them in the vocabulary, in this order.
_BYTES = 256
_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT_HEADS = 4


def write_tiny_checkpoint(
    family: str,
    out_dir: Path | str,
    *,
    seed: int = 0,
    dim: int = 64,
    layout: str = "model.visual",
    dtype: str = "fp32",
) -> Path:
    """The folder `out_dir`, now holding a random checkpoint of `family`; weights are byte-equal for equal arguments.

    `dim`: width D of the tokens, a multiple of 16 (64 gives 0.4 M parameters; the language model grows with D^2).
    `layout`: what the vision weights are called on disk, "model.visual" or, as published in 2025, "visual".
    `dtype`: fp32 | bf16 | fp16. Existing files of the same names are replaced. Raises ConfigError.
    """
    if family not in FAMILIES:
        raise ConfigError(f"family {family!r} is not known: use {', '.join(sorted(FAMILIES))}")
    if layout not in LAYOUTS:
        raise ConfigError(f"layout {layout!r} is not known: use {' or '.join(LAYOUTS)}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not accepted: use {', '.join(DTYPES)}")
    if dim < 16 or dim % 16:
        raise ConfigError(f"token width {dim} is not accepted: give a multiple of 16, such as 64 or 3584")
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(
            f"{folder} cannot be made a folder: {error.strerror}; choose another --out"
        ) from error
    FAMILIES[family](folder, seed=seed, dim=dim, layout=layout, dtype=dtype)
    return folder


def _write_qwen2_5_vl(folder: Path, *, seed: int, dim: int, layout: str, dtype: str) -> None:
    import torch  # noqa: PLC0415 - listing the families must not load a model library
    from safetensors.torch import save_file  # noqa: PLC0415
    from transformers import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration  # noqa: PLC0415

    ids = {token: _BYTES + index for index, token in enumerate(_SPECIAL_TOKENS)}
    rotary = dim // _TEXT_HEADS // 2
    time = rotary // 4
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": _BYTES + len(_SPECIAL_TOKENS),
            "hidden_size": dim,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": _TEXT_HEADS,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000000.0,
                "mrope_section": [time, (rotary - time) // 2, (rotary - time + 1) // 2],
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
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
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.dtype = DTYPES[dtype]
    # Shapes alone: the class's own random start would be slow at large D and would move the caller's generator.
    with torch.device("meta"):
        shapes = {
            name: tensor.shape
            for name, tensor in Qwen2_5_VLForConditionalGeneration(config).state_dict().items()
        }
    generator = torch.Generator().manual_seed(seed)
    weights = {name: _random_weight(name, shapes[name], generator) for name in sorted(shapes)}
    save_file(
        {
            _stored_name(name, layout): tensor.to(getattr(torch, DTYPES[dtype]))
            for name, tensor in weights.items()
        },
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
        do_sample=False,
    ).save_pretrained(folder)
    _write_tokenizer(folder)
    _write_qwen2_5_vl_preprocessors(folder)


def _random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """float32 of `shape`: norms 1, vision biases 0, the rest normal with a spread that keeps signals of size about 1."""
    import torch  # noqa: PLC0415

    if "norm" in name or "ln_q" in name:
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    # By fan-in, so that attention moves a token but what it shows stays the larger part: in a test scene cosines are
    # 0.99 for a still token under noise of 2 grey levels, 0.3 to 0.8 for a changed one, 0.24 between places.
    vocabulary = "embed_tokens" in name or "lm_head" in name
    spread = 0.02 if vocabulary else 1 / math.sqrt(math.prod(shape[1:]))
    return torch.randn(shape, generator=generator) * spread


def _stored_name(name: str, layout: str) -> str:
    if layout == "model.visual":
        return name
    return name.replace("model.visual.", "visual.", 1).replace("model.language_model.", "model.", 1)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def _write_qwen2_5_vl_preprocessors(folder: Path) -> None:
    """The two files, each in the spelling of bounds that is usual in it, so that readers meet both."""
    shared: dict[str, Any] = {
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    low, high = 4 * 28 * 28, 16384 * 28 * 28
    image = {"min_pixels": low, "max_pixels": high, "image_processor_type": "Qwen2VLImageProcessor"}
    video = {
        "size": {"shortest_edge": low, "longest_edge": 768 * 28 * 28},
        "video_processor_type": "Qwen2VLVideoProcessor",
    }
    for name, own in (("preprocessor_config.json", image), ("video_preprocessor_config.json", video)):
        (folder / name).write_text(
            json.dumps({**shared, **own}, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


FAMILIES: dict[str, Callable[..., None]] = {"qwen2_5_vl": _write_qwen2_5_vl}
