"""Where the tokens of a question are taken from: the store, or the device where they were scored just before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from echoprune.models import families, load_answerer
from echoprune.models.tiny import write_tiny_checkpoint
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
    found = []
    for on_device in (False, True, True):
        video.scores(view, query, reduce="max", device=cpu)
        if len(found) == 2:
            # What was scored last counts, and a gathering in between has let it go.
            video.scores(view, None, reduce="max", device=cpu)
        found.append(video.gather(view, index, on_device=on_device))
    for each in found[1:]:
        assert torch.equal(each.tokens, found[0].tokens)
        assert torch.equal(each.positions, found[0].positions)
        assert (each.deepstack is None) == (family != "qwen3_vl")
    # They are taken from there.
    video.scores(view, query, reduce="max", device=cpu)
    assert video._scored is not None
    video._scored = video._scored + 1
    moved = video.gather(view, index, on_device=True)
    assert torch.equal(moved.tokens, found[0].tokens + 1)
    assert torch.equal(video.gather(view, index, on_device=True).tokens, found[0].tokens)
