"""Which model answers: what its digest follows, and what it does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from echoprune.models import fingerprint
from echoprune.models.identity import answering_digest


def test_it_follows_the_content_and_not_the_path(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    before = answering_digest(str(tiny))
    assert len(before) == 16 and answering_digest(str(copy)) == before
    (copy / "README.md").write_text("words")
    assert answering_digest(str(copy)) == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_it_follows_each_file_that_texts_depend_on(tiny: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (copy / name).write_text((copy / name).read_text() + "\n")
    assert answering_digest(str(copy)) != answering_digest(str(tiny))


def test_it_follows_the_language_model_where_the_fingerprint_does_not(
    tiny: Path, edited: Callable[..., Path]
) -> None:
    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = next(name for name in weights if "visual" not in name and "norm" in name)
        return weights | {name: weights[name] + 1}

    other = edited(change)
    assert fingerprint(str(other)) == fingerprint(str(tiny))
    assert answering_digest(str(other)) != answering_digest(str(tiny))
