"""A video opened: scan, time grid and content id agree with the functions they come from."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from echoprune.errors import MediaError
from echoprune.models import frame_layout
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.opening import Opened, open_source
from echoprune.sample import Sampling
from echoprune.sources import content_id
from tests.clips import CLIPS, Clip, cut, even, write


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")


def opened(path: Path, model: Path) -> Opened:
    layout = frame_layout(str(model), max_pixels=20_000)
    return open_source(str(path), Sampling(fps=Fraction(4)), sizes=layout, segment_cells=3)


def test_a_whole_video(model: Path, tmp_path: Path) -> None:
    path = write(CLIPS["bframes.mp4"], tmp_path)
    found = opened(path, model)
    layout = frame_layout(str(model), max_pixels=20_000)
    assert found.grid.frame_hw == layout.frame_hw(96, 128)
    assert found.grid.grid_hw == layout.grid_hw(found.grid.frame_hw)
    assert (found.grid.cell_frames, found.grid.segment_cells) == (layout.cell_frames, 3)
    assert np.array_equal(found.grid.times_s, np.arange(16) / 4)
    assert (found.content_id, found.error) == (content_id(path), None)


def test_partial_videos_say_why(model: Path, tmp_path: Path) -> None:
    whole = write(CLIPS["bframes.mkv"], tmp_path)
    jump = write(Clip("jump.mkv", even(20) + even(5, start_ms=3_600_000)), tmp_path)
    for path, kind in ((cut(whole, tmp_path / "cut.mkv", keep=0.6), "truncated"), (jump, "time_jump")):
        error = opened(path, model).error
        assert error is not None
        assert (error.stage, error.kind) == ("probe", kind)
        assert str(error).startswith(f"{path}: ")


def test_what_cannot_be_read(model: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError) as raised:
        opened(tmp_path / "none.mp4", model)
    assert raised.value.kind == "missing"
