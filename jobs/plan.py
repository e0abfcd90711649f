"""`echoprune plan`: what an index will come to, without decoding anything."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from jobs.options import options_of
from jobs.progress import duration, short, shown, size
from pipelines.config import IndexConfig

if TYPE_CHECKING:
    from echoprune.estimate import Range

SAMPLE = 64


@click.command()
@click.argument("paths", nargs=-1)
@options_of(IndexConfig)
@click.option("--probe", is_flag=True, help=f"Read the headers of all files, not of a sample of {SAMPLE}.")
@click.option(
    "--gpus", type=click.IntRange(0), help="GPUs to estimate the time for. Default: those of this machine."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(probe: bool, gpus: int | None, as_json: bool, **options: Any) -> None:
    """Estimate videos, hours, tokens, bytes and time of an index run with the same options.

    Nothing is decoded and nothing is written. Sizes are those of all files, lengths those of a sample.
    """
    config = IndexConfig(**options)
    from pipelines.forecast import forecast

    found = forecast(config, probe=None if probe else SAMPLE, gpus=gpus)
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    totals, new = found.estimate, found.new_videos
    click.echo(
        f"{totals.videos:,} videos, {size(totals.source_bytes)}; {new:,} of them are not in {shown(config.store)} yet"
    )
    sampled = (
        "headers of all files read" if totals.probed == totals.videos else f"from {totals.probed} headers"
    )
    rows = [
        ("length", _range(totals.video_s, duration), sampled),
        ("cells", _range(totals.cells, short), f"{config.fps} frames/s" if config.frames is None else ""),
        ("tokens", _range(totals.tokens, short), "seen by the encoder"),
        ("kept", _range(totals.kept, short), f"keep {config.keep}, anchor every {config.anchor_every:g} s"),
        ("store", _range(totals.store_bytes, size), "before compression"),
        ("time", _range(found.time_s, duration), found.time_basis),
    ]
    for name, value, note in rows:
        click.echo(f"  {name:8} {value:28} {note}".rstrip())
    for kind, count in sorted(totals.unreadable.items()):
        click.echo(f"  {count} of the files whose headers were read cannot be indexed: {kind}")


def _range(values: Range, words: Any) -> str:
    if values.low == values.high:
        return str(words(values.middle))
    return f"{words(values.middle)} ({words(values.low)} to {words(values.high)})"
