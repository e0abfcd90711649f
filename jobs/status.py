"""`echoprune status`: what a store holds, what failed, what is still to do."""

from __future__ import annotations

import json
from typing import Any

import click

from jobs.exits import FAILED_VIDEOS, OK
from jobs.progress import duration, short, shown, size
from pipelines.config import require_local_store


@click.command()
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--failures", "all_failures", is_flag=True, help="List every failed and partial video.")
def status(store: str, as_json: bool, all_failures: bool) -> int:
    """Show what a store holds: videos done, partial, failed by class, missing; bytes and tokens.

    Exit code: 3 while any failed video stands, else 0.
    """
    from echoprune.status import store_status

    require_local_store(store, name="STORE")
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
    from rich.text import Text

    # Paths and messages may hold brackets, which rich would take for its markup.
    console = Console(markup=False, emoji=False, highlight=False)
    videos, settings = found["videos"], found["settings"]
    console.print(Text(shown(found["store"]), style="bold"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
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
        table.add_row(name, value)
    console.print(table)
    if not found["failures"]:
        return
    console.print()
    listing = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("status", "stage", "class"):
        listing.add_column(column)
    if all_failures:
        for column in ("video", "what"):
            listing.add_column(column, overflow="fold")
        for each in found["failures"]:
            listing.add_row(each["status"], each["stage"], each["class"], *_video_and_message(each))
    else:
        listing.add_column("videos", justify="right")
        for column in ("for example", "what"):
            listing.add_column(column, overflow="fold")
        groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for each in found["failures"]:
            groups.setdefault((each["status"], each["stage"], each["class"]), []).append(each)
        for kind, members in sorted(groups.items()):
            listing.add_row(*kind, str(len(members)), *_video_and_message(members[0]))
    console.print(listing)


def _video_and_message(failure: dict[str, Any]) -> tuple[str, str]:
    """A failed video's path, and its message without that path in it."""
    uri, message = shown(failure["uri"]), shown(failure["message"])
    return uri, message.removeprefix(f"{uri}: ")
