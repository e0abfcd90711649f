"""Questions against the truth, derived a second time from their words alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from echoprune.question import Question
from echoprune.scene import COLOURS, DIRECTIONS, SHAPES, TASKS, Scene, SynthObject, plan_scene
from echoprune.scene_questions import KINDS, NOTHING, caption, scene_questions
from echoprune.templates import load_template

PLACE_NAMES = {
    (0, 0): "top left",
    (1, 0): "top",
    (2, 0): "top right",
    (0, 1): "left",
    (1, 1): "centre",
    (2, 1): "right",
    (0, 2): "bottom left",
    (1, 2): "bottom",
    (2, 2): "bottom right",
}
MINUTES = ["first", "second", "third"]
WAYS = {"left": "to the left", "right": "to the right", "up": "upwards", "down": "downwards"}
CLAUSES = {"that pops up": "popup", "that passes by": "passing", "that stands still": "still"}


def scene_of(seed: int, task: str, seconds: float) -> Scene:
    return plan_scene(np.random.default_rng(seed), seconds=seconds, size=(224, 160), task=task)


def asked(scene: Scene, seed: int = 0) -> list[Question]:
    found = scene_questions(scene, np.random.default_rng([seed, 9]), video="clip.mp4")
    assert list(found) == list(KINDS)
    assert all(question.kind == kind for kind, questions in found.items() for question in questions)
    return [question for questions in found.values() for question in questions]


def many() -> Iterator[tuple[Scene, Question]]:
    for task in TASKS:
        for seconds in (48.0, 75.0, 160.0, 900.0):
            for seed in range(25):
                scene = scene_of(seed, task, seconds)
                for question in asked(scene, seed):
                    yield scene, question


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Scene, Question]]:
    return list(many())


def only(scene: Scene, role: str, **names: str) -> SynthObject:
    (item,) = [
        item
        for item in scene.objects
        if item.role == role and all(getattr(item, name) == value for name, value in names.items())
    ]
    return item


def place(item: SynthObject, scene: Scene) -> str:
    x, y = item.centre(item.start_s)
    return PLACE_NAMES[int(3 * x / scene.size[0]), int(3 * y / scene.size[1])]


def told(scene: Scene, start_s: float, end_s: float) -> tuple[str, list[SynthObject]]:
    """The caption of a window and what it is about, from way points."""
    sentences, about = [], []
    for item in sorted(scene.objects, key=lambda item: item.start_s):
        if item.role not in ("popup", "passing") or item.start_s >= end_s or item.end_s <= start_s:
            continue
        about.append(item)
        name = f"{'An' if item.colour == 'orange' else 'A'} {item.colour} {item.shape}"
        if item.role == "popup":
            sentences.append(f"{name} pops up at the {place(item, scene)}.")
        else:
            (x0, y0), (x1, y1) = item.centre(item.start_s), item.centre(item.end_s)
            way = ("right" if x1 > x0 else "left") if x1 != x0 else ("down" if y1 > y0 else "up")
            sentences.append(f"{name} passes {WAYS[way]}.")
    return " ".join(sentences) or "Nothing happens.", about


def solve(scene: Scene, question: Question) -> tuple[str, list[SynthObject]]:
    """The answer to the words of `question`, and the things that it is about."""
    text = question.question
    popups = [item for item in scene.objects if item.role == "popup"]
    if found := re.fullmatch(r"What colour is the (\w+) (that [\w ]+)\?", text):
        item = only(scene, CLAUSES[found[2]], shape=found[1])
        return item.colour, [item]
    if found := re.fullmatch(r"What is the (\w+) thing (that [\w ]+)\?", text):
        item = only(scene, CLAUSES[found[2]], colour=found[1])
        return item.shape, [item]
    if found := re.fullmatch(r"Where does the (\w+) (\w+) (pop up|stand)\?", text):
        role = "popup" if found[3] == "pop up" else "still"
        item = only(scene, role, colour=found[1], shape=found[2])
        return place(item, scene), [item]
    if found := re.fullmatch(r"Which way does the (\w+) (\w+) pass by\?", text):
        item = only(scene, "passing", colour=found[1], shape=found[2])
        dx, dy = np.subtract(item.centre(item.end_s), item.centre(item.start_s)).tolist()
        return {(1, 0): "right", (-1, 0): "left", (0, 1): "down", (0, -1): "up"}[
            int(np.sign(dx)), int(np.sign(dy))
        ], [item]
    if found := re.fullmatch(r"Which pops up first, the (\w+) (\w+) or the (\w+) (\w+)\?", text):
        two = [only(scene, "popup", colour=found[i], shape=found[i + 1]) for i in (1, 3)]
        return min(two, key=lambda item: item.start_s).name, two
    if text == "How many things pop up?":
        return str(len(popups)), popups
    if found := re.fullmatch(r"In which minute does the (\w+) (\w+) pop up\?", text):
        item = only(scene, "popup", colour=found[1], shape=found[2])
        assert item.start_s // 60 == item.end_s // 60
        return MINUTES[int(item.start_s // 60)], [item]
    if found := re.fullmatch(r"Does (?:an(?= orange)|a(?! orange)) (\w+) (\w+) pop up\?", text):
        there = [item for item in popups if (item.colour, item.shape) == (found[1], found[2])]
        return ("yes" if there else "no"), there
    assert text == "What happens?"
    end_s = scene.duration_s if question.end_s is None else question.end_s
    return told(scene, question.start_s or 0.0, end_s)


def test_every_answer_follows_from_the_truth(pairs: list[tuple[Scene, Question]]) -> None:
    for scene, question in pairs:
        assert question.answer == solve(scene, question)[0], question


def test_event_times_are_those_of_what_is_asked_about(pairs: list[tuple[Scene, Question]]) -> None:
    for scene, question in pairs:
        about = [item for item in solve(scene, question)[1] if item.role != "still"]
        times = question.extra["event_start_s"], question.extra["event_end_s"]
        if about:
            assert times[0] == pytest.approx(min(item.start_s for item in about), abs=1e-3)
            assert times[1] == pytest.approx(max(item.end_s for item in about), abs=1e-3)
        else:
            assert times == (None, None)
        assert (question.kind or "").startswith("static_") <= (times == (None, None))


def test_options_hold_the_answer_once_among_others_of_its_sort(pairs: list[tuple[Scene, Question]]) -> None:
    sorts = {
        "colour": set(COLOURS),
        "kind": set(SHAPES),
        "position": set(PLACE_NAMES.values()),
        "direction": set(DIRECTIONS),
        "count": {"1", "2", "3", "4"},
        "time": set(MINUTES),
    }
    where: Counter[int] = Counter()
    with_options: Counter[str] = Counter()
    for scene, question in pairs:
        kind = (question.kind or "").partition("_")[2]
        if kind in ("appeared", "caption"):
            assert not question.options
            continue
        with_options[kind] += bool(question.options)
        if not question.options:
            continue
        assert (
            question.options.count(question.answer or "")
            == 1
            == len(set(question.options)) / len(question.options)
        )
        most = {"order": 2, "time": 3}.get(kind, 4)
        assert len(question.options) == most
        if kind == "order":
            two = solve(scene, question)[1]
            assert set(question.options) == {item.name for item in two}
            continue
        assert set(question.options) <= sorts[kind]
        if kind == "count":
            assert list(question.options) == sorted(question.options)
        elif most == 4:
            where[question.options.index(question.answer or "")] += 1
    total = where.total()
    assert total > 1000 and all(abs(where[place] / total - 0.25) < 0.05 for place in range(4))
    for kind, count in with_options.items():
        of = sum((question.kind or "").endswith(f"_{kind}") for _, question in pairs)
        assert 0.4 < count / of < 0.6, kind


def test_yes_and_no_are_asked_as_often_and_no_is_about_a_thing_that_is_nowhere(
    pairs: list[tuple[Scene, Question]],
) -> None:
    answers: Counter[str | None] = Counter()
    apart = 0
    for scene, question in pairs:
        if question.kind == "event_appeared":
            answers[question.answer] += 1
            colour, shape = question.question.split()[2:4]
            assert ((colour, shape) in {(item.colour, item.shape) for item in scene.objects}) == (
                question.answer == "yes"
            )
            if question.answer == "no" and colour in {item.colour for item in scene.objects}:
                apart += 1
                assert shape in {item.shape for item in scene.objects}
    assert answers["yes"] == answers["no"] == len(TASKS) * 4 * 25
    assert 0.4 < apart / answers["no"] < 0.6


def test_windows_of_captions_cut_no_event(pairs: list[tuple[Scene, Question]]) -> None:
    busy: Counter[bool] = Counter()
    for scene, question in pairs:
        if question.kind != "event_caption":
            continue
        if scene.duration_s <= 60:
            assert question.start_s is None and question.end_s is None
            continue
        assert question.start_s is not None and question.end_s == question.start_s + 30.0
        assert question.end_s <= scene.duration_s
        for item in scene.of_role("popup", "passing"):
            for border in (question.start_s, question.end_s):
                assert not item.start_s - 0.99 < border < item.end_s + 0.99
        busy[question.answer != NOTHING] += 1
    assert min(busy.values()) > 100


def test_every_kind_is_there_once_there_is_room_for_it() -> None:
    kinds = Counter(question.kind for seed in range(30) for question in asked(scene_of(seed, "still", 160.0)))
    assert set(kinds) == set(KINDS)
    for kind in kinds:
        assert kind and kind.startswith(("event_", "static_"))
    assert "event_time" not in {question.kind for question in asked(scene_of(0, "still", 60.0))}


def test_an_event_near_the_turn_of_a_minute_is_not_asked_for_its_minute(
    pairs: list[tuple[Scene, Question]],
) -> None:
    checked = 0
    for scene, question in pairs:
        if question.kind == "event_time":
            (item,) = solve(scene, question)[1]
            assert 100 <= scene.duration_s <= 180
            inner = [turn for turn in (60.0, 120.0) if turn < scene.duration_s]
            assert all(item.end_s <= turn - 4.99 or item.start_s >= turn + 4.99 for turn in inner)
            checked += 1
    assert checked > 100


def test_prompts_are_templates_that_the_package_has(pairs: list[tuple[Scene, Question]]) -> None:
    prompts = {question.prompt for _, question in pairs}
    assert prompts == {None, "brief", "yes_no"}
    for name in ("brief", "yes_no"):
        load_template(name)


def test_what_is_not_shown_is_not_asked_about() -> None:
    for seed in range(20):
        scene = scene_of(seed, "still", 160.0)
        popups = scene.of_role("popup")
        hidden = {popups[0].name, scene.of_role("still")[0].name}
        found = scene_questions(
            scene,
            np.random.default_rng(seed),
            video="v",
            shown=lambda item, hidden=hidden: item.name not in hidden,
        )
        texts = [question.question for questions in found.values() for question in questions]
        for item in (popups[0], scene.of_role("still")[0]):
            assert not any(
                item.name in text or item.shape in text.split() for text in texts if "Does a" not in text
            )
        assert not found["event_count"] and not found["event_caption"]
        assert bool(found["event_order"]) == (len(popups) > 2)
        assert bool(found["event_appeared"]) == (len(popups) > 1)


def test_one_window_for_all_of_a_scene() -> None:
    scene = scene_of(3, "still", 160.0)
    found = scene_questions(scene, np.random.default_rng(0), video="v", window_s=None)
    (question,) = found["event_caption"]
    assert (question.start_s, question.end_s, question.answer) == (None, None, told(scene, 0.0, 160.0)[0])
    assert caption(scene, 0.0, 0.01) == NOTHING


def test_same_rng_same_questions() -> None:
    scene = scene_of(3, "cuts", 160.0)
    assert asked(scene, 1) == asked(scene, 1) != asked(scene, 2)
