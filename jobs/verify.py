"""`echoprune verify`: reread a store or a folder of answers, and list what is wrong."""

from __future__ import annotations

import click

from jobs.exits import BROKE, OK
from jobs.options import s3_options
from jobs.progress import shown, size
from jobs.spinner import busy
from pipelines.job_config import require_store_place


@click.command()
@click.argument("store")
@click.option(
    "--quick",
    is_flag=True,
    help="Read no vectors and hash no file that has some: finds damage to all other values, and files that are missing.",
)
@s3_options
def verify(store: str, quick: bool) -> int:
    """Reread a store, or a folder of answers, and list what is wrong with it, one line each.

    Checks every file against its receipt (bytes, sha256, rows, columns), every row against its video, and the videos
    against the plan. No run may write meanwhile.

    Exit code: 0 sound and complete, 1 something is wrong, 2 there is nothing of the kind.
    """
    from echoprune.receipt import read_receipts
    from echoprune.storage import Storage
    from echoprune.verify import verify as findings

    require_store_place(store, name="STORE")
    count = 0
    with busy() as tell:
        for line in findings(
            store, quick=quick, on_shard=lambda done, of: tell(f"{done} of {of} shards reread")
        ):
            click.echo(shown(line))
            count += 1
    if count:
        click.echo(f"{shown(store)}: {count} findings")
        return BROKE
    receipts = read_receipts(Storage(store)).values()
    read = "vectors were not read, and their files not hashed" if quick else "everything was reread"
    click.echo(
        f"{shown(store)} is sound: {sum(each.videos for each in receipts)} rows in {len(receipts)} shards, "
        f"{size(sum(each.size_bytes for each in receipts))}; {read}"
    )
    return OK
