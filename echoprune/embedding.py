"""Words as vectors: the language model's input embeddings of a text, without the language model.

Only the tokenizer and the rows of the words are read from the checkpoint, in any of its layouts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from echoprune.errors import ModelError
from echoprune.models import fingerprint, word_rows
from echoprune.schema import StoreSettings


@dataclass(frozen=True)
class WordEmbeddings:
    """The tokenizer of a checkpoint and its table of input embeddings, which stays on disk. `dim`: D, its width."""

    dim: int
    _tokenizer: Any = field(repr=False)
    _rows: Any = field(repr=False)

    def embed(self, text: str) -> torch.Tensor:
        """(M, D) float32 on the CPU, the input embeddings of the M tokens of `text`, values as stored.

        No special tokens are added; an empty text gives (0, D).
        """
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        rows = {word: self._rows[word : word + 1] for word in sorted(set(ids))}
        if any(len(row) == 0 for row in rows.values()):
            raise ModelError(
                f"the tokenizer gives id {max(ids)}, but there are {self._rows.get_shape()[0]} word embeddings; "
                "tokenizer and weights are of different models: download the checkpoint again"
            )
        return torch.cat([torch.empty(0, self.dim), *(rows[word].float() for word in ids)])


def load_word_embeddings(model: str) -> WordEmbeddings:
    """The word embeddings of `model`, a folder or hub id; takes the memory of its tokenizer.

    Raises UnknownModelError when there is no such model, ModelError where its tokenizer or embeddings are missing.
    """
    folder, rows = word_rows(model)
    return WordEmbeddings(int(rows.get_shape()[1]), _tokenizer(folder), rows)


def require_model(settings: StoreSettings, model: str) -> None:
    """Raise StoreMismatchError if a store with these settings was not made with `model`.

    Reads all vision weights of the checkpoint: their hash is what a store remembers of its model.
    """
    settings.require_model(fingerprint(model), model)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes a second

    try:
        # False, not the default: that asks on the terminal whether code of the checkpoint may run.
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder} has no tokenizer that loads ({reason}); download it again") from error
    # Without files the library makes one that knows no words and turns every text into nothing.
    files = sorted(set(tokenizer.vocab_files_names.values()))
    if not any((folder / name).is_file() for name in files):
        raise ModelError(f"{folder} has no tokenizer: none of {', '.join(files)}; download it again")
    return tokenizer
