from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from echoprune.evidence import MOMENTS, cell_mass, moments
from echoprune.question import Evidence
from echoprune.view import View, view_of


def view(cells: int) -> View:
    times = np.arange(cells) * 1.0
    found = view_of(times, times + 1, grid_hw=(1, 4), cell_frames=2)
    assert found is not None
    return found


def test_mass_is_what_is_new_and_asked_about() -> None:
    t = np.array([1, 3, 3, 4, 5])
    change = np.array([0.0, 1.5, 1.0, 0.0, 1.5], np.float32)
    related = np.array([0.5, 0.2, 0.1, 0.5, -0.1], np.float32)
    # 1.5 x 0.04 and 1.0 x 0.01 in cell 3; what is not new, or not asked about, counts nothing.
    np.testing.assert_allclose(cell_mass(t, change, related, cells=6), [0, 0, 0, 1, 0, 0])
    np.testing.assert_allclose(cell_mass(t, change, None, cells=6), [0, 0, 0, 2.5 / 4, 0, 1.5 / 4])


def test_where_nothing_is_both_change_decides() -> None:
    t, change = np.array([0, 2, 4]), np.array([0.0, 0.5, 1.0], np.float32)
    alone = cell_mass(t, change, None, cells=5)
    np.testing.assert_allclose(alone, [0, 0, 1 / 3, 0, 2 / 3])
    np.testing.assert_allclose(cell_mass(t, change, np.float32([0.1, -0.1, -0.1]), cells=5), alone)


def test_of_two_events_the_one_that_was_asked_about_weighs_more() -> None:
    # Nine new tokens each; the second event is larger and a little newer, the first is what the words mean.
    t = np.repeat([3, 7], [9, 14])
    change = np.repeat(np.float32([1.2, 1.3]), [9, 14])
    change[0] = 0.1
    related = np.repeat(np.float32([0.5, 0.05]), [9, 14])
    [first, *_] = moments(cell_mass(t, change, related, cells=10), view(10))
    assert (first.start_s, first.end_s) == (3.0, 4.0)


def test_one_that_is_what_was_asked_about_outweighs_many_that_are_a_little_like_it() -> None:
    t = np.repeat([3, 7], [4, 20])
    change, related = np.full(24, 1.0, np.float32), np.repeat(np.float32([0.5, 0.12]), [4, 20])
    change[0] = 0.5
    [first, *_] = moments(cell_mass(t, change, related, cells=10), view(10))
    assert (first.start_s, first.end_s) == (3.0, 4.0)


def test_without_a_token_that_stands_out_each_counts_the_same() -> None:
    t = np.array([2, 4, 4])
    same = np.full(3, 1.5, np.float32)
    np.testing.assert_allclose(cell_mass(t, same, None, cells=6), [0, 0, 1 / 3, 0, 2 / 3, 0])
    np.testing.assert_allclose(cell_mass(t, same, same, cells=6), [0, 0, 1 / 3, 0, 2 / 3, 0])
    alone = cell_mass(t[:1], np.ones(1, np.float32), None, cells=6)
    assert moments(alone, view(6)) == (Evidence(2.0, 3.0, 1.0),)


def test_a_peak_is_as_wide_as_its_half_height() -> None:
    mass = np.array([0, 0, 0.1, 0.3, 0.25, 0.1, 0, 0, 0.2, 0, 0, 0])
    found = moments(mass, view(12))
    assert [(each.start_s, each.end_s) for each in found[:2]] == [(3.0, 5.0), (8.0, 9.0)]
    assert found[0].score == 0.55


def test_without_a_peak_the_whole_view_is_the_moment() -> None:
    assert moments(np.zeros(5), view(5)) == (Evidence(0.0, 5.0, 0.0),)
    assert moments(np.full(5, 0.2), view(5)) == (Evidence(0.0, 5.0, 1.0),)


@given(
    heights=arrays.arrays(np.float64, st.integers(1, 40), elements=st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]))
)
def test_moments_never_overlap_and_are_sorted(heights: np.ndarray) -> None:
    mass = heights / heights.sum() if heights.sum() else heights
    found = moments(mass, view(len(mass)))
    assert 1 <= len(found) <= MOMENTS
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    spans = sorted((each.start_s, each.end_s) for each in found)
    assert all(start < end for start, end in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert sum(each.score for each in found) <= 1 + 1e-9
    for each in found:
        inside = mass[int(each.start_s) : int(each.end_s)]
        assert abs(inside.sum() - each.score) < 1e-9


def test_the_heaviest_cell_is_always_covered() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        mass = random.random(30) ** 4
        peak = int(mass.argmax())
        assert any(each.start_s <= peak < each.end_s for each in moments(mass / mass.sum(), view(30)))
