"""`echoprune caption`: a text for each stretch of the stored videos. `python -m jobs.caption` is the same command."""

from __future__ import annotations

from typing import Any

import click

from jobs.answer import finish, rates
from jobs.exits import run_module
from jobs.options import options_of
from jobs.progress import progress_on_stderr
from pipelines.answer_config import CaptionConfig


@click.command()
@click.argument("store")
@options_of(CaptionConfig)
@click.option(
    "--videos",
    multiple=True,
    metavar="VIDEO",
    help="Caption this video alone, an id, uri, path or file name, again for several. Default: all that are stored.",
)
@click.option("--limit", type=click.IntRange(0), default=0, help="Print this many captions at the end.")
def caption(limit: int, **options: Any) -> int:
    """Caption the videos of STORE, stretch by stretch; no video is opened.

    Captions are answers: rows of the same columns in --out, with `kind` caption and the stretch in `start_s`, `end_s`. A
    stretch of which nothing is stored has status empty. Running the same command again does what is missing.

    Exit code: 0 every stretch has its caption or is empty, 3 some failed, 2 wrong usage, 1 the run broke.
    """
    config = CaptionConfig(**options)
    from pipelines.answer import run_captions

    with progress_on_stderr("questions", words=rates) as progress:
        report = run_captions(config, on_progress=progress)
    return finish(report, limit=limit, noun="captions")


if __name__ == "__main__":
    run_module(caption, "jobs.caption")
