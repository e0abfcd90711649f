"""The check asks what it says it asks, and what it finds is right."""

import numpy as np

from benchmarks.reference.check import check, one_of_each, table
from echoprune.models.checkpoint import PACKAGED
from echoprune.scene import plan_scene
from echoprune.scene_questions import KINDS


def test_keeping_all_is_dense_and_the_packaged_model_sees_what_stands() -> None:
    folder = PACKAGED["reference"]
    report = check(
        folder, device="cpu", clips=1, frames=32, few=16, policies=("anchored",), budget="all", seed=3
    )
    settings = report["settings"]
    assert list(settings) == ["dense", "16 frames whole", "anchored"]
    assert settings["anchored"] == settings["dense"]
    right, asked = settings["anchored"]["static"]
    assert asked == 3
    assert right >= 2
    assert f"{100 * right / asked:.1f} of 3" in table(report)


def test_the_questions_are_one_of_each_kind() -> None:
    scene = plan_scene(np.random.default_rng(0), seconds=160.0, size=(224, 224))
    kinds = [question.kind for question in one_of_each(scene, np.random.default_rng(1))]
    assert len(set(kinds)) == len(kinds) >= len(KINDS) - 2
