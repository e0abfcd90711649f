"""Drawing what was kept needs the very file that was indexed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from echoprune.errors import MediaError, StoreError
from echoprune.inspection import VideoView, draw_view
from echoprune.sources import content_id
from echoprune.store import TokenStore, create_store, open_store
from tests import stores as made
from tests.clips import Clip, damage, even, write

CELLS, GRID_HW = 4, (3, 4)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    create_store(tmp_path / "store", made.settings(segment_cells=2))
    return open_store(tmp_path / "store")


@pytest.fixture
def view(tmp_path: Path) -> VideoView:
    """What the index of a clip of 4 s says of it."""
    path = write(Clip("clip.mp4", even(100)), tmp_path)
    row = {
        "uri": str(path),
        "content_id": content_id(path),
        "frame_h": 84,
        "frame_w": 112,
        "grid_h": GRID_HW[0],
        "grid_w": GRID_HW[1],
        "cells": CELLS,
    }
    mask = np.zeros((CELLS, *GRID_HW), np.bool_)
    mask[0] = True
    return VideoView(
        row=row,
        times_s=np.arange(CELLS, dtype=np.float64),
        end_s=np.arange(1, CELLS + 1, dtype=np.float64),
        mean_novelty=np.linspace(-1, 1, CELLS, dtype=np.float32),
        kept=mask.sum((1, 2)),
        anchor=mask.any((1, 2)),
        kept_mask=mask,
    )


def test_the_same_file_is_drawn(store: TokenStore, view: VideoView, tmp_path: Path) -> None:
    draw_view(store, view, tmp_path / "kept.png")
    assert (tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")


def test_a_changed_file_is_refused(store: TokenStore, view: VideoView, tmp_path: Path) -> None:
    # Same length, size and times: only its content tells.
    damage(tmp_path / "clip.mp4", tmp_path / "clip.mp4", at=0.5, length=1)
    with pytest.raises(
        StoreError, match=r"clip\.mp4 is not the file that was indexed: its content differs"
    ) as raised:
        draw_view(store, view, tmp_path / "kept.png")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "kept.png").exists()


def test_a_file_that_is_gone(store: TokenStore, view: VideoView, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").unlink()
    with pytest.raises(MediaError) as raised:
        draw_view(store, view, tmp_path / "kept.png")
    assert raised.value.kind == "missing"
