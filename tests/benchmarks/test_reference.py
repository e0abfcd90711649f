"""Training sees what the product shows: the same prompts, the same tokens, the same logits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.reference.clips import Batch, Clips
from benchmarks.reference.learner import Learner, as_stored
from benchmarks.reference.pictures import draw
from benchmarks.reference.recipe import RECIPES, Recipe, small, write_checkpoint
from benchmarks.reference.train import train
from benchmarks.reference.truth import IGNORED
from echoprune.data import Frames
from echoprune.models import load_answerer, load_encoder
from echoprune.models.checkpoint import PACKAGED
from echoprune.models.prompt import Prompt
from echoprune.resize import resize_frames

CLIPS = 2
CPU = torch.device("cpu")


def tiny(family: str) -> Recipe:
    return replace(small(RECIPES[family]), batch=CLIPS, cells=(6, 7), questions=3, steps=2)


@pytest.mark.parametrize("family", sorted(RECIPES))
def test_a_step_computes_what_the_product_does(family: str, tmp_path: Path) -> None:
    recipe = tiny(family)
    write_checkpoint(tmp_path, family)
    learner = Learner(tmp_path, recipe, torch.device("cpu"))
    learner.export()
    batch = Clips(tmp_path, recipe)[1]
    encoder = load_encoder(str(tmp_path), segment_cells=4, device="cpu", compute_dtype="fp32")
    answerer = load_answerer(str(tmp_path), device="cpu", compute_dtype="fp32")
    # The weights were rounded to bf16 on their way through the file.
    learner.model.load_state_dict(answerer.model.state_dict())
    with torch.no_grad():
        frames = learner.frames(batch)
        tokens, maps = learner.tokens(frames)
        _, _, right = learner.losses(batch)
    wanted: list[bool] = []
    for clip in range(CLIPS):
        pixels = as_stored(frames[clip]).numpy()
        hw = encoder.layout.frame_hw(*pixels.shape[1:3])
        pixels = resize_frames(pixels, hw, resample=encoder.layout.resample)
        grid = encoder.encode(Frames(pixels, 0, encoder.layout.cell_frames, "pyav"))
        torch.testing.assert_close(
            grid.tokens.flatten(0, 2),
            tokens[clip],
            atol=2e-2 if family == "llava_onevision" else 1e-4,
            rtol=0,
        )
        for prompt, labels in prompts(batch, clip, tokens[clip], None if maps is None else maps[:, clip]):
            inputs = answerer._inputs([prompt])
            with torch.no_grad():
                logits = answerer.model(**inputs, logits_to_keep=len(labels)).logits[0]
            wanted += (logits.argmax(-1) == labels)[labels != IGNORED].tolist()
    assert right.tolist() == wanted


def prompts(
    batch: Batch, clip: int, tokens: torch.Tensor, maps: torch.Tensor | None
) -> list[tuple[Prompt, torch.Tensor]]:
    """Each question of a clip as a prompt of its own, with its answer, and the labels of its own part."""
    block = batch.block[clip]
    found = []
    for number in range(1, int(block.max()) + 1):
        taken = (block == 0) | (block == number)
        prompt = Prompt(batch.ids[clip][taken], batch.positions[:, clip][:, taken], tokens, maps, 0)
        found.append((prompt, batch.labels[clip][block == number]))
    return found


def test_training_goes_on_where_it_stopped_and_learns(tmp_path: Path) -> None:
    recipe = replace(tiny("qwen2_5_vl"), steps=3, warm_up=1)
    assert train(tmp_path / "whole", recipe, device="cpu", workers=0)
    assert not train(tmp_path / "cut", recipe, device="cpu", workers=0, limit_s=0.0)
    assert train(tmp_path / "cut", recipe, device="cpu", workers=0)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_batches_are_the_same_whoever_makes_them(tmp_path: Path) -> None:
    recipe = tiny("qwen2_5_vl")
    write_checkpoint(tmp_path, recipe.family)
    first, second = Clips(tmp_path, recipe)[1], Clips(tmp_path, recipe)[1]
    assert torch.equal(draw(first.pictures, CPU), draw(second.pictures, CPU))
    assert torch.equal(first.ids, second.ids)
    assert first.kinds == second.kinds
    assert (first.truth > 0).any((0, 2, 3)).all()
    assert ((first.truth[:, 0] > 0) == (first.truth[:, 1] > 0)).all()


@pytest.mark.parametrize("name", sorted(PACKAGED))
def test_a_packaged_checkpoint_is_what_its_recipe_makes(name: str, tmp_path: Path) -> None:
    folder = PACKAGED[name]
    write_checkpoint(tmp_path, folder.name)
    names = {path.name for path in tmp_path.iterdir()}
    assert {path.name for path in folder.iterdir()} == names | {"model.safetensors", "README.md"}
    for file in names:
        made, packaged = ((each / file).read_text(encoding="utf-8") for each in (tmp_path, folder))
        if file in ("config.json", "generation_config.json"):
            settings = [json.loads(text) for text in (made, packaged)]
            for each in settings:
                # Of the library, not of the model.
                each.pop("transformers_version", None)
            made, packaged = (json.dumps(each, sort_keys=True) for each in settings)
        assert made == packaged, file
    assert (folder / "model.safetensors").stat().st_size <= 16 << 20
