"""What clips ask is what the product asks, of what they show."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.reference.asked import Prompts, whole_cells
from benchmarks.reference.clips import Clips, choose_cells, choose_window, cropped
from benchmarks.reference.recipe import RECIPES, small, write_checkpoint
from echoprune.models.prompt import place, skeleton
from echoprune.scene import TASKS, plan_scene
from echoprune.scene_questions import NOTHING, scene_questions
from echoprune.templates import template_for
from echoprune.view import view_of


@pytest.mark.parametrize("family", sorted(RECIPES))
def test_ids_and_positions_are_those_of_the_products_prompts(family: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, family)
    prompts = Prompts(tmp_path)
    scene = plan_scene(np.random.default_rng(2), seconds=160.0, size=(224, 224))
    by_kind = scene_questions(scene, np.random.default_rng(3), video="")
    questions = [question for found in by_kind.values() for question in found]
    starts = np.arange(40.0)
    view = view_of(starts, starts + 1, grid_hw=prompts.grid_hw((224, 224)), cell_frames=prompts.cell_frames)
    assert view is not None
    chosen = np.array([0, 7, 39])
    clip = prompts.clip(view, chosen, questions)
    for number, question in enumerate(questions, start=1):
        text = template_for(question, "auto").render(question)
        frame = skeleton(
            prompts.tokenizer, prompts._template, text, view, style=prompts._style,
            placeholder=prompts._placeholder,
        )  # fmt: skip
        kept = whole_cells(view, chosen)
        wanted = place(frame, kept, view, style=prompts._style, compact=prompts._style.axes == 1)
        taken = (clip.block == 0) | (clip.block == number)
        length = len(wanted.input_ids)
        assert torch.equal(clip.ids[taken][:length], wanted.input_ids)
        assert torch.equal(clip.positions[:, taken][:, :length], wanted.position_ids)
        said = clip.labels[taken][length - 1 :]
        assert prompts.tokenizer.decode(said[:-1]) == question.answer


def test_windows_cut_no_event_and_often_hold_none() -> None:
    rng = np.random.default_rng(0)
    captions = []
    for number in range(60):
        scene = plan_scene(rng, seconds=160.0, size=(224, 224), task=TASKS[1 + number % 4])
        window = choose_window(rng, scene)
        if window is None:
            continue
        within = cropped(scene, *window)
        events = within.of_role("popup", "passing")
        assert all(window[0] < item.start_s and item.end_s < window[1] for item in events)
        starts = np.arange(*window)
        cells = choose_cells(rng, within, 12, starts=starts)
        assert len(cells) == 12
        shown = {
            item.name for item in within.objects for at in starts[cells].tolist() if item.opacity(at) > 0.9
        }
        assert {item.name for item in events if item.role == "popup"} <= shown or len(events) > 3
        found = scene_questions(within, rng, video="", window_s=None)
        captions.append(found["event_caption"][0].answer)
        assert all(item.name in (captions[-1] or "").lower() for item in events)
    assert len(captions) > 30
    assert 0.25 < np.mean([answer == NOTHING for answer in captions]) < 0.75


def test_batches_of_every_form_hold_as_many_tokens(tmp_path: Path) -> None:
    recipe = replace(small(RECIPES["qwen2_5_vl"]), batch=4, cells=(6, 6), questions=2)
    write_checkpoint(tmp_path, recipe.family)
    clips = Clips(tmp_path, recipe)
    # Near, far apart, and long.
    wanted = {(4, 6), (4, 8), (1, 24)}
    found: set[tuple[int, int]] = set()
    for step in range(60):
        clips_of, _, cells, _ = clips[step].truth.shape
        found.add((clips_of, cells))
        if found >= wanted:
            break
    assert found == wanted


def test_each_answer_counts_for_the_root_of_its_ids(tmp_path: Path) -> None:
    recipe = replace(small(RECIPES["qwen2_5_vl"]), batch=3)
    write_checkpoint(tmp_path, recipe.family)
    batch = Clips(tmp_path, recipe)[0]
    assert len(batch.weights) == len(batch.asked)
    clip, at = batch.asked // batch.ids.shape[1], batch.asked % batch.ids.shape[1]
    block = batch.block[clip, at]
    answers = {(number, question) for number, question in zip(clip.tolist(), block.tolist(), strict=True)}
    assert len(answers) == sum(len(kinds) for kinds in batch.kinds)
    for number, question in answers:
        of_it = (clip == number) & (block == question)
        expected = torch.full((int(of_it.sum()),), float(of_it.sum()) ** -0.5)
        torch.testing.assert_close(batch.weights[of_it], expected)
