"""`echoprune eval`: accuracy of pruning policies at equal budget. `python -m jobs.eval` is the same command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from jobs.exits import FAILED_VIDEOS, OK, run_module
from jobs.options import options_of
from jobs.progress import duration, progress_on_stderr, shown
from pipelines.evaluate_config import EvalConfig

if TYPE_CHECKING:
    from echoprune.evaluation import ResultRow


# Columns of a terminal from which intervals fit beside accuracies.
ROOMY = 100


@click.command("eval")
@click.argument("paths", nargs=-1, metavar="VIDEOS...")
@options_of(EvalConfig)
def evaluate(**options: Any) -> int:
    """Measure what pruning policies cost at equal budget, on questions whose answers are known.

    VIDEOS, named as for `echoprune index`, are indexed once for each number of frames and each keep, and every question is
    answered under each policy and budget. The budget is what the language model sees: visual tokens and the text of
    cells. eval.parquet, eval.md and eval.png in --out hold the result. Running the same command again does what is
    missing; more policies, frames, budgets and keeps may be asked for.

    Exit code: 0 every question has its answers, 3 some failed (they count as wrong), 2 wrong usage, 1 the run broke.
    """
    config = EvalConfig(**options)
    from pipelines.evaluate import run_evaluate

    with progress_on_stderr("steps", words=_words) as progress:
        report, rows = run_evaluate(config, on_progress=progress)
    _print(rows)
    for line in _summary(report):
        click.echo(line)
    return FAILED_VIDEOS if report["errors"] else OK


def _words(snapshot: dict[str, Any]) -> str:
    if snapshot["stage"] == "index":
        return f"indexing store {snapshot['stores_done'] + 1} of {snapshot['stores']}"
    return (
        f"{snapshot['settings_done']} of {snapshot['settings']} settings answered · "
        f"{snapshot['questions_per_s']:.1f} questions/s"
    )


def _summary(report: dict[str, Any]) -> list[str]:
    done, before = report["settings"]["done"], report["settings"]["before"]
    of = f"{report['questions']} questions about {report['videos']} videos"
    if done:
        earlier = f", {before} in earlier runs" if before else ""
        lines = [f"{done} settings of {of} answered in {duration(report['elapsed_s'])}{earlier}"]
    else:
        lines = [f"nothing to do: all {before} settings of {of} are answered"]
    if report["same_as_dense"]:
        lines.append(f"  {report['same_as_dense']} settings left out: all tokens fit, which is the dense run")
    reasons: dict[str, int] = {}
    for each in report["left_out"]:
        reasons[each["reason"]] = reasons.get(each["reason"], 0) + 1
    lines += [f"  {count} settings left out: {reason}" for reason, count in reasons.items()]
    if report["errors"]:
        classes = ", ".join(f"{name} {count}" for name, count in report["errors"].items())
        lines.append(f"  {sum(report['errors'].values())} answers failed and count as wrong: {classes}")
    out = report["config"]["out"].rstrip("/")
    return [shown(line) for line in [*lines, f"written: {out}/eval.parquet, eval.md, eval.png"]]


def _print(rows: list[ResultRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    from echoprune.evaluation_table import short_tables

    console = Console(markup=False, emoji=False, highlight=False)
    for title, (header, *lines) in short_tables(rows, reach=console.width >= ROOMY).items():
        console.print(title, style="bold")
        table = Table(box=None, header_style="dim", pad_edge=False)
        for place, name in enumerate(header):
            # What it is compared with alone may be broken into lines.
            justify: Literal["left", "right"] = "left" if place == 0 or name == "to" else "right"
            table.add_column(name, justify=justify, no_wrap=name != "to")
        for line in lines:
            table.add_row(*line)
        console.print(table)


if __name__ == "__main__":
    run_module(evaluate, "jobs.eval")
