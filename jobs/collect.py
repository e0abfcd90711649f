"""`echoprune gc`: remove files of a store that nothing counts; `jobs/gc.py` would hide Python's own module."""

from __future__ import annotations

import click

from jobs.exits import OK
from jobs.options import s3_options
from jobs.progress import shown, size
from pipelines.job_config import require_store_place


@click.command("gc")
@click.argument("store")
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@s3_options
def collect(store: str, dry_run: bool) -> int:
    """Remove files that no receipt covers from a store or a folder of answers.

    They are left by killed runs and by shards that were written again; every run removes them too. Refused while a run
    holds the store, except with --dry-run, which then also lists what that run is writing.
    """
    from pipelines.maintain import run_gc

    require_store_place(store, name="STORE")
    found = run_gc(store, dry_run=dry_run)
    for name, count in found.files.items():
        click.echo(f"{shown(name)}  {size(count)}")
    if found.unfinished[0]:
        click.echo(f".tmp  {size(found.unfinished[1])} in {found.unfinished[0]} unfinished files")
    would = "would be removed" if dry_run else "removed"
    click.echo(f"{found.count} files, {size(found.size_bytes)} {would}")
    return OK
