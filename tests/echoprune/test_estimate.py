"""What an index will come to, against what the index of the same files really came to."""

from __future__ import annotations

from pathlib import Path

import pytest

import echoprune
from echoprune.estimate import estimate
from echoprune.models import load_encoder, model_settings
from echoprune.models.encoder import Encoder
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.schema import StoreSettings
from echoprune.sources import list_sources
from tests.clips import Clip, even, write
from tests.echoprune.test_index import settings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def encoder(model: Path) -> Encoder:
    return load_encoder(str(model), segment_cells=4, device="cpu")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for number in range(6):
        write(Clip(f"{number}.mp4", even(25 + 25 * number)), folder)
    (folder / "text.mp4").write_text("no video")
    return folder


@pytest.mark.parametrize(
    "changes", [{"keep": "0.25"}, {"keep": "all"}, {"keep": "4/cell", "anchor_every_s": 2.0}]
)
def test_with_all_headers_read_the_estimate_is_what_comes_out(
    archive: Path, model: Path, encoder: Encoder, changes: dict[str, object]
) -> None:
    made: StoreSettings = settings(encoder, **changes)
    found = estimate(
        list_sources([archive]), layout=model_settings(str(model)).layout, settings=made, probe=None
    )
    cells = tokens = kept = 0
    for number in range(6):
        with echoprune.index_video(str(archive / f"{number}.mp4"), encoder=encoder, settings=made) as indexed:
            cells, tokens, kept = cells + indexed.cells, tokens + indexed.seen, kept + indexed.kept
    assert found.cells.low == found.cells.middle == found.cells.high == cells
    assert found.tokens.middle == tokens
    assert found.kept.middle == pytest.approx(kept, rel=0.05)
    assert found.video_s.middle == pytest.approx(sum(range(1, 7)), abs=0.2)
    assert (found.videos, found.probed, dict(found.unreadable)) == (7, 7, {"not_a_video": 1})


def test_a_sample_gives_a_range_around_the_truth(archive: Path, model: Path, encoder: Encoder) -> None:
    sources = [source for source in list_sources([archive]) if not source.uri.endswith("text.mp4")]
    layout = model_settings(str(model)).layout
    exact = estimate(sources, layout=layout, settings=settings(encoder), probe=None)
    found = estimate(sources, layout=layout, settings=settings(encoder), probe=3)
    assert found.probed == 3
    assert found.video_s.low <= found.video_s.middle <= found.video_s.high
    assert found.video_s.low < found.video_s.high
    assert found.video_s.low <= exact.video_s.middle <= found.video_s.high
    assert found == estimate(sources[::-1], layout=layout, settings=settings(encoder), probe=3)
