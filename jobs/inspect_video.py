"""`echoprune inspect`: what was kept of one video, as text and as a picture."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from echoprune.errors import ConfigError, StoreError
from jobs.options import s3_options
from jobs.progress import duration, short, shown
from pipelines.job_config import require_store_place

if TYPE_CHECKING:
    from echoprune.inspection import VideoView
    from echoprune.store import TokenStore

BAR = " ▁▂▃▄▅▆▇█"
BAR_WIDTH = 60


@click.command(name="inspect")
@click.argument("store")
@click.argument("video")
@click.option("--png", metavar="FILE", help="Draw kept tokens over frames, and novelty over time, into FILE.")
@click.option(
    "--moments", default=12, show_default=True, type=click.IntRange(1), help="Moments listed and drawn."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: the video's row and its cells.")
@s3_options
def inspect_video(store: str, video: str, png: str | None, moments: int, as_json: bool) -> None:
    """Show what STORE keeps of VIDEO (an id, a uri or a file name)."""
    from echoprune.inspection import draw_view, view_video
    from echoprune.store import open_store

    require_store_place(store, name="STORE")
    opened = open_store(store)
    video_id = _video_with_tokens(opened, video)
    view = view_video(opened, video_id)
    if as_json:
        cells = opened.cells(video_id).drop_columns(["video_id", "pooled"]).to_pylist()
        click.echo(json.dumps({"video": view.row, "cells": cells}))
    else:
        for line in describe(view, moments=moments):
            click.echo(line)
    if png:
        draw_view(opened, view, png, shown=moments)
        click.echo(f"picture written to {shown(png)}", err=as_json)


def _video_with_tokens(store: TokenStore, video: str) -> str:
    """The id of the video meant; ConfigError if there is none, or it failed: the store is well, the name is not."""
    videos = store.videos()
    try:
        # Names that are not UTF-8 are stored escaped.
        video_id = store.resolve(os.fsencode(video).decode("utf-8", "backslashreplace"))
    except StoreError as error:
        raise ConfigError(str(error)) from error
    row = next(row for row in videos.to_pylist() if row["video_id"] == video_id)
    if row["status"] == "failed":
        raise ConfigError(
            f"{row['uri']} failed ({row['error_class']}: {row['error']}) and has no tokens: name another video"
        )
    return video_id


def describe(view: VideoView, *, moments: int) -> list[str]:
    """The text of `inspect`: the video, a strip of kept tokens over time, and its moments."""
    row = view.row
    per_cell = row["grid_h"] * row["grid_w"]
    vfr = ", variable frame rate" if row["vfr"] else ""
    turned = f", rotated by {row['rotation']} degrees" if row["rotation"] else ""
    lines = [
        shown(row["uri"]),
        f"  id {row['video_id']}, {row['status']}" + (f": {shown(row['error'])}" if row["error"] else ""),
        f"  {row['codec']} {row['width']}x{row['height']} {row['pix_fmt']}{vfr}{turned}, {duration(row['duration_s'])}, "
        f"stream {row['stream_index']} decoded by {row['decoder']}",
        f"  {row['cells']} cells of {row['grid_h']}x{row['grid_w']} tokens cover {duration(row['covered_s'])}; "
        f"{short(row['kept'])} of {short(row['tokens'])} tokens kept ({row['kept'] / row['tokens']:.1%}), "
        f"{row['anchors']} cells whole",
        "",
        f"  kept per cell |{strip(view)}| 0 to {duration(row['covered_s'])}",
        "",
        "    time       novelty   kept",
    ]
    for t in view.moments(moments):
        note = "  whole" if view.anchor[t] else ""
        novelty = "      -" if t == 0 else f"{view.mean_novelty[t]:7.3f}"
        share = view.kept[t] / per_cell
        lines.append(f"    {view.times_s[t]:8.2f} s {novelty}   {view.kept[t]:4d} {share:4.0%}{note}")
    return lines


def strip(view: VideoView) -> str:
    """Kept tokens over time as a line of bars: a full bar is a whole cell."""
    import numpy as np

    per_cell = view.row["grid_h"] * view.row["grid_w"]
    parts = np.array_split(view.kept / per_cell, min(BAR_WIDTH, len(view.kept)))
    return "".join(BAR[int(np.ceil(part.mean() * (len(BAR) - 1)))] for part in parts)
