"""`echoprune forget`: remove videos from a store."""

from __future__ import annotations

import click

from jobs.exits import OK
from jobs.options import s3_options
from jobs.progress import shown, size
from pipelines.job_config import require_store_place


@click.command()
@click.argument("store")
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...")
@s3_options
def forget(store: str, videos: tuple[str, ...]) -> int:
    """Remove videos from a store: their rows, cells, tokens and failed attempts.

    VIDEO is an id, a uri or path, or a file name that only one video has. Later runs leave a forgotten video out; `index
    PATHS --bring-back` indexes it again. The source file is not touched, and answers about it stay. Its name stays in the
    plan and in the reports of earlier runs.
    """
    from pipelines.maintain import run_forget

    require_store_place(store, name="STORE")
    report = run_forget(store, videos)
    for uri in report["uris"]:
        click.echo(f"forgot {shown(uri)}")
    if not report["uris"]:
        click.echo("nothing to do: forgotten already")
    if report["shards"]:
        click.echo(f"{report['shards']} shards written again, {size(report['bytes'])} less")
    return OK
