"""`echoprune index`: videos in, a store of pruned tokens out. `python -m jobs.index` is the same command."""

from __future__ import annotations

from typing import Any

import click

from jobs.exits import finished, run_module
from jobs.options import options_of
from jobs.progress import duration, progress_on_stderr, short, shown, size
from pipelines.config import IndexConfig

SHOWN_FAILURES = 5


@click.command()
@click.argument("paths", nargs=-1)
@options_of(IndexConfig)
def index(**options: Any) -> int:
    """Index videos into a store of pruned tokens.

    PATHS are video files, globs, folders (searched for known suffixes) and manifests (.txt, .jsonl, .csv or
    .parquet with one `uri` each; relative ones start at the manifest's folder). Running the same command again does what is missing, new files included.

    Exit code: 0 all videos ok or partial, 3 some failed (they are rows of the failures table), 2 wrong usage,
    1 the run broke.
    """
    config = IndexConfig(**options)
    from pipelines.index import run_index

    with progress_on_stderr() as progress:
        report = run_index(config, on_progress=progress)
    for line in summary(report):
        click.echo(line)
    return finished(report["store"]["failed"], failed_ok=config.failed_ok)


def summary(report: dict[str, Any]) -> list[str]:
    """The lines printed at the end of a run."""
    run, store = report["run"], report["store"]
    where = shown(report["config"]["store"])
    lines = []
    if run["videos"]["of"]:
        kept = run["tokens_kept"] / run["tokens_seen"] if run["tokens_seen"] else 0.0
        lines.append(
            f"{run['videos']['done']} videos, {duration(run['video_hours'] * 3600)} of video in "
            f"{duration(run['elapsed_s'])} ({run['video_hours_per_hour']:.1f} h of video per hour); "
            f"{short(run['tokens_seen'])} tokens seen, {short(run['tokens_kept'])} kept ({kept:.0%}), "
            f"{size(run['store_bytes'])} written"
        )
    else:
        lines.append("nothing to do: every video of these paths is in the store")
    lines.append(f"store {where}: {store['ok']} ok, {store['partial']} partial, {store['failed']} failed")
    for uri, kind, message in run["failures"][:SHOWN_FAILURES]:
        lines.append(shown(f"  failed ({kind}): {message if uri in message else f'{uri}: {message}'}"))
    failed_now = len(run["failures"]) + run["failures_left_out"]
    if failed_now > SHOWN_FAILURES:
        lines.append(f"  and {failed_now - SHOWN_FAILURES} more")
    standing = store["failed"] - failed_now
    if standing > 0:
        videos = (
            "1 failed video of earlier runs was"
            if standing == 1
            else f"{standing} failed videos of earlier runs were"
        )
        lines.append(f"{videos} not tried again")
    if store["failed"] or store["partial"]:
        lines.append(f"see `echoprune status {where}`")
    return lines


if __name__ == "__main__":
    run_module(index, "jobs.index")
