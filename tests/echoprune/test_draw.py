"""Pictures against the truth of their scenes: they differ where and when it says so, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from echoprune.draw import Painter, texture
from echoprune.scene import COLOURS, SHAPES, Scene, SynthObject, plan_scene

SIZE = (224, 160)
TASKS = ("still", "drift", "cuts", "fade")


def scene_of(seed: int, task: str, *, seconds: float = 60.0, noise: float = 0.0) -> Scene:
    scene = plan_scene(np.random.default_rng(seed), seconds=seconds, size=SIZE, task=task)
    return replace(scene, noise=noise)


def changed(scene: Scene, other: Scene, time_s: float) -> np.ndarray:
    return (Painter(scene).frame(time_s) != Painter(other).frame(time_s)).any(axis=-1)


def box(item: SynthObject, scene: Scene, time_s: float) -> np.ndarray:
    """Where `item` may be seen: the square around its centre, seen by the camera."""
    # Three pixels for soft corners, and for the hourglass, whose ends are cut off there.
    half = item.radius * (1.3 if item.role == "plate" else 1.0) + 3
    x, y = item.centre(time_s)
    x -= scene.camera_x(time_s)
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    return (np.abs(columns - x) <= half) & (np.abs(rows - y) <= half)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(4))
def test_each_thing_is_seen_where_and_when_the_truth_says(seed: int, task: str) -> None:
    scene = scene_of(seed, task)
    for item in scene.objects:
        without = replace(scene, objects=tuple(each for each in scene.objects if each is not item))
        for time_s in np.linspace(item.start_s, item.end_s, 5)[1:-1].tolist():
            seen = changed(scene, without, time_s)
            assert not (seen & ~box(item, scene, time_s)).any(), item
            hidden = any(each.opacity(time_s) for each in scene.of_role("plate", "passing") if each != item)
            if not hidden and item.opacity(time_s) > 0.2:
                share = seen.sum() / (2 * item.radius) ** 2
                assert share > 0.2 or item.role in ("passing", "plate"), item
                assert seen.any()
        for time_s in (item.start_s - 0.05, item.end_s + 0.05):
            if 0 <= time_s < scene.duration_s:
                assert not changed(scene, without, time_s).any(), item


@pytest.mark.parametrize("task", ["still", "cuts"])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_changes_between_events(seed: int, task: str) -> None:
    scene = scene_of(seed, task)
    painter = Painter(scene)
    moving = scene.of_role("popup", "passing", "plate")
    times = np.arange(0.0, 60.0, 0.25)
    calm = [t for t in times.tolist() if not any(item.opacity(t) for item in moving)]
    for shot, start_s in enumerate(scene.shots_s):
        end_s = [*scene.shots_s, 60.0][shot + 1]
        frames = [painter.frame(t) for t in calm if start_s <= t < end_s]
        assert len(frames) > 2 and all(np.array_equal(frames[0], frame) for frame in frames)


def test_a_cut_changes_the_background() -> None:
    scene = scene_of(1, "cuts")
    painter = Painter(scene)
    for cut in scene.shots_s[1:]:
        before, after = painter.frame(cut - 0.01), painter.frame(cut)
        assert np.abs(before.astype(int) - after).mean() > 8


def test_drift_moves_background_and_still_things_together() -> None:
    scene = scene_of(2, "drift")
    still_only = replace(scene, objects=tuple(scene.of_role("still")))
    painter = Painter(still_only)
    first, later = painter.frame(0.0), painter.frame(3.0)  # a quarter of the period: 8 pixels to the right
    assert scene.camera_x(3.0) == pytest.approx(8.0)
    assert np.array_equal(first[:, 8:], later[:, :-8])
    half = painter.frame(0.12)  # between whole pixels the picture is blended, not stepped
    part = scene.camera_x(0.12)
    assert 0.2 < part < 0.8
    wanted = first[:, :-1] * (1 - part) + first[:, 1:] * part
    assert np.abs(half[:, :-1] - wanted).max() <= 1.5


def test_a_fading_thing_comes_slowly() -> None:
    scene = scene_of(3, "fade")
    scene = replace(scene, objects=tuple(scene.of_role("still")[:1]))
    item, painter = scene.objects[0], Painter(scene)
    x, y = (round(each) for each in item.centre(item.start_s))
    empty = painter.frame(item.start_s - 0.1).astype(float)
    area = np.s_[y - 20 : y + 20, x - 20 : x + 20]
    levels = [
        np.abs(painter.frame(item.start_s + share * item.fade_s).astype(float) - empty)[area].mean()
        for share in (0.1, 0.3, 0.6, 1.0)
    ]
    assert levels == sorted(levels) and 0 < levels[0] < 0.2 * levels[-1]
    assert levels[1] == pytest.approx(0.3 * levels[-1], rel=0.15)


def test_the_nearest_hides_what_is_behind_it() -> None:
    back = SynthObject("still", "red", "square", 20.0, 0.0, 9.0, ((0.0, 80.0, 80.0),))
    plate = SynthObject("plate", "grey", "plate", 20.0, 1.0, 2.0, ((1.0, 80.0, 80.0),))
    painter = Painter(Scene(SIZE, 9.0, (0.0,), 0.0, 0.0, (1,), (back, plate)))
    assert painter.frame(0.5)[80, 80].tolist() == [*COLOURS["red"]]
    assert painter.frame(1.5)[80, 80].tolist() == [128, 130, 134]
    assert np.array_equal(painter.frame(2.5), painter.frame(0.5))


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_their_colour_their_rim_and_an_outline_of_their_own(shape: str) -> None:
    masks = {}
    for name in (shape, *(each for each in SHAPES if each != shape)):
        item = SynthObject("still", "pink", name, 24.0, 0.0, 9.0, ((0.0, 80.0, 80.0),))
        frame = Painter(Scene(SIZE, 9.0, (0.0,), 0.0, 0.0, (1,), (item,))).frame(0.0)
        masks[name] = (frame == COLOURS["pink"]).all(axis=-1)
        if name == shape:
            rim = (np.abs(frame.astype(int) - (20, 20, 24)).max(axis=-1) <= 2).sum()
            assert masks[name].sum() > 250 and rim > 50
            rows, columns = masks[name].nonzero()
            assert np.abs(rows - 80).max() <= 24 and np.abs(columns - 80).max() <= 24
    for name, mask in masks.items():
        if name != shape:
            union, both = (mask | masks[shape]).sum(), (mask & masks[shape]).sum()
            assert both / union < 0.85, name


@pytest.mark.parametrize("corner", [(0, 0), (0, 160), (224, 0), (224, 160), (-30, 80), (500, 80)])
def test_things_over_the_border_are_clipped(corner: tuple[int, int]) -> None:
    item = SynthObject("passing", "red", "disc", 24.0, 0.0, 9.0, ((0.0, *map(float, corner)),))
    frame = Painter(Scene(SIZE, 9.0, (0.0,), 0.0, 0.0, (1,), (item,))).frame(1.0)
    inside = 0 <= corner[0] <= 224
    assert bool((frame == COLOURS["red"]).all(axis=-1).any()) == inside


def test_grain_is_as_strong_as_the_truth_says_and_new_in_each_frame() -> None:
    noisy, clean = Painter(scene_of(0, "still", noise=3.0)), Painter(scene_of(0, "still"))
    grain = [noisy.frame(t).astype(float) - clean.frame(t) for t in (0.0, 0.5)]
    assert grain[0].std() == pytest.approx(3.0, abs=0.15) and abs(grain[0].mean()) < 0.1
    assert abs(np.corrcoef(grain[0].ravel(), grain[1].ravel())[0, 1]) < 0.05


def test_same_scene_and_time_give_the_same_picture_in_any_order() -> None:
    scene = scene_of(4, "cuts", noise=2.0)
    forward, backward = Painter(scene), Painter(scene)
    times = [0.0, 12.3, 31.0, 59.0]
    first = [forward.frame(t) for t in times]
    assert all(np.array_equal(a, backward.frame(t)) for a, t in zip(first[::-1], times[::-1], strict=True))
    assert first[0].shape == (SIZE[1], SIZE[0], 3) and first[0].dtype == np.uint8


def test_texture_tells_top_from_bottom_and_left_from_right() -> None:
    pictures = [texture(seed, 224, 160) for seed in range(20)]
    for picture in pictures:
        assert picture.std() > 8 and 40 < picture.mean() < 170
    mean = np.mean(pictures, axis=0)
    assert mean[:40].mean() - mean[-40:].mean() > 20
    warmth = mean[..., 0] - mean[..., 2]
    assert warmth[:, :40].mean() - warmth[:, -40:].mean() > 20
