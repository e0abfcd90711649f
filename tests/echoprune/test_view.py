from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echoprune.view import View, view_of


def cells(count: int, each_s: float = 1.0, *, end_s: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    times = np.arange(count) * each_s
    ends = np.append(times[1:], count * each_s if end_s is None else end_s)
    return times, ends


def seen(start_s: float | None, end_s: float | None, count: int = 10) -> View | None:
    return view_of(*cells(count), grid_hw=(2, 3), cell_frames=2, start_s=start_s, end_s=end_s)


def test_without_a_range_all_cells_are_seen() -> None:
    view = seen(None, None)
    assert view is not None
    assert (view.first_cell, view.stop_cell, view.grid_thw, view.tokens) == (0, 10, (10, 2, 3), 60)
    assert view.cell_s == 1.0
    np.testing.assert_allclose(view.centres_s, np.arange(10) + 0.25)


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        (3.0, 5.0, (3, 5)),
        (2.5, 5.0, (3, 5)),
        (3.0, 5.001, (3, 6)),
        (3.0 + 1e-12, 5.0 - 1e-12, (3, 5)),
        (None, 2.0, (0, 2)),
        (8.5, None, (9, 10)),
        (9.0, 99.0, (9, 10)),
    ],
)
def test_a_range_sees_the_cells_that_begin_in_it(
    start_s: float | None, end_s: float | None, expected: tuple[int, int]
) -> None:
    view = seen(start_s, end_s)
    assert view is not None
    assert (view.first_cell, view.stop_cell) == expected
    assert view.times_s[0] == expected[0]
    assert view.ends_s[-1] == expected[1]


@pytest.mark.parametrize(("start_s", "end_s"), [(10.0, 12.0), (3.2, 3.9), (5.0, 5.0), (0.0, 0.0)])
def test_a_range_between_cells_sees_none(start_s: float, end_s: float) -> None:
    assert seen(start_s, end_s) is None


@given(cut=st.integers(1, 9), each_s=st.sampled_from([1.0, 1 / 3, 2.002, 0.04]))
def test_neighbouring_ranges_share_no_cell_and_miss_none(cut: int, each_s: float) -> None:
    times, ends = cells(10, each_s)
    at = cut * each_s
    left = view_of(times, ends, grid_hw=(1, 1), cell_frames=2, end_s=at)
    right = view_of(times, ends, grid_hw=(1, 1), cell_frames=2, start_s=at)
    assert left is not None and right is not None
    assert left.stop_cell == right.first_cell


@pytest.mark.parametrize(
    ("end_s", "last"),
    [
        (9.5, 9.0),  # one frame: the cell ends half a second after it began
        (9.501, 9.25),
        (10.0, 9.25),
        (9.2, 9.0),
    ],
)
def test_a_last_cell_with_one_frame_shows_that_frames_time(end_s: float, last: float) -> None:
    """The library fills such a cell by its last frame, and so does the mean of its times."""
    view = view_of(*cells(10, end_s=end_s), grid_hw=(1, 1), cell_frames=2)
    assert view is not None
    assert view.centres_s[-1] == last
    assert view.centres_s[0] == 0.25


@pytest.mark.parametrize(
    ("step_s", "length_s", "centre_s"), [(0.5, 0.4, 0.0), (0.5, 1.0, 0.25), (None, 1.0, 0.25)]
)
def test_a_video_of_one_cell_needs_its_step(step_s: float | None, length_s: float, centre_s: float) -> None:
    view = view_of(np.zeros(1), np.array([length_s]), grid_hw=(1, 1), cell_frames=2, frame_step_s=step_s)
    assert view is not None
    assert view.centres_s[0] == centre_s


def test_cells_of_one_frame_are_centred_on_it() -> None:
    view = view_of(*cells(4, 0.5), grid_hw=(14, 14), cell_frames=1)
    assert view is not None
    np.testing.assert_array_equal(view.centres_s, view.times_s)


def test_a_view_checks_its_shapes() -> None:
    with pytest.raises(ValueError, match="at least one"):
        View(0, (0, 1, 1), np.zeros(0), np.zeros(0), np.zeros(0), 1.0)
    with pytest.raises(ValueError, match="ends_s"):
        View(0, (2, 1, 1), np.zeros(2), np.zeros(1), np.zeros(2), 1.0)
