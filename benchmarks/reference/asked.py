"""Clips and their questions as token ids, by the code that makes prompts at answer time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.reference.truth import IGNORED
from echoprune.data import TokenSet
from echoprune.models import find_family, model_settings
from echoprune.models.answerer import chat_template
from echoprune.models.encoder import PatchLayout
from echoprune.models.prompt import place, skeleton
from echoprune.question import Question
from echoprune.templates import template_for
from echoprune.view import View

# Stands for the question where a chat is rendered once for all of them.
_QUESTION = "QUESTION"


@dataclass(frozen=True)
class Asked:
    """The ids of one clip and its questions: rows of a `Batch`."""

    ids: torch.Tensor
    positions: torch.Tensor
    block: torch.Tensor
    labels: torch.Tensor
    kinds: list[str]


class Prompts:
    """The prompts of one checkpoint, made by the code that makes them at answer time."""

    def __init__(self, folder: Path) -> None:
        import transformers  # noqa: PLC0415

        settings = model_settings(str(folder))
        config = transformers.AutoConfig.from_pretrained(folder)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.layout = settings.layout
        self.cell_frames = settings.layout.cell_frames
        self.timeless = settings.family == "llava_onevision"
        self.pad = int(self.tokenizer.pad_token_id)
        self._style = find_family(str(folder))[1].prompt(config)
        self._template = chat_template(folder)
        placeholder = getattr(config, "video_token_id", None) or config.video_token_index
        self._placeholder = str(self.tokenizer.convert_ids_to_tokens(placeholder))
        # What stands before a question and after it.
        self._around = self._chat(_QUESTION).split(_QUESTION)
        self._end = int(self.tokenizer.convert_tokens_to_ids("<|im_end|>"))

    def _chat(self, text: str) -> str:
        """What follows the video in a prompt that asks `text`."""
        content = [{"type": "video"}, {"type": "text", "text": text}]
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            chat_template=self._template,
        )
        return str(chat.partition(self._placeholder)[2])

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False).input_ids if texts else []

    def grid_hw(self, size: tuple[int, int]) -> tuple[int, int]:
        """Tokens of a frame of (width, height) pixels, which must be taken at this size."""
        if not isinstance(self.layout, PatchLayout):
            return self.layout.grid_hw((self.layout.side, self.layout.side))
        if self.layout.frame_hw(size[1], size[0]) != (size[1], size[0]):
            raise ValueError(f"frames of {size} would be resized")
        return self.layout.grid_hw((size[1], size[0]))

    def clip(
        self,
        view: View,
        chosen: npt.NDArray[np.int64],
        asked: Sequence[Question],
    ) -> Asked:
        """The clip of the cells `chosen` of `view`, with one block of ids for each question."""
        first = skeleton(
            self.tokenizer, self._template, "", view, style=self._style, placeholder=self._placeholder
        )
        kept = whole_cells(view, chosen)
        prompt = place(first, kept, view, style=self._style, compact=self._style.axes == 1)
        # All but the chat around the question: cells with a text of their own end in more than their last visual token.
        (around,) = self._ids(["".join(self._around)])
        shared = len(prompt) - len(around)
        ids, positions = [prompt.input_ids[:shared]], [prompt.position_ids[:, :shared]]
        block, labels = [torch.zeros(shared, dtype=torch.int64)], [torch.full((shared,), IGNORED)]
        # It counts on from the same place in each question.
        begin = prompt.position_ids[:, shared : shared + 1]
        # One call for all texts of a clip, and one rendering of the chat for all: half of the time of a batch otherwise.
        texts = [template_for(question, "auto").render(question) for question in asked]
        owns = self._ids([text.join(self._around) for text in texts])
        answers = self._ids([_answer(question) for question in asked])
        for number, (own, said) in enumerate(zip(owns, answers, strict=True), start=1):
            answer = [*said, self._end]
            # The last id of the answer has nothing to predict.
            ids.append(torch.tensor(own + answer[:-1]))
            positions.append(begin + torch.arange(len(ids[-1])))
            block.append(torch.full((len(ids[-1]),), number))
            labels.append(torch.tensor([IGNORED] * (len(own) - 1) + answer))
        return Asked(
            torch.cat(ids),
            torch.cat(positions, dim=1),
            torch.cat(block),
            torch.cat(labels),
            [question.kind or "" for question in asked],
        )


def _answer(question: Question) -> str:
    """What the model is to say: the words, also where there are options to choose from."""
    return question.answer or ""


def whole_cells(view: View, chosen: npt.NDArray[np.int64]) -> TokenSet:
    """All tokens of the `chosen` cells of `view`, as positions alone."""
    h, w = view.grid_thw[1:]
    grid = torch.cartesian_prod(torch.from_numpy(chosen), torch.arange(h), torch.arange(w))
    count = len(grid)
    return TokenSet(
        tokens=torch.zeros(count, 1),
        positions=grid,
        times_s=torch.from_numpy(view.times_s)[grid[:, 0]],
        correspondence=torch.zeros(count),
        echo=torch.zeros(count),
        anchor=torch.zeros(count, dtype=torch.bool),
        grid_thw=view.grid_thw,
        deepstack=None,
    )
