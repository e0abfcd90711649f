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
from typing import TYPE_CHECKING

from echoprune.errors import ConfigError
from echoprune.models.tiny_families import BYTES, FAMILIES, TinyFamily

if TYPE_CHECKING:
    import torch

# What the families' vision towers call the last weight of an attention block.
_ATTENTION_OUTPUTS = ("attn.proj.weight", "out_proj.weight")
# The widest of published models; its language model takes 1.6 GB here.
MAX_DIM = 8192
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def write_tiny_checkpoint(
    family: str,
    out_dir: Path | str,
    *,
    seed: int = 0,
    dim: int = 64,
    layout: str | None = None,
    dtype: str = "fp32",
) -> Path:
    """The folder `out_dir`, now holding a random checkpoint of `family`; weights are byte-equal for equal arguments.

    `dim`: width D of the tokens, a multiple of 16 up to 8192 (64 gives 0.4 M parameters; the language model grows with D^2).
    `layout`: what the vision weights are called on disk: "model.visual" or "visual" for the Qwen families,
    "model.vision_tower" or "vision_tower" for LLaVA-OneVision; None for the first of them, the library's own.
    `dtype`: fp32 | bf16 | fp16. Existing files of the same names are replaced. Raises ConfigError.
    """
    if family not in FAMILIES:
        raise ConfigError(f"family {family!r} is not known: use {', '.join(sorted(FAMILIES))}")
    recipe = FAMILIES[family]
    if layout is not None and layout not in recipe.layouts:
        raise ConfigError(f"layout {layout!r} is not known: use {' or '.join(recipe.layouts)}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not accepted: use {', '.join(DTYPES)}")
    if not 16 <= dim <= MAX_DIM or dim % 16:
        raise ConfigError(
            f"token width {dim} is not accepted: give a multiple of 16 up to {MAX_DIM}, such as 64"
        )
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(
            f"{folder} cannot be made a folder: {error.strerror}; choose another --out"
        ) from error
    stored_name = recipe.layouts[layout or next(iter(recipe.layouts))]
    _write(folder, recipe, seed=seed, dim=dim, stored_name=stored_name, dtype=DTYPES[dtype])
    return folder


def _write(
    folder: Path, recipe: TinyFamily, *, seed: int, dim: int, stored_name: Callable[[str], str], dtype: str
) -> None:
    import torch  # noqa: PLC0415 - listing the families must not load a model library
    import transformers  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    # Byte-level tokenizers have one symbol per byte; special tokens follow them in the vocabulary.
    ids = {token: BYTES + index for index, token in enumerate(recipe.special_tokens)}
    config = recipe.config(dim, ids)
    config.architectures = [recipe.model_class]
    config.dtype = dtype
    # Shapes alone: the class's own random start would be slow at large D and would move the caller's generator.
    with torch.device("meta"):
        model = getattr(transformers, recipe.model_class)(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    weights = {name: _random_weight(name, shapes[name], generator) for name in sorted(shapes)}
    for name, tensor in weights.items():
        if recipe.attention != 1.0 and name.endswith(_ATTENTION_OUTPUTS) and "language_model" not in name:
            tensor.mul_(recipe.attention)
    save_file(
        {stored_name(name): tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config.save_pretrained(folder)
    transformers.GenerationConfig(
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
        pad_token_id=ids["<|endoftext|>"],
        do_sample=False,
    ).save_pretrained(folder)
    _write_tokenizer(folder, recipe)
    for name, settings in recipe.preprocessors.items():
        (folder / name).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """float32 of `shape`: norms 1, vision biases 0, the rest normal with a spread that keeps signals of size about 1."""
    import torch  # noqa: PLC0415

    if name.endswith("bias"):
        return torch.zeros(shape)
    if "norm" in name or "ln_q" in name:
        return torch.ones(shape)
    # By fan-in, so that attention moves a token but what it shows stays the larger part: in a test scene cosines are
    # 0.99 for a still token under noise of 2 grey levels, 0.3 to 0.8 for a changed one, 0.24 between places.
    vocabulary = "embed_tokens" in name or "lm_head" in name
    spread = 0.02 if vocabulary else 1 / math.sqrt(math.prod(shape[1:]))
    return torch.randn(shape, generator=generator) * spread


def _write_tokenizer(folder: Path, recipe: TinyFamily) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in recipe.special_tokens]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        chat_template=recipe.chat_template,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
