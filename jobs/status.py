"""`echoprune status`: what a store holds, what failed, what is still to do."""

from __future__ import annotations

import json
from typing import Any

import click

from jobs.exits import FAILED_VIDEOS, OK
from jobs.progress import duration, short, size


@click.command()
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--failures", "all_failures", is_flag=True, help="List every failed and partial video.")
def status(store: str, as_json: bool, all_failures: bool) -> int:
    """Show what a store holds: videos done, partial, failed by class, missing; bytes and tokens.

    Exit code: 3 while any failed video stands, else 0.
    """
    from echoprune.status import store_status

    found = store_status(store)
    if as_json:
        click.echo(json.dumps(found))
    else:
        show(found, all_failures=all_failures)
    return FAILED_VIDEOS if found["videos"]["failed"] else OK


def show(found: dict[str, Any], *, all_failures: bool) -> None:
    """Prints the tables of `status`."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    videos, settings = found["videos"], found["settings"]
    console.print(f"[bold]{found['store']}[/bold]", highlight=False)
    table = Table.grid(padding=(0, 2))
    ratio = found["tokens_kept"] / found["tokens_seen"] if found["tokens_seen"] else 0.0
    rows = [
        (
            "videos",
            f"{videos['ok']} ok, {videos['partial']} partial, {videos['failed']} failed, {videos['missing']} to do",
        ),
        ("length", f"{duration(found['video_s'])} of video in {short(found['cells'])} cells"),
        ("tokens", f"{short(found['tokens_kept'])} kept of {short(found['tokens_seen'])} ({ratio:.1%})"),
        (
            "size",
            f"{size(found['bytes'])} in {found['files']} files, {found['shards']} of {found['shards_planned']} shards",
        ),
        ("model", f"{settings['family']}, {settings['dim']}-wide {settings['dtype']} tokens"),
        ("pruning", f"keep {settings['keep']}, an anchor every {settings['anchor_every_s']:g} s"),
    ]
    for name, value in rows:
        table.add_row(f"[dim]{name}[/dim]", value)
    console.print(table, highlight=False)
    if not found["failures"]:
        return
    console.print()
    listing = Table(box=None, header_style="bold", pad_edge=False)
    if all_failures:
        for column in ("status", "stage", "class", "what"):
            listing.add_column(column, overflow="fold")
        for each in found["failures"]:
            listing.add_row(each["status"], each["stage"], each["class"], each["message"])
    else:
        for column in ("status", "stage", "class"):
            listing.add_column(column)
        listing.add_column("videos", justify="right")
        listing.add_column("for example", overflow="fold")
        groups: dict[tuple[str, str, str], list[str]] = {}
        for each in found["failures"]:
            groups.setdefault((each["status"], each["stage"], each["class"]), []).append(each["message"])
        for (state, stage, kind), messages in sorted(groups.items()):
            listing.add_row(state, stage, kind, str(len(messages)), messages[0])
    console.print(listing, highlight=False, markup=False)
