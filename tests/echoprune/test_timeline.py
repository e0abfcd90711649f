import numpy as np
import pytest

from echoprune.timeline import Timeline, _grouped, _tick_step_s


def timeline_of(times_s: list[float]) -> Timeline:
    count = len(times_s)
    return Timeline(np.array(times_s), np.zeros(count), np.zeros(count, np.int64), np.zeros(count, bool), 4)


def test_edges_end_with_a_cell_as_long_as_the_one_before() -> None:
    assert timeline_of([0.0, 1.0, 3.0]).edges_s.tolist() == [0.0, 1.0, 3.0, 5.0]
    assert timeline_of([0.0]).edges_s.tolist() == [0.0, 1.0]


def test_no_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="T > 0"):
        timeline_of([])


@pytest.mark.parametrize(
    ("cells", "size", "groups"), [(1, 1, 1), (600, 1, 600), (601, 2, 301), (7200, 12, 600)]
)
def test_groups_hold_every_cell_once(cells: int, size: int, groups: int) -> None:
    values, edges = np.arange(cells) * 1.0, np.arange(cells + 1) * 0.5
    grouped, group_edges, found = _grouped(values, edges)
    assert (found, grouped.shape) == (size, (groups, size))
    assert grouped[np.isfinite(grouped)].tolist() == values.tolist()
    assert len(group_edges) == groups + 1
    assert (group_edges[0], group_edges[-1]) == (0.0, cells * 0.5)


@pytest.mark.parametrize(
    ("length_s", "step_s"), [(4, 0.5), (20, 2), (100, 10), (599, 60), (7200, 900), (86_400, 10_800)]
)
def test_ticks_are_few_and_round(length_s: float, step_s: float) -> None:
    assert _tick_step_s(length_s) == step_s
