"""Random prompts of given sizes for the benchmarks of language models, and what their prefill has to compute."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.measure import Product
from echoprune.fast.language import LanguageModel
from echoprune.models.prompt import Prompt

TEXT_TOKENS = 32


def random_prompt(
    model: Any, language: LanguageModel, visual: int, *, text: int = TEXT_TOKENS, seed: int = 0
) -> Prompt:
    """`visual` tokens, then `text` ids, at consecutive positions; on the model's device but for ids and positions."""
    generator = torch.Generator(language.device).manual_seed(seed)
    dim = language.embedding.shape[1]
    words = torch.randint(1, 1000, (text,), generator=torch.Generator().manual_seed(seed))
    closing = 0 if language.newline is None else 1
    ids = torch.cat([torch.full((visual,), language.placeholder), words])
    axes = 3 if hasattr(model.model.language_model.rotary_emb, "mrope_section") else 1
    maps = len(getattr(model.config.vision_config, "deepstack_visual_indexes", None) or ())

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=language.device, dtype=language.dtype)

    return Prompt(
        ids,
        torch.arange(len(ids)).expand(axes, -1),
        tokens(visual - closing, dim),
        tokens(maps, visual, dim) if maps else None,
        0,
    )


def library_inputs(model: Any, prompt: Prompt) -> dict[str, Any]:
    """What the library's forward takes for one such prompt of a Qwen2.5-VL."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling  # noqa: PLC0415

    device = prompt.tokens.device
    ids = prompt.input_ids[None].to(device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": prompt.position_ids[:, None].to(device),
        "mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=(prompt.tokens,))},
    }


def prefill_work(config: Any, length: int) -> tuple[list[Product], float]:
    """The matrix products of a prompt of `length` tokens, and the operations of causal attention, as the fast engine does them.

    Of the last layer it computes keys and values alone for all but the last token.
    """
    text = config.get_text_config()
    hidden, inner, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    width = getattr(text, "head_dim", None) or hidden // text.num_attention_heads
    queries, keys = text.num_attention_heads * width, text.num_key_value_heads * width
    products: list[Product] = [
        (layers, length, queries + 2 * keys, hidden),
        (layers - 1, length, hidden, queries),
        (layers - 1, length, 2 * inner, hidden),
        (layers - 1, length, hidden, inner),
    ]
    return products, 2.0 * (layers - 1) * queries * length**2
