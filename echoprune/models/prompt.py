"""From a question's text and the kept tokens to what a language model is given: ids, positions, features.

The chat template's text holds the video's placeholder once. It is made a skeleton: the text with one placeholder for
each slot of the video (one in all, or one a cell where cells carry their time as text), which is tokenised as a whole.
Then each placeholder is repeated for the tokens kept in its slot. Positions are those of the unpruned prompt, in closed
form: the ids of the unpruned prompt are never made. What differs between families is a `PromptStyle`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from echoprune.data import TokenSet
from echoprune.errors import ConfigError, ModelError
from echoprune.view import View

EMPTY_CELLS = ("drop", "keep")


@dataclass(frozen=True)
class PromptStyle:
    """How one family places a video in a prompt.

    `axes`: rows of its position ids, 3 for rotary positions in time, height and width, else 1. `slot_texts(view,
    placeholder)`: the text of each slot, with the placeholder in it once; one slot for the whole video, or one a cell.
    `slot_width(view)`: positions that a slot takes of the unpruned prompt. `positions(view, kept, starts)` (axes, K)
    int64: of kept tokens (K, 3), t within the view, given the position at which the slot of each begins. `closing`:
    features that end each slot beside its tokens (LLaVA-OneVision's newline).
    """

    axes: int
    slot_texts: Callable[[View, str], list[str]]
    slot_width: Callable[[View], int]
    positions: Callable[[View, torch.Tensor, torch.Tensor], torch.Tensor]
    closing: int = 0


@dataclass(frozen=True)
class Prompt:
    """A prompt for one question.

    `input_ids` (L,) int64; `position_ids` (axes, L) int64. `tokens` (K, D) and `deepstack` (layers, K, D) or None: the
    visual features, for the placeholders in order, without the closing ones. `timestamp_tokens`: text tokens that belong
    to cells.
    """

    input_ids: torch.Tensor = field(repr=False)
    position_ids: torch.Tensor = field(repr=False)
    tokens: torch.Tensor = field(repr=False)
    deepstack: torch.Tensor | None = field(repr=False)
    timestamp_tokens: int

    def __post_init__(self) -> None:
        if self.position_ids.ndim != 2 or self.position_ids.shape[1:] != self.input_ids.shape:
            raise ValueError(
                f"position_ids {tuple(self.position_ids.shape)} do not fit input_ids {tuple(self.input_ids.shape)}"
            )

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Skeleton:
    """A tokenised prompt with one placeholder a slot, before tokens are placed in it.

    `ids` (S,) int64; `slot` (S,) int64: the slot whose text each id is part of, -1 for the question's own text.
    `pads` (slots,) int64: where the placeholders are.
    """

    ids: torch.Tensor = field(repr=False)
    slot: torch.Tensor = field(repr=False)
    pads: torch.Tensor = field(repr=False)

    def timestamp_tokens(self, slots: torch.Tensor | None = None) -> int:
        """Text tokens that belong to cells; with `slots` (slots,) bool: to those of them that are set."""
        counted = self.slot >= 0
        if slots is not None:
            counted = counted & slots[self.slot.clamp(min=0)]
        return int(counted.sum()) - int(len(self.pads) if slots is None else slots.sum())


def skeleton(
    tokenizer: Any, template: str | None, text: str, view: View, *, style: PromptStyle, placeholder: str
) -> Skeleton:
    """The Skeleton of a prompt that shows the video of `view` and asks `text`, by the chat template.

    Raises ModelError where the template does not show the video once, ConfigError where `text` holds a token that is
    reserved for the model's own use.
    """
    forbidden = next((token for token in sorted(tokenizer.get_added_vocab()) if token in text), None)
    if forbidden is not None:
        raise ConfigError(f"the text holds {forbidden}, which is reserved for the model: leave it out")
    content = [{"type": "video"}, {"type": "text", "text": text}]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        chat_template=template,
    )
    before, found, after = chat.partition(placeholder)
    if not found or placeholder in after:
        raise ModelError(
            f"the checkpoint's chat template shows a video by {chat.count(placeholder)} {placeholder}; accepted is one: "
            "take its original files"
        )
    slots = style.slot_texts(view, placeholder)
    encoded = tokenizer(
        before + "".join(slots) + after, add_special_tokens=False, return_offsets_mapping=True
    )
    ids = torch.tensor(encoded["input_ids"])
    begins = torch.tensor([begin for begin, _ in encoded["offset_mapping"]])
    edges = torch.tensor([len(before), *(len(slot) for slot in slots)]).cumsum(0)
    slot = torch.bucketize(begins, edges, right=True) - 1
    slot[slot == len(slots)] = -1
    (pads,) = (ids == tokenizer.convert_tokens_to_ids(placeholder)).nonzero(as_tuple=True)
    if not torch.equal(slot[pads], torch.arange(len(slots))):
        raise ModelError(f"the tokenizer does not take {placeholder} as one token: take its original files")
    return Skeleton(ids, slot, pads)


def place(
    frame: Skeleton,
    kept: TokenSet,
    view: View,
    *,
    style: PromptStyle,
    empty_cells: str = "drop",
    compact: bool = False,
) -> Prompt:
    """The Prompt in which the placeholders of `frame` are repeated for the `kept` tokens.

    `kept.positions` t counts within the view. `empty_cells`: what becomes of the text of cells that keep nothing; "drop"
    or "keep". `compact`: positions count up from 0 over what is left, as if nothing had been pruned.
    """
    slots = len(frame.pads)
    slot = kept.positions[:, 0] if slots > 1 else torch.zeros(len(kept), dtype=torch.int64)
    held = torch.bincount(slot, minlength=slots)
    counts = torch.ones_like(frame.ids)
    counts[frame.pads] = held + style.closing
    if empty_cells == "drop":
        empty = (held == 0) & (style.closing == 0)
        counts[(frame.slot >= 0) & empty[frame.slot.clamp(min=0)]] = 0

    width = style.slot_width(view)
    is_pad = torch.zeros_like(frame.ids)
    is_pad[frame.pads] = 1
    start = torch.arange(len(frame.ids)) + (is_pad.cumsum(0) - is_pad) * (width - 1)
    input_ids = frame.ids.repeat_interleave(counts)
    positions = start.repeat_interleave(counts).expand(style.axes, -1).clone()
    (placed,) = is_pad.repeat_interleave(counts).nonzero(as_tuple=True)
    starts = start[frame.pads]
    if style.closing:
        placed, ends = placed[: -style.closing], placed[-style.closing :]
        positions[:, ends] = starts[-1] + width - style.closing + torch.arange(style.closing)
    positions[:, placed] = style.positions(view, kept.positions, starts[slot])
    if compact:
        positions = torch.arange(len(input_ids)).expand(style.axes, -1).clone()
    timestamps = int(counts[frame.slot >= 0].sum()) - int(counts[frame.pads].sum())
    return Prompt(input_ids, positions, kept.tokens, kept.deepstack, timestamps)
