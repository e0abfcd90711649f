"""Where the tokens of a question are taken from: the store, or the device where they were scored just before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from echoprune.models import families, load_answerer
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.store import TokenStore
from echoprune.stored_video import StoredVideo
from tests import indexed
from tests.indexed import Footage


@pytest.mark.parametrize("family", families())
@pytest.mark.parametrize("keep", ["all", "0.5"])
def test_tokens_taken_where_they_were_scored_are_those_of_the_store(
    family: str, keep: str, tmp_path: Path
) -> None:
    model = write_tiny_checkpoint(family, tmp_path / "model", seed=1)
    opened = indexed.index(
        tmp_path / "store", model, [Footage("/b/park.mp4", 4, seed=3, event=(2, 3))], keep=keep
    )
    video = StoredVideo(opened, opened.resolve("park.mp4"))
    view = video.view(1.0, None)
    assert view is not None
    query = load_answerer(str(model), device="cpu").embed("a red ball")
    index = torch.tensor([0, 3, 4, 11])
    cpu = torch.device("cpu")
    there = video.scores(view, query, reduce="max", device=cpu).vectors
    assert there is not None
    read, taken = (video.gather(view, index, vectors=vectors) for vectors in (None, there))
    assert torch.equal(taken.tokens, read.tokens)
    assert torch.equal(taken.positions, read.positions)
    assert (taken.deepstack is None) == (read.deepstack is None) == (family != "qwen3_vl")
    # They are taken from there.
    assert torch.equal(video.gather(view, index, vectors=there + 1).tokens, read.tokens + 1)
    # Without words nothing is taken anywhere.
    assert video.scores(view, None, reduce="max", device=cpu).vectors is None


def test_tokens_of_a_video_too_long_for_memory_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model", seed=1)
    opened = indexed.index(tmp_path / "store", model, [Footage("/b/park.mp4", 4, seed=3, event=(2, 3))])
    monkeypatch.setattr("echoprune.stored_video.CACHED_BYTES", 0)
    video = StoredVideo(opened, opened.resolve("park.mp4"))
    view = video.view(None, None)
    assert view is not None
    query = load_answerer(str(model), device="cpu").embed("a red ball")
    found = video.scores(view, query, reduce="max", device=torch.device("cpu"))
    assert found.vectors is None and found.related is not None and len(found.related) == len(found.stored.t)


class Counted(TokenStore):
    """A store that tells which columns of cells are read."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.cells_read: list[tuple[str, ...] | None] = []

    def cells(self, video: str, columns: Sequence[str] | None = None) -> pa.Table:
        self.cells_read.append(None if columns is None else tuple(columns))
        return super().cells(video, columns)


def test_its_cells_are_read_once_for_questions_and_tokens(tmp_path: Path) -> None:
    model = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model", seed=1)
    opened = Counted(
        indexed.index(tmp_path / "store", model, [Footage("/b/park.mp4", 4, seed=3, event=(2, 3))]).storage
    )
    video = StoredVideo(opened, opened.resolve("park.mp4"))
    # Opening it waits for nothing but its row: its tokens can be on their way before a view of it is asked for.
    assert opened.cells_read == []
    tokens = video.read(None)
    assert tokens is not None and len(opened.cells_read) == 1
    whole, part = video.view(None, None), video.view(1.0, 3.0)
    assert whole is not None and part is not None and (whole.first_cell, part.first_cell) == (0, 1)
    for view in (whole, part):
        video.scores(view, None, reduce="max", device=torch.device("cpu"))
    assert video.end_s == whole.ends_s[-1] and len(opened.cells_read) == 1
    theirs = opened.tokens("park.mp4")
    assert torch.equal(tokens.times_s, theirs.times_s) and torch.equal(tokens.anchor, theirs.anchor)


def test_its_cells_are_read_once_where_its_tokens_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "model", seed=1)
    opened = Counted(
        indexed.index(tmp_path / "store", model, [Footage("/b/park.mp4", 4, seed=3, event=(2, 3))]).storage
    )
    theirs = opened.tokens("park.mp4")
    monkeypatch.setattr("echoprune.stored_video.CACHED_BYTES", 0)
    opened.cells_read.clear()
    video = StoredVideo(opened, opened.resolve("park.mp4"))
    view = video.view(None, None)
    assert view is not None
    for _ in range(2):
        kept = video.gather(view, torch.arange(len(theirs)))
        assert torch.equal(kept.times_s, theirs.times_s) and torch.equal(kept.anchor, theirs.anchor)
    assert len(opened.cells_read) == 1
