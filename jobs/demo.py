"""`echoprune demo`: a small archive of rendered clips, indexed and looked at. `make demo` runs it."""

from __future__ import annotations

from pathlib import Path

import click

from jobs.exits import OK, run_module
from jobs.index import summary
from jobs.progress import progress_on_stderr, size
from jobs.status import show

CLIPS = 6
CLIP_S = 20.0
PICTURED = 2


@click.command()
@click.option(
    "--out", default="demo-out", show_default=True, metavar="DIR", help="Folder for clips, model and store."
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Equal seeds render equal clips."
)
def demo(out: str, seed: int) -> int:
    """Render a small archive, index it on local Ray with a tiny random model, and show what is in the store."""
    from echoprune.models.tiny import write_tiny_checkpoint
    from echoprune.status import store_status
    from echoprune.synth import render_archive
    from pipelines.config import IndexConfig
    from pipelines.index import run_index

    folder = Path(out)
    videos, model, store = folder / "videos", folder / "model", folder / "store"
    step(f"1. {CLIPS} clips of {CLIP_S:.0f} s and one broken file -> {videos}")
    clips = render_archive(videos, videos=CLIPS, seconds=CLIP_S, seed=seed)
    (videos / "broken.mp4").write_bytes(b"this is not a video\n" * 50)
    step(f"2. a tiny random model of the real class -> {model}")
    if not model.exists():
        write_tiny_checkpoint("qwen2_5_vl", model)
    command = f"echoprune index {videos} --store {store} --model {model}"
    step(f"3. {command}")
    config = IndexConfig(paths=(str(videos),), store=str(store), model=str(model))
    with progress_on_stderr() as progress:
        report = run_index(config, on_progress=progress)
    for line in summary(report):
        click.echo(f"   {line}")
    step(f"4. echoprune status {store}")
    show(store_status(store), all_failures=False)
    step("5. what was kept")
    _table(store)
    for clip in clips[:PICTURED]:
        _picture(store, clip.path, folder / f"{clip.path.stem}.png")
    step("Read the store with anything:")
    click.echo(f"   duckdb -c \"SELECT uri, cells, tokens, kept FROM '{store}/videos/*.parquet'\"")
    click.echo(
        "   python -c \"import echoprune as e; s = e.open_store('"
        + f"{store}'); print(s.tokens('{clips[0].path.name}'))\""
    )
    return OK


def step(text: str) -> None:
    """Prints a heading."""
    click.secho(f"\n{text}", bold=True)


def _table(store: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from echoprune.store import open_store

    # A file name may hold brackets, which rich would take for its markup.
    console = Console(markup=False, emoji=False, highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("video", "status", "codec", "decoder"):
        table.add_column(name, no_wrap=True)
    for name in ("seconds", "cells", "grid", "tokens", "kept"):
        table.add_column(name, no_wrap=True, justify="right")
    for row in open_store(store).videos().to_pylist():
        name = Path(row["uri"]).name
        if row["status"] == "failed":
            table.add_row(name, "failed", *["-"] * 7)
            continue
        kept = f"{row['kept']:,} ({row['kept'] / row['tokens']:.0%})"
        sizes = (
            f"{row['covered_s']:.1f}",
            str(row["cells"]),
            f"{row['grid_h']}x{row['grid_w']}",
            f"{row['tokens']:,}",
        )
        table.add_row(name, row["status"], row["codec"], row["decoder"], *sizes, kept)
    console.print(table)


def _picture(store: Path, video: Path, path: Path) -> None:
    from echoprune.inspection import draw_view, view_video
    from echoprune.store import open_store

    opened = open_store(store)
    draw_view(opened, view_video(opened, video.name), path)
    click.echo(f"   kept tokens over frames: {path} ({size(path.stat().st_size)})")


if __name__ == "__main__":
    run_module(demo, "jobs.demo")
