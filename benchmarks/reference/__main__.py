"""`python -m benchmarks.reference train FAMILY --out DIR` trains one reference model, `check DIR` asks what it has learnt."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path

# Before torch: no two batches are of one shape, and in blocks of fixed size their leftovers add up, until each step waits
# for memory to be given back and taken anew (550 ms a step for 220).
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import click
import torch

from benchmarks.reference.check import POLICIES, check, table
from benchmarks.reference.recipe import RECIPES, small
from benchmarks.reference.train import train


@click.group()
def main() -> None:
    """Reference models: training, and what the package carries of it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")


@main.command("train")
@click.argument("family", type=click.Choice(sorted(RECIPES)))
@click.option(
    "--out", required=True, metavar="DIR", help="Where the checkpoint and the state of training go."
)
@click.option("--small", "is_small", is_flag=True, help="The recipe for 2 CPU cores.")
@click.option("--steps", type=click.IntRange(1), help="Another number of steps than the recipe's.")
@click.option(
    "--budget-s", type=float, help="A run of so many seconds, at whose end the rate is nothing, not of steps."
)
@click.option("--limit-s", type=float, help="Stop after so many seconds; the same command goes on.")
@click.option("--again", is_flag=True, help="Another run after a finished one, at half its peak rate.")
@click.option("--from", "start_from", metavar="FOLDER", help="Begin with the weights of this checkpoint.")
@click.option("--batch", type=click.IntRange(1), help="Clips a step, other than the recipe's.")
@click.option("--learning-rate", type=float, help="Another peak than the recipe's, of AdamW.")
@click.option("--matrix-rate", type=float, help="Another peak than the recipe's, of Muon.")
@click.option("--seed", type=int, help="Of the clips and of weights from scratch, other than the recipe's.")
@click.option("--workers", type=click.IntRange(0), help="Processes that render. Default: all cores but one.")
@click.option("--device", help="cuda or cpu. Default: cuda where there is one.")
def train_command(
    family: str,
    out: str,
    *,
    is_small: bool,
    steps: int | None,
    budget_s: float | None,
    limit_s: float | None,
    again: bool,
    start_from: str | None,
    batch: int | None,
    learning_rate: float | None,
    matrix_rate: float | None,
    seed: int | None,
    workers: int | None,
    device: str | None,
) -> None:
    """Train one model; the same command again goes on where it stopped."""
    recipe = small(RECIPES[family]) if is_small else RECIPES[family]
    others = {
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "matrix_rate": matrix_rate,
        "seed": seed,
    }
    recipe = dataclasses.replace(
        recipe, **{name: value for name, value in others.items() if value is not None}
    )
    finished = train(
        Path(out),
        recipe,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        workers=max(1, (os.cpu_count() or 2) - 1) if workers is None else workers,
        budget_s=budget_s,
        limit_s=limit_s,
        again=again,
        start_from=None if start_from is None else Path(start_from),
    )
    click.echo(f"finished: {out}" if finished else "stopped at the limit: the same command goes on")


@main.command("check")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--clips", type=click.IntRange(1), default=300, show_default=True, help="Scenes asked about.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the scenes.")
@click.option(
    "--frames", type=click.IntRange(2), default=320, show_default=True, help="Frames that are pruned."
)
@click.option("--budget", default="512", show_default=True, help="Tokens that are left of them.")
@click.option("--policies", default=",".join(POLICIES), show_default=True, help="What chooses, by commas.")
@click.option("--limit-s", type=float, help="Stop after so many seconds, with fewer scenes.")
@click.option(
    "--json", "report", metavar="FILE", help="Also write right and asked by setting and kind there."
)
@click.option("--device", default="auto", show_default=True, help="cuda or cpu.")
def check_command(
    folder: Path,
    *,
    clips: int,
    seed: int,
    frames: int,
    budget: str,
    policies: str,
    limit_s: float | None,
    report: str | None,
    device: str,
) -> None:
    """Accuracy of the checkpoint in FOLDER by kind of question, on rendered scenes that training has not seen."""
    found = check(
        folder,
        clips=clips,
        seed=seed,
        frames=frames,
        budget=budget,
        policies=policies.split(","),
        limit_s=limit_s,
        device=device,
    )
    if report is not None:
        Path(report).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    click.echo(table(found))


if __name__ == "__main__":
    main()
