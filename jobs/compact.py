"""`echoprune compact`: many small shards of a store as few larger ones."""

from __future__ import annotations

import click

from jobs.exits import OK
from jobs.options import s3_options
from jobs.progress import shown
from pipelines.job_config import require_store_place


@click.command()
@click.argument("store")
@click.option(
    "--target-mb",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="MB",
    help="Merge shards until they have about so many bytes in the store; larger ones than half of it stay.",
)
@s3_options
def compact(store: str, target_mb: int) -> int:
    """Merge small shards of a store: fewer files, the same rows.

    Nothing is encoded again. While it runs a plain glob may read a video twice; `open_store` never does.
    """
    from pipelines.maintain import run_compact

    require_store_place(store, name="STORE")
    report = run_compact(store, target_bytes=target_mb << 20)
    if not report["merged"]:
        click.echo(f"nothing to do: {shown(store)} has no two shards that are small enough")
        return OK
    click.echo(
        f"{report['merged']} shards merged into {report['into']}; {report['files']} files instead of "
        f"{report['files_before']}"
    )
    return OK
