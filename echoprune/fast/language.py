"""A language model's layers over a cache of keys and values that holds many sequences, each in a slot of its own.

The weights are the library's: where several are laid on top of one another, the library's own parameters become parts
of the result, so that both ways of running them share the memory. Rotary angles come from the library's own module,
which knows each family's axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from echoprune.errors import ConfigError
from echoprune.fast import operations
from echoprune.models.prompt import Prompt

# Rows of an MLP at a time: 16,384 of a 7B model take 1.9 GB of inner values.
MLP_ROWS = 16384
# Prompts at least this long are attended to by cuDNN, whose kernels are faster and which plans once for each length.
LONG = 8192

Norms = tuple[torch.Tensor, torch.Tensor, float]


@dataclass(frozen=True)
class Layer:
    """One layer's weights; `qkv`, `inner` (gates first) are several of the library's on top of one another."""

    norm1: tuple[torch.Tensor, float] = field(repr=False)
    qkv: tuple[torch.Tensor, torch.Tensor | None] = field(repr=False)
    head_norms: Norms | None = field(repr=False)
    out: torch.Tensor = field(repr=False)
    norm2: tuple[torch.Tensor, float] = field(repr=False)
    inner: torch.Tensor = field(repr=False)
    outer: torch.Tensor = field(repr=False)


class Cache:
    """Keys and values (layers, slots, kv heads, capacity, width) of sequences, in `dtype` on `device`."""

    def __init__(self, model: LanguageModel, slots: int, capacity: int) -> None:
        shape = (len(model.layers), slots, model.kv_heads, capacity, model.width)
        # Zeros: what has not been written is masked, but 0 times not-a-number is none.
        self.keys, self.values = (
            torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(2)
        )
        self.slots, self.capacity = slots, capacity

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (slots, kv heads, capacity, width) of one layer."""
        return self.keys[index], self.values[index]


class LanguageModel:
    """The language model of the library's `model`, one of the three families' whole models.

    Raises ConfigError for a checkpoint with parts that are not known here.
    """

    def __init__(self, model: Any) -> None:
        text = model.model.language_model
        config = text.config
        self.width = _head_width(config)
        self.kv_heads = int(config.num_key_value_heads)
        self.embedding: torch.Tensor = text.embed_tokens.weight
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        _require_known(config, text)
        # Three axes of positions in the Qwen-VL families, one elsewhere.
        self._axes = 3 if hasattr(text.rotary_emb, "mrope_section") else 1
        self._rotary = text.rotary_emb
        self.layers = [_packed(layer) for layer in text.layers]
        self._norm = _norm(text.norm)
        self._head: torch.Tensor = model.lm_head.weight
        config = model.config
        self.placeholder = int(getattr(config, "video_token_id", None) or config.video_token_index)
        self.newline: torch.Tensor | None = getattr(model.model, "image_newline", None)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Prompt], slots: Sequence[int], cache: Cache) -> torch.Tensor:
        """(prompts, V) float32 logits after each prompt, whose keys and values are then in its slot of the cache.

        Prompts of any lengths go through the layers one after another as rows of the same products, without padding.
        """
        device = self.device
        lengths = [len(prompt) for prompt in prompts]
        at = torch.cat([torch.arange(length) for length in lengths]).to(device)
        slot = torch.tensor(slots).repeat_interleave(torch.tensor(lengths)).to(device)
        angles = self.angles(torch.cat([prompt.position_ids for prompt in prompts], dim=1).to(device))
        ids = torch.cat([prompt.input_ids for prompt in prompts])
        (visual,) = (ids == self.placeholder).nonzero(as_tuple=True)
        visual = visual.to(device)
        x = F.embedding(ids.to(device), self.embedding)
        x[visual] = torch.cat([part for prompt in prompts for part in self._features(prompt)])
        maps = _maps(prompts)
        last = (torch.tensor(lengths).cumsum(0) - 1).to(device)
        for index, layer in enumerate(self.layers):
            qkv = F.linear(_normed(x, layer.norm1), *layer.qkv)
            keys = cache.layer(index)
            query = operations.place(qkv, angles, keys, slot=slot, at=at, norms=layer.head_norms)
            if index == len(self.layers) - 1:
                # The next token's logits are all that is wanted of the last layer, and its deepstack map changes no text.
                x = x[last]
                x.addmm_(self._attended(query[last], keys, slots, lengths, last=True), layer.out.t())
                _add_mlp(x, layer)
                break
            x.addmm_(self._attended(query, keys, slots, lengths), layer.out.t())
            _add_mlp(x, layer)
            if index < len(maps):
                x.index_add_(0, visual, maps[index].to(device, self.dtype))
        return self._logits(x)

    @torch.no_grad()
    def step(
        self, ids: torch.Tensor, positions: torch.Tensor, seen: torch.Tensor, new: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        """(slots, V) float32 logits after one more token in each of the first slots.

        `ids`, `positions`, `seen` (slots,) int64: the token, its position on all axes, and how many tokens the slot
        holds. `new` (slots,) int64: 1 where there is a sequence; of others the result means nothing.
        """
        angles = self.angles(positions.expand(self._axes, -1))
        slot = torch.arange(len(ids), device=ids.device)
        x = F.embedding(ids, self.embedding)
        for index, layer in enumerate(self.layers):
            qkv = F.linear(_normed(x, layer.norm1), *layer.qkv)
            keys = cache.layer(index)
            query = operations.place(qkv, angles, keys, slot=slot, at=seen, norms=layer.head_norms)
            x.addmm_(operations.attend(query, keys, seen + new), layer.out.t())
            _add_mlp(x, layer)
        return self._logits(x)

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine (rows, width / 2) float32 at `positions` (axes, rows)."""
        places = positions[:, None] if self._axes == 3 else positions
        kind = torch.empty(0, dtype=torch.float32, device=positions.device)
        # The two halves of the library's angles are equal.
        cos, sin = (each[0, :, : self.width // 2].contiguous() for each in self._rotary(kind, places))
        return cos, sin

    def _features(self, prompt: Prompt) -> list[torch.Tensor]:
        tokens = prompt.tokens.to(self.device, self.dtype)
        return [tokens] if self.newline is None else [tokens, self.newline[None].to(self.dtype)]

    def _attended(
        self,
        query: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        slots: Sequence[int],
        lengths: Sequence[int],
        *,
        last: bool = False,
    ) -> torch.Tensor:
        """(rows, heads x width) causal attention of each sequence over its own keys, which are in the cache.

        `query` (rows, heads, width): of all tokens of the sequences, one sequence after another, or of the `last` of each.
        """
        found, begin = [], 0
        for slot, length in zip(slots, lengths, strict=True):
            count = 1 if last else length
            one = query[begin : begin + count].transpose(0, 1)[None]
            key, value = (each[slot, :, :length][None] for each in cache)
            found.append(_attention(one, key, value, causal=not last)[0].transpose(0, 1).reshape(count, -1))
            begin += count
        return found[0] if len(found) == 1 else torch.cat(found)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(_normed(x, self._norm), self._head).float()


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool) -> torch.Tensor:
    if not query.is_cuda or query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)
    flash = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    long = query.shape[2] >= LONG
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *flash] if long else flash, set_priority=True):
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)


def _normed(x: torch.Tensor, norm: tuple[torch.Tensor, float]) -> torch.Tensor:
    weight, eps = norm
    return operations.norm(x, weight, None, None, eps)


def _add_mlp(x: torch.Tensor, layer: Layer) -> None:
    """Adds the layer's MLP to `x`, a part of the rows at a time."""
    for begin in range(0, len(x), MLP_ROWS):
        rows = x[begin : begin + MLP_ROWS]
        inner = operations.silu_product(F.linear(_normed(rows, layer.norm2), layer.inner))
        rows.addmm_(inner, layer.outer.t())


def _maps(prompts: Sequence[Prompt]) -> list[torch.Tensor]:
    """The deepstack maps (tokens of all prompts, D) of each layer that takes some."""
    given = [prompt.deepstack for prompt in prompts if prompt.deepstack is not None]
    return [torch.cat(layer) for layer in zip(*given, strict=True)] if given else []


def _norm(module: Any) -> tuple[torch.Tensor, float]:
    return module.weight, float(module.variance_epsilon)


def _packed(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    bias = None
    if parts[0].bias is not None:
        bias = _on_top_of_one_another(parts, "bias")
    norms = None
    if hasattr(attention, "q_norm"):
        weight, eps = _norm(attention.q_norm)
        norms = weight, _norm(attention.k_norm)[0], eps
    return Layer(
        norm1=_norm(layer.input_layernorm),
        qkv=(_on_top_of_one_another(parts, "weight"), bias),
        head_norms=norms,
        out=attention.o_proj.weight,
        norm2=_norm(layer.post_attention_layernorm),
        inner=_on_top_of_one_another([mlp.gate_proj, mlp.up_proj], "weight"),
        outer=mlp.down_proj.weight,
    )


def _on_top_of_one_another(modules: Sequence[Any], name: str) -> torch.Tensor:
    """The parameters `name` of `modules` as one tensor, of which they become parts: their values stay."""
    whole = torch.cat([getattr(module, name).detach() for module in modules])
    begin = 0
    for module in modules:
        end = begin + len(getattr(module, name))
        setattr(module, name, torch.nn.Parameter(whole[begin:end], requires_grad=False))
        begin = end
    return whole


def refused(config: Any) -> str:
    """Why the engine does not take a language model of the library's `config`, whose parts it would leave out; "" if it does."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    width = _head_width(config)
    for name, found, accepted in (
        ("attention layers", sorted(kinds), ["full_attention"]),
        ("activation", config.hidden_act, "silu"),
        # Of Qwen3-VL's attention; Qwen2's has biases of queries, keys and values alone, whatever its configuration says.
        ("bias of the attention's output", bool(getattr(config, "attention_bias", False)), False),
        ("width of a head a power of two", width & (width - 1), 0),
    ):
        if found != accepted:
            return f"the fast engine takes {name} {accepted}, this checkpoint has {found}"
    return ""


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _require_known(config: Any, text: Any) -> None:
    """ConfigError where the checkpoint has a part that would be left out in silence."""
    layer = text.layers[0]
    reason = refused(config)
    for name, found in (
        ("attention's output", layer.self_attn.o_proj.bias),
        ("MLP", layer.mlp.down_proj.bias),
    ):
        if not reason and found is not None:
            reason = f"the fast engine takes no bias of the {name}, this checkpoint has one"
    if reason:
        raise ConfigError(f"{reason}: use --engine library")
