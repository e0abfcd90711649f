"""`echoprune retry`: failed videos of a store again. `python -m jobs.retry` is the same command."""

from __future__ import annotations

from typing import Any

import click

from jobs.exits import finished, run_module
from jobs.index import summary
from jobs.options import options_of
from jobs.progress import progress_on_stderr, shown
from pipelines.retry_config import RetryConfig


@click.command()
@click.argument("store", required=False, default="")
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="CLASS",
    help="Only videos that failed with this error class, as `echoprune status` lists them; may be given several times.",
)
@options_of(RetryConfig)
def retry(**options: Any) -> int:
    """Index the failed videos of a store again, with the settings of the store.

    Each attempt is a row of the failures table; a video keeps one row in videos. The shards with such videos are
    written again, what is good in them is copied. A video stored in part keeps that part if less of it can be read now.

    Exit code: 0 no failed video is left, 3 some are, 2 wrong usage, 1 the run broke.
    """
    config = RetryConfig(**options)
    from pipelines.retry import run_retry

    with progress_on_stderr() as progress:
        report = run_retry(config, on_progress=progress)
    if report["run"]["videos"]["of"]:
        lines = summary(report)
    else:
        kind = f" of class {' or '.join(config.classes)}" if config.classes else ""
        also = " or partial" if config.partial else ""
        lines = [f"nothing to do: no failed{also} video{shown(kind)} in {shown(config.store)}"]
        if config.classes:
            more = "" if config.partial else ", --partial includes those of videos that are stored in part"
            lines.append(f"`echoprune status {shown(config.store)}` lists the classes{more}")
    for line in lines:
        click.echo(line)
    return finished(report["store"]["failed"], failed_ok=config.failed_ok)


if __name__ == "__main__":
    run_module(retry, "jobs.retry")
