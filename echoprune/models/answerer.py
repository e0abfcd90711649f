"""A loaded model that answers: the library's own class, given pruned prompts.

Visual features, their positions and deepstack maps enter by the library's own door for features that were encoded
before (`mm_encoder_outputs`), so that its code for prefill, cache and generation runs as it is. No pixel is seen.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from echoprune.data import TokenSet
from echoprune.errors import ConfigError, ModelError
from echoprune.models.checkpoint import read_json
from echoprune.models.prompt import EMPTY_CELLS, Prompt, PromptStyle, Skeleton, place, skeleton
from echoprune.view import View


@dataclass(frozen=True)
class Decoding:
    """How text is generated: greedily at `temperature` 0, else sampled from `top_p` (0, 1] and `top_k` (0: all).

    `suppress`: ids that are never generated. Raises ConfigError for values outside these meanings.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    suppress: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is {self.max_new_tokens}; give at least 1")
        if not 0 <= self.temperature <= 100:
            raise ConfigError(f"--temperature is {self.temperature}; give 0 (greedy) to 100")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p}; give a number above 0 and at most 1")
        if self.top_k < 0:
            raise ConfigError(f"--top-k is {self.top_k}; give 0 (all) or more")


@dataclass(frozen=True)
class Generated:
    """The text that followed one prompt, how many tokens it took, and whether it ended by itself ("eos", "length")."""

    text: str
    new_tokens: int
    finish: str
    ids: tuple[int, ...]


class Answerer:
    """A whole model of one family with its tokenizer; made by `load_answerer`.

    `fingerprint`: of its vision part, which the stores that it can answer from share. `dim`: width of tokens. `deepstack_layers`: maps that must accompany them. `empty_cells`: "drop" or "keep" the time
    text of cells that keep nothing. `positions`: "original", those of the unpruned prompt, or "compact", counted anew
    (families with one position axis alone). Raises ConfigError for a switch that the family does not have.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        style: PromptStyle,
        template: str | None,
        fingerprint: str,
        positions: str = "auto",
        empty_cells: str = "drop",
    ) -> None:
        if empty_cells not in EMPTY_CELLS:
            raise ConfigError(f"empty cells are {empty_cells!r}; give one of {', '.join(EMPTY_CELLS)}")
        if positions not in ("auto", "original", "compact"):
            raise ConfigError(f"positions are {positions!r}; give auto, original or compact")
        if positions == "compact" and style.axes != 1:
            raise ConfigError(
                f"positions 'compact' are not for {model.config.model_type}, whose tokens have places in time and "
                "space; give original"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.family = str(model.config.model_type)
        self.dim = int(model.config.get_text_config().hidden_size)
        vision = model.config.vision_config
        self.deepstack_layers = len(getattr(vision, "deepstack_visual_indexes", None) or ())
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self._style = style
        self._template = template
        self._compact = positions == "compact" or (positions == "auto" and style.axes == 1)
        self._empty_cells = empty_cells
        # LLaVA's configuration calls its ids indices.
        config = model.config
        placeholder_id = getattr(config, "video_token_id", None) or config.video_token_index
        self._placeholder = str(tokenizer.convert_ids_to_tokens(placeholder_id))
        ended = model.generation_config.eos_token_id
        ended = tokenizer.eos_token_id if ended is None else ended
        self._eos = frozenset(ended if isinstance(ended, list | tuple) else [ended])
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self._eos)

    @torch.no_grad()
    def embed(self, text: str) -> torch.Tensor:
        """(M, D) float32 on the CPU: the language model's input embeddings of the tokens of `text`; M may be 0."""
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0].long()
        vectors: torch.Tensor = self.model.get_input_embeddings()(ids.to(self.device))
        return vectors.float().cpu()

    def skeleton(self, text: str, view: View) -> Skeleton:
        """The prompt that asks `text` about the video of `view`, before tokens are placed in it."""
        return skeleton(
            self.tokenizer, self._template, text, view, style=self._style, placeholder=self._placeholder
        )

    def slots_used(self, frame: Skeleton, t: torch.Tensor) -> torch.Tensor:
        """(slots,) bool: those whose text is in the prompt when tokens of the cells `t` are kept."""
        if self._empty_cells == "keep" or len(frame.pads) == 1:
            return torch.ones(len(frame.pads), dtype=torch.bool)
        return torch.bincount(t, minlength=len(frame.pads)) > 0

    def place(self, frame: Skeleton, kept: TokenSet, view: View) -> Prompt:
        """`frame` with the `kept` tokens in it, t counted within `view`. Raises ModelError if they do not fit the model."""
        layers = 0 if kept.deepstack is None else len(kept.deepstack)
        if kept.tokens.shape[1] != self.dim or layers != self.deepstack_layers:
            raise ModelError(
                f"tokens are {kept.tokens.shape[1]} wide with {layers} deepstack maps, the model takes {self.dim} and "
                f"{self.deepstack_layers}: give the --model that the store was made with"
            )
        return place(
            frame, kept, view, style=self._style, empty_cells=self._empty_cells, compact=self._compact
        )

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Generated]:
        """The text after each of `prompts`, in their order; they may differ in length, and are padded on the left."""
        if decoding.temperature > 0:
            torch.manual_seed(decoding.seed)
        sampled = decoding.temperature > 0
        settings = copy.deepcopy(self.model.generation_config)
        settings.update(
            max_new_tokens=decoding.max_new_tokens,
            max_length=None,
            do_sample=sampled,
            temperature=decoding.temperature if sampled else None,
            top_p=decoding.top_p if sampled else None,
            top_k=decoding.top_k if sampled else None,
            num_beams=1,
            pad_token_id=self._pad,
            eos_token_id=sorted(self._eos),
            suppress_tokens=list(decoding.suppress) or None,
        )
        inputs = self._inputs(prompts)
        rows = self.model.generate(**inputs, generation_config=settings)
        return [self._generated(row) for row in rows[:, inputs["input_ids"].shape[1] :].tolist()]

    @torch.no_grad()
    def next_logprobs(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """(B, V) float32 on the CPU: log-probabilities of the first token after each prompt."""
        logits = self.model(**self._inputs(prompts), logits_to_keep=1, use_cache=False).logits
        return torch.log_softmax(logits[:, -1].float(), dim=-1).cpu()

    def choice_logprobs(self, prompts: Sequence[Prompt], choices: Sequence[int]) -> list[tuple[float, ...]]:
        """Log-probability that a prompt is followed by each of its first `choices[i]` letters A, B, ... with or without a space."""
        logprobs = self.next_logprobs(prompts)
        scores = []
        for row, count in zip(logprobs, choices, strict=True):
            letters = [self._letter_ids(chr(ord("A") + index)) for index in range(count)]
            scores.append(tuple(float(torch.logsumexp(row[ids], 0)) for ids in letters))
        return scores

    @torch.no_grad()
    def text_logprob(self, prompt: Prompt, text: str) -> float:
        """The log-probability, at most 0, that `prompt` is followed by the tokens of `text`; 0 for no text."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            return 0.0
        more = torch.arange(1, len(ids) + 1).expand(len(prompt.position_ids), -1)
        longer = Prompt(
            torch.cat([prompt.input_ids, torch.tensor(ids)]),
            torch.cat([prompt.position_ids, prompt.position_ids[:, -1:] + more], dim=1),
            prompt.tokens,
            prompt.deepstack,
            prompt.timestamp_tokens,
        )
        logits = self.model(**self._inputs([longer]), logits_to_keep=len(ids) + 1, use_cache=False).logits[0]
        logprobs = torch.log_softmax(logits[:-1].float(), dim=-1).cpu()
        return float(logprobs[torch.arange(len(ids)), torch.tensor(ids)].sum())

    def _letter_ids(self, letter: str) -> list[int]:
        spelled = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (letter, " " + letter)
        )
        single = sorted({ids[0] for ids in spelled if len(ids) == 1})
        if not single:
            raise ModelError(
                f"the tokenizer has no single token for the letter {letter}: leave out --letters"
            )
        return single

    def _generated(self, ids: list[int]) -> Generated:
        stop = next((at for at, token in enumerate(ids) if token in self._eos), None)
        taken = ids if stop is None else ids[:stop]
        text = self.tokenizer.decode(taken, skip_special_tokens=True).strip()
        return Generated(
            text, len(taken) + (stop is not None), "length" if stop is None else "eos", tuple(taken)
        )

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), longest), self._pad)
        mask = torch.zeros((len(prompts), longest), dtype=torch.int64)
        positions = torch.zeros((self._style.axes, len(prompts), longest), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            begin = longest - len(prompt)
            ids[row, begin:] = prompt.input_ids
            mask[row, begin:] = 1
            positions[:, row, begin:] = prompt.position_ids
        if self._style.axes == 1:
            positions = positions[0]
        return {
            "input_ids": ids.to(self.device),
            "attention_mask": mask.to(self.device),
            "position_ids": positions.to(self.device),
            "mm_encoder_outputs": {"video": self._features(prompts)},
        }

    def _features(self, prompts: Sequence[Prompt]) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling  # noqa: PLC0415

        tokens = [prompt.tokens.to(self.device, self.dtype) for prompt in prompts]
        if self._style.closing:
            newline = self.model.model.image_newline[None].to(self.dtype)
            tokens = [part for each in tokens for part in (each, newline)]
            return BaseModelOutputWithPooling(pooler_output=torch.cat(tokens)[None])
        if not self.deepstack_layers:
            return BaseModelOutputWithPooling(pooler_output=tuple(tokens))
        from transformers.models.qwen3_vl.modeling_qwen3_vl import (  # noqa: PLC0415
            BaseModelOutputWithDeepstackFeatures,
        )

        maps = [
            tuple(
                prompt.deepstack[layer].to(self.device, self.dtype)
                for prompt in prompts
                if prompt.deepstack is not None
            )
            for layer in range(self.deepstack_layers)
        ]
        return BaseModelOutputWithDeepstackFeatures(pooler_output=tuple(tokens), deepstack_features=maps)


def chat_template(folder: Path) -> str | None:
    """The chat template for messages with videos: the processor's own file, else None for the tokenizer's.

    A checkpoint's tokenizer may carry the template of its language model, which knows no videos.
    """
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    given = read_json(folder / "chat_template.json").get("chat_template")
    return given if isinstance(given, str) else None


def load_model(
    folder: Path, model_class: str, *, device: torch.device, dtype: torch.dtype
) -> tuple[Any, Any]:
    """The model of the named library class on `device`, ready to answer, and its tokenizer.

    Raises ModelError where weights are missing or of another shape: the library would make them up.
    """
    import transformers  # noqa: PLC0415
    from transformers.utils import logging as library_logging  # noqa: PLC0415

    library_logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model, found = getattr(transformers, model_class).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{folder} cannot be loaded: {reason}; download the checkpoint again") from error
    # Without files the library makes a tokenizer that knows no words, and says nothing.
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ModelError(f"{folder} has no tokenizer that knows words: download the checkpoint again")
    lacking = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if lacking:
        raise ModelError(
            f"{folder} lacks {len(lacking)} weights, such as {lacking[0]}: download the whole checkpoint again"
        )
    return model.to(device).eval().requires_grad_(False), tokenizer
