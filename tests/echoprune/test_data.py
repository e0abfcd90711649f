"""The types refuse what does not fit together, and print shapes, never values."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from echoprune.data import EchoScores, Frames, TimeGrid, TokenGrid, TokenSet, VideoInfo


def info(**changes: object) -> VideoInfo:
    made = VideoInfo(
        uri="v.mp4", stream_index=0, container="mov", codec="h264", pix_fmt="yuv420p", width=64, height=48, rotation=0,
        time_base=Fraction(1, 100), pts=np.array([-50, 0, 50]), cut_pts=np.array([-50]), end_pts=100, vfr=False,
    )  # fmt: skip
    return replace(made, **changes)


def grid(frames: int, *, cell_frames: int = 2, segment_cells: int = 4) -> TimeGrid:
    return TimeGrid(
        times_s=np.arange(frames) / 2, frame_pts=np.arange(frames) * 50, frame_hw=(28, 56), grid_hw=(1, 2),
        cell_frames=cell_frames, segment_cells=segment_cells, end_s=frames / 2,
    )  # fmt: skip


def token_set(**changes: object) -> TokenSet:
    made = TokenSet(
        tokens=torch.ones(3, 4),
        positions=torch.tensor([[0, 0, 1], [1, 0, 0], [1, 1, 2]]),
        times_s=torch.tensor([0.0, 1.0, 1.0]),
        correspondence=torch.tensor([0.0, 0.5, 0.25]),
        echo=torch.tensor([0.0, 0.25, 0.5]),
        anchor=torch.tensor([True, False, False]),
        grid_thw=(2, 2, 3),
    )
    return replace(made, **changes)


def test_times_of_a_video_that_starts_before_zero() -> None:
    assert (info().start_pts_s, info().duration_s, info().fps) == (-0.5, 1.5, 2.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pts": np.array([], dtype=np.int64)}, "F > 0"),
        ({"pts": np.array([0, 0])}, "strictly ascending"),
        ({"end_pts": 50}, "not after the last frame"),
        ({"rotation": 45}, "rotation"),
    ],
)
def test_impossible_videos_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        info(**changes)


def test_an_odd_frame_fills_a_cell_of_its_own() -> None:
    made = grid(11)
    assert (made.frames, made.cells, made.segments, made.tokens_per_cell) == (11, 6, 2, 2)
    assert made.cell_times_s.tolist() == [0, 1, 2, 3, 4, 5]
    assert made.cell_pts.tolist() == [0, 100, 200, 300, 400, 500]
    assert (grid(1).cells, grid(1).segments) == (1, 1)
    assert grid(8, cell_frames=1).cells == 8


def test_time_grids_must_start_at_zero_and_ascend() -> None:
    for times in ([0.5, 1.0], [0.0, 0.0], []):
        with pytest.raises(ValueError):
            replace(grid(2), times_s=np.array(times, dtype=np.float64))
    with pytest.raises(ValueError, match="must not descend"):
        replace(grid(2), frame_pts=np.array([50, 0]))


def test_frames_are_whole_cells_of_rgb_bytes() -> None:
    assert Frames(np.zeros((4, 8, 8, 3), np.uint8), 3, 2, "pyav").cells == 2
    for pixels in (np.zeros((3, 8, 8, 3), np.uint8), np.zeros((4, 8, 8, 3)), np.zeros((4, 8, 8), np.uint8)):
        with pytest.raises(ValueError):
            Frames(pixels, 0, 2, "pyav")


def test_token_grids_flatten_in_raster_order_and_print_shapes() -> None:
    tokens = torch.arange(24.0).reshape(1, 2, 3, 4)
    made = TokenGrid(tokens, tokens[None].repeat(2, 1, 1, 1, 1))
    assert made.flat[0, 4].tolist() == tokens[0, 1, 1].tolist()
    assert repr(made) == "TokenGrid(tokens=(1, 2, 3, 4) torch.float32, deepstack=(2, 1, 2, 3, 4))"
    with pytest.raises(ValueError):
        TokenGrid(tokens, tokens)
    with pytest.raises(ValueError):
        TokenGrid(tokens[0])


def test_scores_are_float32_of_one_shape() -> None:
    good = torch.tensor([[0.0, 0.0], [0.5, 1.0]])
    past = torch.tensor([False, True])
    assert EchoScores(good, good, past).novelty.tolist() == [[0.0, 0.0], [-1.0, -2.0]]
    for c, e, p in (
        (good.double(), good, past),
        (good, good[:1], past),
        (good, good, past.int()),
        (good[0], good[0], past),
    ):
        with pytest.raises(ValueError):
            EchoScores(c, e, p)


def test_token_sets_carry_positions_in_the_unpruned_grid() -> None:
    made = token_set()
    assert made.flat_index.tolist() == [1, 6, 11]
    assert made.novelty.tolist() == [0.0, -0.75, -0.75]
    assert len(made) == 3 and repr(made) == "TokenSet((3, 4) torch.float32 of grid (2, 2, 3))"


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": torch.tensor([[0, 0, 1], [1, 1, 2], [1, 0, 0]])},
        {"positions": torch.tensor([[0, 0, 1], [0, 0, 1], [1, 0, 0]])},
        {"positions": torch.zeros(2, 3, dtype=torch.int64)},
        {"echo": torch.zeros(2)},
        {"tokens": torch.ones(3)},
        {"deepstack": torch.ones(2, 2, 4)},
    ],
)
def test_token_sets_out_of_order_or_shape_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        token_set(**changes)


def test_an_empty_token_set() -> None:
    empty = token_set(
        tokens=torch.ones(0, 4), positions=torch.zeros(0, 3, dtype=torch.int64), times_s=torch.zeros(0),
        correspondence=torch.zeros(0), echo=torch.zeros(0), anchor=torch.zeros(0, dtype=torch.bool),
    )  # fmt: skip
    assert len(empty) == 0 and empty.flat_index.tolist() == []
