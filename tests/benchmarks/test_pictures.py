"""What is drawn many scenes at a time is what the product's painter draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.reference.pictures import draw, plan_pictures
from echoprune.draw import Painter
from echoprune.scene import plan_scene

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(224, 224), (168, 280)])
def test_frames_are_the_painters(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    tasks = ("still", "drift", "cuts", "fade")
    scenes = [replace(plan_scene(rng, seconds=160.0, size=size, task=task), noise=0.0) for task in tasks]
    # Middles of all that happens, so that things of every kind are in sight, and a few times besides.
    times = [
        np.sort(
            [*rng.uniform(0, 160, 4), *((item.start_s + item.end_s) / 2 for item in scene.of_role("popup"))]
            + [item.start_s + share for item in scene.of_role("passing", "plate") for share in (0.4, 1.6)]
        )
        for scene in scenes
    ]
    frames = draw(plan_pictures(scenes, times, seed=0), CPU).numpy()
    painters = [Painter(scene) for scene in scenes]
    wanted = np.stack(
        [
            painter.frame(time_s)
            for painter, of_scene in zip(painters, times, strict=True)
            for time_s in of_scene.tolist()
        ]
    )
    apart = np.abs(frames.astype(int) - wanted)
    # Sums in another order: a value on the border between two levels may fall on the other side.
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


def test_grain_has_the_scenes_spread_and_its_own_seed() -> None:
    scene = plan_scene(np.random.default_rng(1), seconds=160.0, size=(224, 224), task="still")
    times = [np.array([1.0, 3.0])]

    def drawn(noise: float, seed: int) -> np.ndarray:
        return draw(plan_pictures([replace(scene, noise=noise)], times, seed=seed), CPU).numpy().astype(float)

    grain = drawn(2.5, 3) - drawn(0.0, 3)
    assert abs(grain.std() - np.sqrt(2.5**2 + 1 / 12)) < 0.05
    assert np.array_equal(drawn(2.5, 3), drawn(2.5, 3))
    assert not np.array_equal(drawn(2.5, 3), drawn(2.5, 4))
