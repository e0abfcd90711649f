"""A run ends annealed at its time or step, is cut and goes on, and another begins lower."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.reference.learner import ALIGNMENT, Learner
from benchmarks.reference.pace import Pace
from benchmarks.reference.recipe import RECIPES, small
from benchmarks.reference.train import train
from echoprune.models.checkpoint import PACKAGED

RECIPE = replace(
    small(RECIPES["qwen2_5_vl"]),
    sizes=((112, 112),),
    batch=1,
    cells=(6, 6),
    questions=2,
    steps=2,
    warm_up=1,
)


def test_the_rate_rises_holds_and_ends_at_nothing() -> None:
    timed = Pace(steps=1, budget_s=100.0, warm_up=10)
    assert timed.part(0, 0.0) == pytest.approx(0.1)
    assert timed.part(500, 30.0) == pytest.approx(1.0)
    assert timed.part(500, 70.0) == pytest.approx(0.5)
    assert timed.part(5, 100.0) == 0
    assert timed.share(7, 250.0) == 1
    counted = Pace(steps=1000, budget_s=None, warm_up=10)
    assert [round(counted.part(step, 1e9), 6) for step in (100, 700, 1000)] == [1, 0.5, 0]


def test_a_cut_run_goes_on_and_another_begins_lower() -> None:
    cut = Pace(steps=1, budget_s=100.0, warm_up=10, spent_s=60.0)
    assert cut.part(900, 10.0) == pytest.approx(0.5)
    again = Pace(steps=1, budget_s=100.0, warm_up=10, begun=900, runs=1)
    assert again.part(900, 0.0) == pytest.approx(0.05)
    assert again.part(950, 10.0) == pytest.approx(0.5)


def test_a_run_of_seconds_is_finished_when_they_are_over_and_another_goes_on(tmp_path: Path) -> None:
    learned = tmp_path / "a"
    assert not train(learned, RECIPE, device="cpu", workers=0, budget_s=1e6, limit_s=0.0)
    begun = (learned / "model.safetensors").read_bytes()
    assert train(learned, RECIPE, device="cpu", workers=0, budget_s=0.01)
    first = (learned / "model.safetensors").read_bytes()
    # Finished is finished, unless another run is asked for.
    assert train(learned, RECIPE, device="cpu", workers=0, budget_s=0.01)
    assert (learned / "model.safetensors").read_bytes() == first
    assert train(learned, RECIPE, device="cpu", workers=0, again=True, report_s=0.0)
    assert (learned / "model.safetensors").read_bytes() != begun
    rows = (learned / "training.jsonl").read_text().splitlines()
    # The first step has nothing before it to tell of.
    assert len(rows) == RECIPE.steps - 1
    assert '"right": {"all"' in rows[0]


def test_a_new_run_begins_with_the_weights_and_the_tokenizer_of_a_checkpoint(tmp_path: Path) -> None:
    # Its tokenizer is not the one that would be made today.
    packaged = PACKAGED["reference"]
    out = tmp_path / "a"
    assert train(out, RECIPE, device="cpu", workers=0, budget_s=1e-9, start_from=packaged)
    for name in ("tokenizer.json", "config.json"):
        assert (out / name).read_bytes() == (packaged / name).read_bytes()
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (out, packaged))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    # What its alignment learnt comes with it, where it is there.
    assert (out / ALIGNMENT).exists()
    learners = [Learner(out, RECIPE, torch.device("cpu")) for _ in range(2)]
    learners[1].start_from(out)
    assert not torch.equal(learners[0].ways, learners[1].ways)
