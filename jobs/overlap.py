"""`echoprune overlap`: what a smaller `--keep` would have cost the answers to some questions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from echoprune.errors import ConfigError
from jobs.exits import FAILED_VIDEOS, OK, run_module
from jobs.options import options_of
from jobs.progress import progress_on_stderr, shown
from pipelines.answer_config import OverlapConfig

if TYPE_CHECKING:
    from echoprune.overlap import Overlap, RatioLoss

SHOWN_FAILURES = 5


@click.command()
@click.argument("store")
@options_of(OverlapConfig)
def overlap(**options: Any) -> int:
    """Measure what indexes with a smaller --keep than STORE's would have lost.

    STORE must be lossless (index --keep all). For each question and ratio the index's own rule is applied to the stored
    scores; then the tokens that the question's budget chooses from what is left are compared with the exact choice, and
    the log-probability of the answer (the question's own, else what the model says) after the two prompts.

    Exit code: 0 every question was measured, 3 some could not be asked, 2 wrong usage, 1 it broke.
    """
    config = OverlapConfig(**options)
    from echoprune.answer_settings import AnswerSettings
    from echoprune.models import load_answerer
    from echoprune.overlap import measure, require_comparable, summary
    from echoprune.questions import read_questions
    from echoprune.s3_options import use_s3
    from echoprune.store import open_store

    use_s3(config.s3)
    settings = AnswerSettings(**config.settings_values())
    store = open_store(config.store)
    require_comparable(store, settings)
    questions = read_questions(config.questions).questions
    keeps = [keep.strip() for keep in config.keeps.split(",") if keep.strip()]
    answerer = load_answerer(
        config.model,
        device=config.device,
        compute_dtype=config.compute_dtype,
        positions=config.positions,
        empty_cells=config.empty_cells,
    )
    folder = _folder(config.out) if config.out else None
    rows: list[Overlap] = []
    failed = 0
    with progress_on_stderr("comparisons") as progress:
        total = len(questions) * len(keeps)
        rows_of = measure(
            questions,
            store=store,
            answerer=answerer,
            settings=settings,
            keeps=keeps,
            rank_by=config.rank_by,
        )
        for row in rows_of:
            rows.append(row)
            failed += bool(row.error)
            progress({"comparisons_done": len(rows), "comparisons": total, "failed": failed})
    losses = summary(rows)
    _table(losses)
    if folder is not None:
        for path in _write(
            rows, losses, folder, title=f"what smaller indexes than {store.storage.url} would lose"
        ):
            click.echo(f"written: {shown(str(path))}")
    failures = {row.question_id: row.error for row in rows if row.error}
    for question_id, error in list(failures.items())[:SHOWN_FAILURES]:
        click.echo(shown(f"  {question_id} could not be asked: {error}"))
    return FAILED_VIDEOS if failures else OK


def _folder(out: str) -> Path:
    """The folder, made before hours are spent; ConfigError where nothing can be written in it."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".probe").touch()
        (folder / ".probe").unlink()
    except OSError as error:
        raise ConfigError(
            f"cannot write to --out {out}: {error.strerror or error}; name a folder that can be written"
        ) from error
    return folder


def _write(rows: list[Overlap], losses: list[RatioLoss], folder: Path, *, title: str) -> list[Path]:
    """The paths of the table of all comparisons and of the picture, written to `folder`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from echoprune.overlap_picture import draw_overlap

    table, picture = folder / "overlap.parquet", folder / "overlap.png"
    unfinished = table.with_suffix(".tmp")
    try:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows]), unfinished)
        unfinished.replace(table)
    except OSError as error:
        raise ConfigError(
            f"cannot write {table}: {error.strerror or error}; free space, or name another --out"
        ) from error
    draw_overlap(losses, picture, title=title)
    return [table, picture]


def _table(losses: list[RatioLoss]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("keep", "questions", "same tokens", "certified", "change of log p(answer)"):
        table.add_column(name, justify="right", no_wrap=True)
    for loss in losses:
        table.add_row(
            loss.keep,
            str(loss.questions),
            f"{loss.overlap:.1%} ± {loss.overlap_within:.1%}",
            f"{loss.certified:.0%}",
            f"{loss.logprob_change:+.4f} ± {loss.logprob_within:.4f}",
        )
    Console(markup=False, emoji=False, highlight=False).print(table)


if __name__ == "__main__":
    run_module(overlap, "jobs.overlap")
