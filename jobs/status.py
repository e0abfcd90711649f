"""`echoprune status`: what a store or a folder of answers holds, what failed, what is still to do."""

from __future__ import annotations

import json
from typing import Any

import click

from jobs.exits import FAILED_VIDEOS, OK
from jobs.options import s3_options
from jobs.progress import duration, short, shown, size
from pipelines.job_config import require_store_place

SHOWN_SOURCES = 5


@click.command()
@click.argument("store")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--failures", "all_failures", is_flag=True, help="List every failed and partial video.")
@click.option(
    "--sources", is_flag=True, help="Also look at the source files: which changed or vanished since."
)
@s3_options
def status(store: str, as_json: bool, all_failures: bool, sources: bool) -> int:
    """Show what a store holds: videos done, partial, failed by class, missing; bytes and tokens.

    STORE may be a folder of answers: then it is told how many are answered, failed by class, missing.

    Exit code: 3 while any failed video or answer stands, else 0.
    """
    from echoprune.errors import ConfigError
    from echoprune.status import answers_status, is_answers, store_status

    require_store_place(store, name="STORE")
    if is_answers(store):
        if all_failures or sources:
            option, cure = (
                ("--sources", "give the store")
                if sources
                else ("--failures", "`echoprune export` writes every answer")
            )
            raise ConfigError(f"{option} is for a store, and {store} is a folder of answers: {cure}")
        found = answers_status(store)
        click.echo(json.dumps(found) if as_json else "\n".join(answer_lines(found)))
        return FAILED_VIDEOS if found["counts"]["failed"] else OK
    found = store_status(store, sources=sources)
    if as_json:
        click.echo(json.dumps(found))
    else:
        show(found, all_failures=all_failures)
        for line in source_lines(found.get("sources"), every=all_failures):
            click.echo(line)
    return FAILED_VIDEOS if found["videos"]["failed"] else OK


def answer_lines(found: dict[str, Any]) -> list[str]:
    """The lines of `status` on a folder of answers."""
    counts = found["counts"]
    lines = [
        shown(found["answers"]),
        f"answers  {counts['ok']} ok, {counts['empty']} empty, {counts['failed']} failed, {counts['missing']} to do",
        f"size     {disk(found)}, {found['shards']} shards",
    ]
    return lines + [f"failed   {count} {shown(kind)}" for kind, count in found["errors"].items()]


def source_lines(sources: dict[str, Any] | None, *, every: bool) -> list[str]:
    """What --sources adds: counts, and the files, a few of each kind unless `every` is asked for."""
    if sources is None:
        return []
    changed, vanished, unchecked = sources["changed"], sources["vanished"], sources["unchecked"]
    lines = ["", f"sources: {len(changed)} changed, {len(vanished)} vanished since they were planned"]
    if unchecked:
        lines.append(
            f"  {unchecked} could not be looked at (other urls, or objects that came after they were planned)"
        )
    for kind, uris in (("changed", changed), ("vanished", vanished)):
        some = uris if every else uris[:SHOWN_SOURCES]
        lines += [f"  {kind}: {shown(uri)}" for uri in some]
        if len(some) < len(uris):
            lines.append(f"  and {len(uris) - len(some)} more {kind}")
    return lines


def disk(found: dict[str, Any]) -> str:
    """Bytes and files, and what of the bytes on disk nothing counts."""
    words = f"{size(found['bytes'])} in {found['files']} files"
    garbage = found["garbage"]
    return words + (f" (and {size(garbage['bytes'])} to gc)" if garbage["files"] else "")


def show(found: dict[str, Any], *, all_failures: bool) -> None:
    """Prints the tables of `status`."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Paths and messages may hold brackets, which rich would take for its markup.
    console = Console(markup=False, emoji=False, highlight=False)
    videos, settings = found["videos"], found["settings"]
    by = "" if settings["keep"] == "all" else f" by {settings['rank_by']}"
    console.print(Text(shown(found["store"]), style="bold"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    ratio = found["tokens_kept"] / found["tokens_seen"] if found["tokens_seen"] else 0.0
    rows = [
        (
            "videos",
            f"{videos['ok']} ok, {videos['partial']} partial, {videos['failed']} failed, {videos['missing']} to do"
            + (f"; {found['quarantined']} of the failed quarantined" if found["quarantined"] else "")
            + (f"; {found['forgotten']} forgotten" if found["forgotten"] else ""),
        ),
        ("length", f"{duration(found['video_s'])} of video in {short(found['cells'])} cells"),
        ("tokens", f"{short(found['tokens_kept'])} kept of {short(found['tokens_seen'])} ({ratio:.1%})"),
        (
            "size",
            f"{disk(found)}, {found['shards']} of {found['shards_planned']} shards",
        ),
        ("model", f"{settings['family']}, {settings['dim']}-wide {settings['dtype']} tokens"),
        ("pruning", f"keep {settings['keep']}{by}, an anchor every {settings['anchor_every_s']:g} s"),
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
