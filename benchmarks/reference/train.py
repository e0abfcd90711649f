"""Training of one reference model: rendered clips, several questions each, and what every visual token shows.

    python -m benchmarks.reference train qwen2_5_vl --out DIR

Each clip's questions stand one after another in one sequence and cannot see each other: one pass over the visual
tokens serves them all. Beside the answers, tokens are drawn to the language model's own embeddings of the words for
what they show, so that relevance (the cosine of a token to a word) means something. Goes on where it was interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.reference.clips import Clips
from benchmarks.reference.learner import Learner
from benchmarks.reference.pace import Pace
from benchmarks.reference.recipe import Recipe, write_checkpoint

log = logging.getLogger(__name__)

# More steps than any run has.
_ENDLESS = 10**9


def train(
    out: Path,
    recipe: Recipe,
    *,
    device: str,
    workers: int,
    budget_s: float | None = None,
    limit_s: float | None = None,
    again: bool = False,
    start_from: Path | None = None,
    report_s: float = 20.0,
    keep_s: float = 100.0,
) -> bool:
    """Whether the run is finished; checkpoint and state are in `out` in any case, and the next call goes on from there.

    A run takes `budget_s` seconds, the start of its processes included, or `recipe.steps` steps where that is None: the
    learning rates are nothing at its end. `limit_s`: seconds after which this call stops. `again`: begins another run from
    a finished one, at half its peak. `start_from`: a checkpoint whose weights a new `out` begins with. A line of
    the log each `report_s`, checkpoint and state each `keep_s` seconds.
    """
    began = time.monotonic()

    def elapsed_s() -> float:
        return time.monotonic() - began

    if not (out / "config.json").exists():
        if start_from is None:
            write_checkpoint(out, recipe.family)
        else:
            _copy_settings(start_from, out)
    torch.manual_seed(recipe.seed)
    learner = Learner(out, recipe, torch.device(device))
    pace, step = Pace(recipe.steps, budget_s, recipe.warm_up), 0
    if (state := learner.load()) is not None:
        before, step, finished = state
        if finished and not again:
            return True
        pace = replace(pace, begun=before.begun, spent_s=before.spent_s, runs=before.runs)
        if finished:
            pace = replace(pace, begun=step, spent_s=0.0, runs=before.runs + 1)
    elif start_from is not None:
        learner.start_from(start_from)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(Clips(out, recipe), range(step, _ENDLESS)),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        worker_init_fn=_single_thread,
        multiprocessing_context="spawn" if workers else None,
        pin_memory=learner.device.type == "cuda",
    )
    log_path = out / "training.jsonl"
    recent: dict[str, list[float]] = defaultdict(list)
    reported, kept, stepped, reported_step = elapsed_s(), elapsed_s(), elapsed_s(), step
    for batch in loader:
        recent["waited_s"].append(elapsed_s() - stepped)
        row: dict[str, object] = {}
        # Each batch is new: measured before it is learnt from, it is held out.
        if step > reported_step and elapsed_s() - reported > report_s:
            losses, shares = learner.measure(batch)
            row = {
                "step": step,
                "elapsed_s": round(elapsed_s(), 1),
                "rate": round(pace.part(step, elapsed_s()), 4),
                "step_s": round((elapsed_s() - reported) / (step - reported_step), 4),
                **{name: round(sum(values) / len(values), 4) for name, values in recent.items()},
                "right": shares,
                "loss": losses,
            }
            log.info(json.dumps(row))
            with log_path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            recent.clear()
            reported, reported_step = elapsed_s(), step
        for name, value in learner.step(batch, pace.part(step, elapsed_s()), read=step % 10 == 0).items():
            recent[name].append(value)
        step += 1
        over = pace.share(step, elapsed_s()) >= 1
        if over or (limit_s is not None and elapsed_s() > limit_s):
            break
        if elapsed_s() - kept > keep_s:
            _keep(learner, pace, step, elapsed_s(), finished=False)
            kept = elapsed_s()
        stepped = elapsed_s()
    _keep(learner, pace, step, elapsed_s(), finished=over)
    return over


def _keep(learner: Learner, pace: Pace, step: int, elapsed_s: float, *, finished: bool) -> None:
    learner.export()
    learner.save(replace(pace, spent_s=pace.spent_s + elapsed_s), step, finished=finished)


def _copy_settings(folder: Path, out: Path) -> None:
    """Makes `out` a checkpoint without weights, as `folder` is: its weights mean nothing with another tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.suffix in (".json", ".jinja"):
            shutil.copyfile(path, out / path.name)


def _single_thread(worker: int) -> None:
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
