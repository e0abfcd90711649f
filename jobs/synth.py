"""`echoprune synth`: renders an archive of clips with questions and truth. `python -m jobs.synth` is the same command."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from echoprune.errors import ConfigError
from jobs.exits import OK, run_module
from jobs.progress import duration, progress_on_stderr, shown, size

if TYPE_CHECKING:
    from echoprune.synth import SynthVideo


@click.command()
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    help="Folder of the archive; made if missing, gone on with if begun.",
)
@click.option("--videos", default=6, show_default=True, type=click.IntRange(1), help="Clips to render.")
@click.option("--minutes", default=2.0, show_default=True, type=float, help="Length of each clip.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Equal seeds give equal archives."
)
@click.option(
    "--task",
    default="mixed",
    show_default=True,
    help="still: a camera at rest; drift: one that swings; cuts: three shots; fade: still things that come slowly into "
    "sight; mixed: any of the first three.",
)
@click.option(
    "--size", "picture", default="224x224", show_default=True, help="Width and height in pixels, even."
)
@click.option(
    "--questions",
    type=click.IntRange(1),
    metavar="N",
    help="Questions of each clip at most, evenly of all kinds. Default: all that it answers.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes that render. Default: one for each core.")
def synth(
    *,
    out: str,
    videos: int,
    minutes: float,
    seed: int,
    task: str,
    picture: str,
    questions: int | None,
    workers: int | None,
) -> int:
    """Render an archive of clips, with questions about them and the truth of what is where and when.

    In --out: videos/ (H.264, HEVC, VP9, variable rate, rotated), questions.jsonl for `echoprune answer` and `eval`, and
    truth.jsonl. The same command goes on where it was interrupted; with more --videos it adds to them.
    """
    from echoprune.synth import QUESTIONS, VIDEOS, render_archive

    known = re.fullmatch(r"(\d{1,5})x(\d{1,5})", picture)
    if known is None:
        raise ConfigError(f"--size is {picture!r}: give width x height in pixels, such as 224x224")
    made: Counter[bool] = Counter()
    started = time.monotonic()
    with progress_on_stderr("videos", words=_words, begin="rendering") as progress:

        def tell(video: SynthVideo, new: bool) -> None:
            made[new] += 1
            progress(_snapshot(made, videos, minutes, time.monotonic() - started))

        clips = render_archive(
            out,
            videos=videos,
            seconds=minutes * 60,
            seed=seed,
            size=(int(known[1]), int(known[2])),
            task=task,
            questions_per_video=questions,
            on_video=tell,
            workers=workers or _cores(),
        )
    folder = clips[0].path.parent.parent
    with (folder / QUESTIONS).open(encoding="utf-8") as file:
        asked = sum(1 for _ in file)
    bytes_ = sum(clip.path.stat().st_size for clip in clips)
    if made[True]:
        before = f", {made[False]} there before" if made[False] else ""
        took = duration(time.monotonic() - started)
        lines = [f"{made[True]} clips of {duration(minutes * 60)} rendered in {took}{before}"]
    else:
        lines = [f"nothing to render: all {videos} clips are there"]
    lines.append(f"{shown(str(folder))}: {size(bytes_)} of video, {asked} questions, and the truth")
    given = [str(folder / VIDEOS), "--questions", str(folder / QUESTIONS)]
    lines.append(f"next: echoprune eval {shlex.join(given)} --model MODEL --out eval")
    click.echo("\n".join(lines))
    return OK


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _snapshot(made: Counter[bool], videos: int, minutes: float, elapsed_s: float) -> dict[str, Any]:
    done, left = made[True], videos - made.total()
    return {
        "videos": videos,
        "videos_done": made.total(),
        "video_hours_per_hour": done * minutes * 60 / elapsed_s if elapsed_s else 0.0,
        "eta_s": left * elapsed_s / done if done else None,
    }


def _words(snapshot: dict[str, Any]) -> str:
    if snapshot["eta_s"] is None:
        return "rendering"
    return f"{snapshot['video_hours_per_hour']:.0f} h of video/h · {duration(snapshot['eta_s'])} left"


if __name__ == "__main__":
    run_module(synth, "jobs.synth")
