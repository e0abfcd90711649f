"""`echoprune demo`: a small archive of rendered clips, indexed, looked at, asked and searched. `make demo` runs it."""

from __future__ import annotations

import shlex
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.answer import summary as answer_summary
from jobs.demo_tables import show_answers, show_kept
from jobs.exits import OK, run_module
from jobs.index import summary
from jobs.progress import progress_on_stderr, shown, size
from jobs.search import search
from jobs.status import show

if TYPE_CHECKING:
    from echoprune.synth import SynthVideo

CLIPS = 6
CLIP_S = 60.0
PICTURED = 2
ASKED = 24
CAPTIONED = 2
WINDOW = "30s"
# As many tokens as three of a clip's 60 cells have.
BUDGET = "0.05"
MODEL = "reference"


@click.command()
@click.option(
    "--out", default="demo-out", show_default=True, metavar="DIR", help="Folder for clips, store and answers."
)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Equal seeds render equal clips."
)
@click.option(
    "--model",
    default=MODEL,
    show_default=True,
    help="What indexes and answers: the small model of the package, a local folder or a hub id.",
)
def demo(out: str, seed: int, model: str) -> int:
    """Render a small archive, index it on local Ray, show what is in the store, ask it and check the answers.

    Answers are held against what was rendered, and the moments that they rest on against when it happened.
    """
    from echoprune.models import model_settings
    from echoprune.status import store_status
    from echoprune.synth import render_archive
    from pipelines.config import IndexConfig
    from pipelines.index import run_index

    model_settings(model)  # a name that is none is said before a minute was spent
    folder = Path(out)
    archive, store = folder / "archive", folder / "store"
    step(f"1. echoprune synth --out {archive} --videos {CLIPS} --minutes {CLIP_S / 60:g} --seed {seed}")
    clips = render_archive(archive, videos=CLIPS, seconds=CLIP_S, seed=seed)
    videos = clips[0].path.parent
    (videos / "broken.mp4").write_bytes(b"this is not a video\n" * 50)
    click.echo(
        f"   {CLIPS} clips of {CLIP_S:.0f} s and one broken file; the truth is in {archive}/truth.jsonl"
    )
    step(f"2. echoprune index {videos} --store {store} --model {model}")
    config = IndexConfig(paths=(str(videos),), store=str(store), model=model)
    with progress_on_stderr() as progress:
        report = run_index(config, on_progress=progress)
    _echo(summary(report))
    step(f"3. echoprune status {store}")
    show(store_status(store), all_failures=False)
    step("4. what was kept")
    show_kept(store)
    for clip in clips[:PICTURED]:
        _picture(store, clip.path, folder / f"{clip.path.stem}.png")
    _ask(folder, clips, model)
    _caption(folder, clips, model)
    _search(folder, clips, model)
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


def some_of_each_kind(rows: list[str], count: int) -> list[str]:
    """`count` of the lines of a question file, evenly of all kinds and of all videos as far as that goes."""
    import json

    by_kind: dict[str, dict[str, list[str]]] = {}
    for line in rows:
        row = json.loads(line)
        by_kind.setdefault(row["kind"], {}).setdefault(row["video"], []).append(line)
    turns = []
    for number, of_videos in enumerate(by_kind.values()):
        # Each kind begins with another video.
        groups = list(of_videos.values())
        groups = groups[number % len(groups) :] + groups[: number % len(groups)]
        turns.append([line for turn in zip_longest(*groups) for line in turn if line is not None])
    taken = [line for turn in zip_longest(*turns) for line in turn if line is not None][:count]
    return [line for line in rows if line in set(taken)]


def _ask(folder: Path, clips: list[SynthVideo], model: str) -> None:
    """Some of the archive's questions, from the store alone, and what their answers are worth."""
    from echoprune.synth import QUESTIONS
    from pipelines.answer import run_answer
    from pipelines.answer_config import AnswerConfig

    questions, out = folder / QUESTIONS, folder / "answers"
    lines = (folder / "archive" / QUESTIONS).read_text(encoding="utf-8").splitlines()
    questions.write_text("".join(f"{line}\n" for line in some_of_each_kind(lines, ASKED)), encoding="utf-8")
    given = ["--model", model, "--questions", str(questions), "--out", str(out), "--budget", BUDGET]
    step(f"5. echoprune answer {folder / 'store'} {shlex.join(given)}")
    config = AnswerConfig(
        store=str(folder / "store"),
        model=model,
        questions=str(questions),
        out=str(out),
        budget=BUDGET,
    )
    with progress_on_stderr("questions") as progress:
        report = run_answer(config, on_progress=progress)
    _echo(answer_summary(report | {"accuracy": []}, noun="questions"))
    _echo(show_answers(out))


def _caption(folder: Path, clips: list[SynthVideo], model: str) -> None:
    from echoprune.answer_store import open_answers
    from echoprune.scene_questions import caption
    from pipelines.answer import run_captions
    from pipelines.answer_config import CaptionConfig

    store, out = str(folder / "store"), str(folder / "captions")
    step(f"6. echoprune caption {store} --model {model} --window {WINDOW} --out {out}")
    config = CaptionConfig(store=store, model=model, out=out, window=WINDOW)
    with progress_on_stderr("questions") as progress:
        report = run_captions(config, on_progress=progress)
    _echo(answer_summary(report, noun="captions"))
    columns = ["video", "uri", "start_s", "end_s", "raw_text", "status"]
    rows: list[dict[str, Any]] = open_answers(out).table(columns).to_pylist()
    for clip in clips[:CAPTIONED]:
        own = [row for row in rows if Path(row["uri"] or row["video"]).name == clip.path.name]
        for row in sorted(own, key=lambda row: row["start_s"]):
            start_s, end_s = row["start_s"], min(row["end_s"] or clip.duration_s, clip.duration_s)
            click.echo(
                shown(f"   {clip.path.name} {start_s:.0f}-{end_s:.0f} s: {row['raw_text'] or row['status']}")
            )
            click.echo(f"      truth: {caption(clip.scene, start_s, end_s)}")


def _search(folder: Path, clips: list[SynthVideo], model: str) -> None:
    event = clips[0].scene.of_role("popup")[0]
    words = [str(folder / "store"), event.name, "--answers", str(folder / "captions"), "--model", model]
    words += ["--limit", "3"]
    step(f"7. echoprune search {shlex.join(words)}")
    search.main(words, standalone_mode=False)
    click.echo(
        f"   truth: it pops up in {clips[0].path.name} from {event.start_s:.1f} to {event.end_s:.1f} s"
    )


def step(text: str) -> None:
    """Prints a heading."""
    click.secho(f"\n{text}", bold=True)


def _echo(lines: list[str]) -> None:
    for line in lines:
        click.echo(f"   {line}")


def _picture(store: Path, video: Path, path: Path) -> None:
    from echoprune.inspection import draw_view, view_video
    from echoprune.store import open_store

    opened = open_store(store)
    draw_view(opened, view_video(opened, video.name), path)
    click.echo(f"   kept tokens over frames: {path} ({size(path.stat().st_size)})")


if __name__ == "__main__":
    run_module(demo, "jobs.demo")
