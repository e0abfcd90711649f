"""Plans of scenes, over many seeds and all tasks: what they promise holds in each."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from echoprune.errors import ConfigError
from echoprune.scene import COLOURS, DIRECTIONS, MIN_CUTS_SECONDS, PLACES, SHAPES, TASKS, Scene, plan_scene

SIZES = ((224, 224), (320, 240), (128, 256))
SEEDS = range(40)


def scene_of(seed: int, *, seconds: float = 160.0, task: str = "mixed", size: tuple[int, int] = (224, 224)):
    return plan_scene(np.random.default_rng(seed), seconds=seconds, size=size, task=task)


def scenes(task: str, seconds: float) -> list[Scene]:
    if task == "cuts" and seconds < MIN_CUTS_SECONDS:
        pytest.skip("too short for cuts")
    return [scene_of(seed, seconds=seconds, task=task, size=SIZES[seed % 3]) for seed in SEEDS]


every = pytest.mark.parametrize(
    ("task", "seconds"), [(task, seconds) for task in TASKS for seconds in (6.0, 12.0, 40.0, 160.0, 3600.0)]
)


@every
def test_a_colour_or_a_shape_names_one_thing(task: str, seconds: float) -> None:
    for scene in scenes(task, seconds):
        things = [item for item in scene.objects if item.role != "plate"]
        assert len({item.colour for item in things}) == len({item.shape for item in things}) == len(things)
        assert all(item.colour in COLOURS and item.shape in SHAPES for item in things)
        assert all(item.name == f"{item.colour} {item.shape}" for item in things)


@every
def test_numbers_of_things_are_those_that_are_documented(task: str, seconds: float) -> None:
    found = set()
    for scene in scenes(task, seconds):
        assert len(scene.of_role("passing")) == 1
        stills, popups, plates = (len(scene.of_role(role)) for role in ("still", "popup", "plate"))
        assert stills == 3 if scene.task == "cuts" else stills in (2, 3)
        assert 1 <= popups <= (4 if seconds >= 60 else 2)
        assert plates in ((0, 1) if seconds >= 60 else (0,))
        found.add((popups, plates))
    assert len(found) == (8 if seconds >= 60 else 2)


@every
def test_events_come_one_after_another_and_never_across_a_cut(task: str, seconds: float) -> None:
    for scene in scenes(task, seconds):
        events = scene.of_role("popup", "passing")
        assert all(a.end_s < b.start_s for a, b in pairwise(events))
        for item in events:
            assert 0.05 * seconds <= item.start_s < item.end_s <= seconds
            length = item.end_s - item.start_s
            assert length <= 4.0 and (length >= 2.0 or length <= 0.2 * seconds + 1e-9)
            assert all(cut <= item.start_s - 0.49 or cut >= item.end_s + 0.49 for cut in scene.shots_s[1:])


@every
def test_each_thing_that_stands_or_pops_up_has_a_place_of_its_own(task: str, seconds: float) -> None:
    for scene in scenes(task, seconds):
        standing = scene.of_role("still", "popup")
        assert len({item.place for item in standing}) == len(standing)
        width, height = scene.size
        for item in standing:
            x, y = item.centre(item.start_s)
            assert item.centre(item.end_s) == (x, y)
            assert item.place == PLACES[int(y * 3 / height)][int(x * 3 / width)]
            # All of it is in its ninth of the picture, so that no two touch.
            assert x * 3 / width % 1 * width / 3 > item.radius
            assert (1 - x * 3 / width % 1) * width / 3 > item.radius
            assert y * 3 / height % 1 * height / 3 > item.radius
            assert (1 - y * 3 / height % 1) * height / 3 > item.radius
        assert all(item.place == "" for item in scene.of_role("passing", "plate"))


@every
def test_what_passes_goes_from_one_side_to_the_other(task: str, seconds: float) -> None:
    for scene in scenes(task, seconds):
        width, height = scene.size
        (item,) = scene.of_role("passing")
        (x0, y0), (x1, y1) = item.centre(item.start_s), item.centre(item.end_s)
        way = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[item.direction]
        assert item.direction in DIRECTIONS and (np.sign(x1 - x0), np.sign(y1 - y0)) == way
        for x, y in ((x0, y0), (x1, y1)):
            assert not (-item.radius < x < width + item.radius and -item.radius < y < height + item.radius)
        x, y = item.centre((item.start_s + item.end_s) / 2)
        assert 0 < x < width and 0 < y < height


@every
def test_tasks_differ_in_camera_and_in_what_stands(task: str, seconds: float) -> None:
    found = set()
    for scene in scenes(task, seconds):
        found.add(scene.task)
        stills = scene.of_role("still")
        assert (scene.drift_px > 0) == (scene.task == "drift")
        assert len(scene.background_seeds) == len(scene.shots_s) == (3 if scene.task == "cuts" else 1)
        assert scene.shots_s[0] == 0.0 and list(scene.shots_s) == sorted(scene.shots_s)
        if scene.task == "cuts":
            bounds = [*scene.shots_s, seconds]
            assert [(item.start_s, item.end_s) for item in stills] == list(pairwise(bounds))
        elif scene.task == "fade":
            for item in stills:
                assert 0 < item.fade_s <= 30 and 0 < item.start_s < item.start_s + item.fade_s < seconds
                assert item.end_s == seconds
        else:
            assert all((item.start_s, item.end_s, item.fade_s) == (0.0, seconds, 0.0) for item in stills)
    expected = {"still", "drift", "cuts"} if task == "mixed" else {task}
    assert found == expected - ({"cuts"} if seconds < MIN_CUTS_SECONDS else set())


def test_the_plate_crosses_the_whole_picture_and_hides_no_event_for_all_of_its_time() -> None:
    plates = 0
    for seed in range(300):
        scene = scene_of(seed, size=SIZES[seed % 3])
        for plate in scene.of_role("plate"):
            plates += 1
            half = 1.3 * plate.radius
            assert 15 <= plate.end_s - plate.start_s <= 25
            ends = sorted((plate.centre(plate.start_s)[0], plate.centre(plate.end_s)[0]))
            assert ends[0] <= -half and ends[1] >= scene.size[0] + half
            for item in scene.of_role("popup", "still"):
                times = np.arange(max(item.start_s, 0.0), item.end_s, 0.1).tolist()
                # A part that no time shows would be asked about all the same.
                seen = [
                    time_s
                    for time_s in times
                    if not plate.opacity(time_s)
                    or max(abs(a - b) for a, b in zip(plate.centre(time_s), item.centre(time_s), strict=True))
                    > half - 0.7 * item.radius
                ]
                assert len(seen) >= len(times) / 3
    assert 100 < plates < 200


def test_opacity_begins_and_ends_with_the_thing_and_grows_while_it_fades_in() -> None:
    item = scene_of(0, task="fade").of_role("still")[0]
    assert item.opacity(item.start_s - 0.01) == item.opacity(item.end_s) == 0.0
    assert item.opacity(item.start_s + item.fade_s / 4) == pytest.approx(0.25)
    assert item.opacity(item.start_s + item.fade_s + 0.01) == item.opacity(item.end_s - 0.01) == 1.0
    event = scene_of(0).of_role("popup")[0]
    assert [event.opacity(t) for t in (event.start_s - 0.01, event.start_s, event.end_s)] == [0.0, 1.0, 0.0]


def test_same_seed_same_scene_other_seed_another() -> None:
    assert scene_of(5) == scene_of(5)
    assert scene_of(5) != scene_of(6)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seconds": 5.0}, r"5 s is too short.*6 s"),
        ({"seconds": float("nan")}, "too short"),
        ({"seconds": float("inf")}, "too short"),
        ({"seconds": 39.0, "task": "cuts"}, r"39 s is too short for cuts.*40 s"),
        ({"size": (321, 240)}, r"321x240.*even"),
        ({"size": (320, 62)}, r"320x62.*at least 64"),
        ({"task": "dance"}, r"task is 'dance'.*mixed"),
    ],
)
def test_refuses_what_cannot_be_rendered(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        scene_of(0, **wrong)  # type: ignore[arg-type]
