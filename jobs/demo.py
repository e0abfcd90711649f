"""`echoprune demo`: a small archive of rendered clips, indexed, looked at, asked and searched. `make demo` runs it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.answer import examples
from jobs.answer import summary as answer_summary
from jobs.exits import OK, run_module
from jobs.index import summary
from jobs.progress import progress_on_stderr, size
from jobs.search import search
from jobs.status import show

if TYPE_CHECKING:
    from echoprune.synth import SynthVideo

CLIPS = 6
CLIP_S = 20.0
PICTURED = 2
ASKED = 3
# As many tokens as one of a clip's 20 cells has.
BUDGET = "0.05"


@click.command()
@click.option(
    "--out", default="demo-out", show_default=True, metavar="DIR", help="Folder for clips, model and store."
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Equal seeds render equal clips."
)
def demo(out: str, seed: int) -> int:
    """Render a small archive, index it on local Ray with a tiny random model, show what is in the store, and ask it.

    Random weights have nothing to say: the texts are noise. Tokens, times, evidence and tables are real.
    """
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
    _ask(clips, folder)
    step("Read it with anything:")
    click.echo(f"   duckdb -c \"SELECT uri, cells, tokens, kept FROM '{store}/videos/*.parquet'\"")
    click.echo(
        f"   duckdb -c \"SELECT question, raw_text, evidence FROM '{folder}/answers/answers/*.parquet'\""
    )
    click.echo(
        "   python -c \"import echoprune as e; s = e.open_store('"
        + f"{store}'); print(s.tokens('{clips[0].path.name}'))\""
    )
    return OK


def _ask(clips: list[SynthVideo], folder: Path) -> None:
    """Questions, captions and a search, from the store alone."""
    from pipelines.answer import run_answer, run_captions
    from pipelines.answer_config import AnswerConfig, CaptionConfig

    store, model = str(folder / "store"), str(folder / "model")
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in _questions(clips)))
    out = str(folder / "answers")
    step(f"6. echoprune answer {store} --model {model} --questions {questions} --out {out} --budget {BUDGET}")
    asked = AnswerConfig(
        store=store, model=model, questions=str(questions), out=out, budget=BUDGET, max_new_tokens=8
    )
    with progress_on_stderr("questions") as progress:
        report = run_answer(asked, on_progress=progress)
    for line in [*answer_summary(report, noun="questions"), *examples(out, 2 * ASKED)]:
        click.echo(f"   {line}")
    click.echo("   (random weights: the texts are noise; the evidence is of the tokens that were kept)")
    for clip in clips[:ASKED]:
        event = next(item for item in clip.objects if item.role == "event")
        click.echo(
            f"   truth of {clip.path.name}: {event.colour} {event.shape} from {event.start_s:.1f} to {event.end_s:.1f} s"
        )
    out = str(folder / "captions")
    step(f"7. echoprune caption {store} --model {model} --window 10s --out {out}")
    windows = CaptionConfig(store=store, model=model, out=out, window="10s", budget=BUDGET, max_new_tokens=8)
    with progress_on_stderr("questions") as progress:
        report = run_captions(windows, on_progress=progress)
    for line in [*answer_summary(report, noun="captions"), *examples(out, 2)]:
        click.echo(f"   {line}")
    words = [store, "what appears", "--answers", str(folder / "answers"), "--model", model, "--limit", "3"]
    step(f"8. echoprune search {shlex.join(words)}")
    search.main(words, standalone_mode=False)


def _questions(clips: list[SynthVideo]) -> list[dict[str, object]]:
    """Of each clip, what colour the event has, and an open question about the time when it is there."""
    rows: list[dict[str, object]] = []
    for index, clip in enumerate(clips[:ASKED]):
        event = next(item for item in clip.objects if item.role == "event")
        rows.append(
            {
                "question_id": f"{index}a",
                "video": clip.path.name,
                "kind": "event_colour",
                "question": f"What colour is the {event.shape} that appears late and is gone again?",
                "options": sorted({item.colour for item in clip.objects}),
                "answer": event.colour,
            }
        )
        rows.append(
            {
                "question_id": f"{index}b",
                "video": clip.path.name,
                "kind": "open",
                "question": "What happens?",
                "start_s": round(event.start_s - 2, 1),
            }
        )
    return rows


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
