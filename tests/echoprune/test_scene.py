import numpy as np
import pytest

from echoprune.errors import ConfigError
from echoprune.scene import COLOURS, SHAPES, Scene, SynthObject, draw_frame, plan_scene

SIZE = (320, 240)


def scene_of(
    seed: int, *, seconds: float = 20.0, drift_px: float = 0.0, size: tuple[int, int] = SIZE
) -> Scene:
    return plan_scene(np.random.default_rng(seed), seconds=seconds, size=size, drift_px=drift_px)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("seconds", [6.0, 20.0, 600.0])
def test_plan_has_still_things_one_crossing_and_one_brief_event(seed: int, seconds: float) -> None:
    scene = scene_of(seed, seconds=seconds, size=(160, 120))
    roles = [item.role for item in scene.objects]
    assert roles == ["still", "still", "still", "moving", "event"]
    assert len({item.colour for item in scene.objects}) == 5
    crossing, event = scene.objects[3:]
    assert all((item.start_s, item.end_s) == (0.0, seconds) for item in scene.objects[:3])
    assert 0 < crossing.start_s < crossing.end_s < event.start_s
    assert 1.0 <= event.end_s - event.start_s <= 2.0
    assert event.end_s <= seconds


@pytest.mark.parametrize("seed", range(20))
def test_nothing_hides_anything(seed: int) -> None:
    scene = scene_of(seed)
    for time_s in np.arange(0, 20, 0.5):
        shown = [item for item in scene.objects if item.start_s <= time_s < item.end_s]
        centres = [np.array(item.centre(time_s)) for item in shown]
        for i, first in enumerate(shown):
            for j in range(i):
                apart = float(np.linalg.norm(centres[i] - centres[j]))
                assert apart > first.radius + shown[j].radius


def test_crossing_enters_on_one_side_and_leaves_on_the_other() -> None:
    crossing = scene_of(0).objects[3]
    ends = sorted(crossing.centre(t)[0] for t in (crossing.start_s, crossing.end_s))
    assert ends == pytest.approx([-crossing.radius, SIZE[0] + crossing.radius])


@pytest.mark.parametrize("role", ["moving", "event"])
def test_frames_change_only_where_and_when_the_truth_says(role: str) -> None:
    scene = scene_of(3)
    item = next(item for item in scene.objects if item.role == role)
    before, during = (
        draw_frame(scene, item.start_s - 0.01),
        draw_frame(scene, (item.start_s + item.end_s) / 2),
    )
    changed = (before != during).any(axis=2)
    x, y = item.centre((item.start_s + item.end_s) / 2)
    rows, columns = np.nonzero(changed)
    assert changed.any()
    assert np.hypot(rows - y, columns - x).max() <= 1.5 * item.radius + 2
    assert during[round(y), round(x)].tolist() != before[round(y), round(x)].tolist() or item.shape == "ring"
    assert np.array_equal(before, draw_frame(scene, item.end_s))


def test_a_still_scene_is_truly_still() -> None:
    scene = scene_of(1)
    assert np.array_equal(draw_frame(scene, 0.0), draw_frame(scene, 3.9))


def test_objects_have_their_colour_at_their_centre() -> None:
    grey = np.full((64, 64, 3), 100, np.float32)
    for colour in COLOURS:
        for shape in SHAPES:
            item = SynthObject("still", colour, shape, 16.0, 0.0, 1.0, ((0.0, 32.0, 32.0),))
            frame = draw_frame(Scene(grey, (64, 64), 1.0, 0.0, (item,)), 0.0)
            inside = (32, 32 + (11 if shape == "ring" else 0))
            assert tuple(frame[inside]) == COLOURS[colour]
            assert tuple(frame[0, 0]) == (100, 100, 100)
            if shape == "ring":
                assert tuple(frame[32, 32]) == (100, 100, 100)


def test_drift_moves_background_and_still_objects_together() -> None:
    scene = scene_of(2, drift_px=10.0)
    still = scene.objects[0]
    start, quarter = still.centre(0.0), still.centre(3.0)  # a quarter of the period: 10 pixels to the right
    assert start[0] - quarter[0] == pytest.approx(10.0, abs=0.1)
    assert start[1] == quarter[1]
    first, later = draw_frame(scene, 0.0), draw_frame(scene, 3.0)
    # The camera is 10 pixels further to the right: the picture has gone to the left by as much.
    assert np.abs(first[:, 10:].astype(int) - later[:, :-10]).max() <= 8
    assert np.abs(first.astype(int) - later).max() > 50


def test_same_seed_same_scene_other_seed_another() -> None:
    assert scene_of(5).objects == scene_of(5).objects
    assert np.array_equal(draw_frame(scene_of(5), 7.3), draw_frame(scene_of(5), 7.3))
    assert scene_of(5).objects != scene_of(6).objects


def test_refuses_what_cannot_be_rendered() -> None:
    with pytest.raises(ConfigError, match=r"5 s is too short.*6 s"):
        scene_of(0, seconds=5.0)
    with pytest.raises(ConfigError, match=r"321x240.*even"):
        scene_of(0, size=(321, 240))
