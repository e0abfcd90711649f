"""Archives of rendered clips: real video files, questions about them, and the truth of what is where and when.

    OUT/truth.jsonl        one row a video; written first, and what the folder is pinned to
    OUT/videos/clip_*      the videos
    OUT/questions.jsonl    what `echoprune answer` reads, with `answer`, `kind` and the times of events; written last

Clip n depends on the seed and on n alone: an archive can grow. Scenes are those of scene.py, files of clip_file.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import av.error
import numpy as np

from echoprune.clip_file import ENCODINGS, Encoding, read_comment
from echoprune.errors import ConfigError, EchoPruneError
from echoprune.question import Question
from echoprune.rendering import Job, rendering
from echoprune.scene import Scene, plan_scene
from echoprune.scene_questions import scene_questions

TRUTH, QUESTIONS, VIDEOS = "truth.jsonl", "questions.jsonl", "videos"

_MARK = "echoprune synth"  # at the beginning of the comment in each file
# To be raised when the same truth is drawn otherwise: files of an older rendering are then made again.
_RENDERING = 1
# Each clip has three sources of chance, so that a change to one leaves the others as they were.
_SCENE, _TIMES, _QUESTIONS = range(3)

OnVideo = Callable[["SynthVideo", bool], None]


@dataclass(frozen=True)
class SynthVideo:
    """One clip of an archive and its truth."""

    path: Path
    encoding: Encoding
    scene: Scene
    seed: int
    index: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) pixels, upright."""
        return self.scene.size

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return self.scene.duration_s


def render_archive(
    out_dir: str | Path,
    *,
    videos: int,
    seconds: float,
    seed: int,
    size: tuple[int, int] = (224, 224),
    task: str = "mixed",
    questions_per_video: int | None = None,
    on_video: OnVideo | None = None,
    workers: int = 1,
) -> list[SynthVideo]:
    """The clips of an archive of `videos` clips of `seconds` each, all of them whole in `out_dir` (made if missing).

    `size`: (width, height) pixels, both even. `task` as of `plan_scene`. Encodings go round ENCODINGS. Of the questions of a
    clip `questions_per_video` are taken, as many of one kind as of another as far as they go; None takes all. The same
    arguments give the same scenes and, with the same encoder libraries, the same bytes, and more `videos` later leave
    those before as they are. A file that is there and says in its comment that it shows this truth is not made again.

    `workers`: processes that render. More than one are spawned, which imports the main module again. `on_video` is told
    of each clip that is whole, and whether it was made now.

    Raises ConfigError for a clip that is too short, a size that the codecs cannot hold, or an `out_dir` that is none, or
    holds another archive or more of this one; EchoPruneError if a file cannot be written.
    """
    for name, number in {"videos": videos, "workers": workers, "questions": questions_per_video}.items():
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}; give at least 1")
    out = Path(out_dir)
    plans = [
        _plan(out / VIDEOS, index, seconds=float(seconds), seed=seed, size=size, task=task)
        for index in range(videos)
    ]
    truths = [truth_row(plan) for plan in plans]
    _require_own(out, plans, truths)
    try:
        (out / VIDEOS).mkdir(parents=True, exist_ok=True)
        _write_rows(out / TRUTH, truths)
        _render(plans, truths, workers=workers, on_video=on_video or (lambda video, new: None))
        _write_rows(out / QUESTIONS, _question_rows(plans, questions_per_video))
    except (OSError, av.error.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EchoPruneError(
            f"{out} cannot be written ({reason}); check that the folder and its disk take files, then run it again"
        ) from error
    return plans


def truth_row(video: SynthVideo) -> dict[str, Any]:
    """All that `video` shows, as JSON: how it is stored, and `scene`'s fields; paths are lists of [t_s, x, y]."""
    scene, encoding = video.scene, video.encoding
    return {
        "file": f"{VIDEOS}/{video.path.name}",
        "seed": video.seed,
        "size": list(scene.size),
        "seconds": scene.duration_s,
        "codec": encoding.codec,
        "fps": encoding.fps,
        "vfr": encoding.vfr,
        "rotation": encoding.rotation,
        "task": scene.task,
        "drift_px": scene.drift_px,
        "noise": scene.noise,
        "shots_s": list(scene.shots_s),
        "background_seeds": list(scene.background_seeds),
        "objects": [asdict(item) | {"path": [list(point) for point in item.path]} for item in scene.objects],
    }


def video_questions(video: SynthVideo, count: int | None = None) -> list[Question]:
    """`count` questions about `video`, all of them if None, kind by kind; ids name the video, the kind and a number.

    One of each kind is taken before a second of any is.
    """
    rng = np.random.default_rng([video.seed, video.index, _QUESTIONS])
    by_kind = scene_questions(video.scene, rng, video=video.path.name)
    # All of it is drawn in any case: whatever the count, a question has the same id and text.
    orders = {kind: rng.permutation(len(questions)).tolist() for kind, questions in by_kind.items()}
    kinds = [list(by_kind)[place] for place in rng.permutation(len(by_kind))]
    most = max(map(len, orders.values()))
    turns = [(kind, orders[kind][turn]) for turn in range(most) for kind in kinds if turn < len(orders[kind])]
    taken = set(turns[:count])
    return [
        replace(question, question_id=f"{video.path.stem}-{kind}-{number + 1}")
        for kind, questions in by_kind.items()
        for number, question in enumerate(questions)
        if (kind, number) in taken
    ]


def _plan(
    folder: Path, index: int, *, seconds: float, seed: int, size: tuple[int, int], task: str
) -> SynthVideo:
    encoding = ENCODINGS[index % len(ENCODINGS)]
    scene = plan_scene(np.random.default_rng([seed, index, _SCENE]), seconds=seconds, size=size, task=task)
    return SynthVideo(folder / f"clip_{index:03d}{encoding.suffix}", encoding, scene, seed, index)


def _require_own(out: Path, plans: Sequence[SynthVideo], truths: Sequence[dict[str, Any]]) -> None:
    """Raises ConfigError if what `plans` would write over is not a beginning of the archive with these `truths`."""
    try:
        lines = (out / TRUTH).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        for path in (out / QUESTIONS, *(plan.path for plan in plans)):
            if path.exists() and not (read_comment(path) or "").startswith(_MARK):
                raise ConfigError(
                    f"{path} is there and is not of a rendered archive; name another folder"
                ) from None
        return
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{out / TRUTH} cannot be read ({reason}); name another folder") from error
    cure = "name another folder, or remove this one"
    for line, truth in zip(lines, truths, strict=False):
        if line != json.dumps(truth):
            raise ConfigError(
                f"{out} holds another archive: its {truth['file']} shows something else; {cure}"
            )
    if len(lines) > len(truths):
        raise ConfigError(
            f"{out} holds {len(lines)} videos of this archive, more than {len(truths)}; ask for as many, or {cure}"
        )


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes JSON lines; the file appears under its name only when complete."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _question_rows(plans: Sequence[SynthVideo], count: int | None) -> Iterator[dict[str, Any]]:
    for plan in plans:
        for question in video_questions(plan, count):
            row: dict[str, Any] = {
                "question_id": question.question_id,
                "video": question.video,
                "question": question.question,
                "options": list(question.options) or None,
                "answer": question.answer,
                "kind": question.kind,
                "start_s": question.start_s,
                "end_s": question.end_s,
                "prompt": question.prompt,
            }
            yield {name: value for name, value in row.items() if value is not None} | dict(question.extra)


def _render(
    plans: Sequence[SynthVideo], truths: Sequence[dict[str, Any]], *, workers: int, on_video: OnVideo
) -> None:
    missing = []
    for plan, truth in zip(plans, truths, strict=True):
        comment = _comment(plan, truth)
        if read_comment(plan.path) == comment:
            on_video(plan, False)
        else:
            chance = (plan.seed, plan.index, _TIMES)
            missing.append((plan, Job(plan.path, plan.scene, plan.encoding, chance, comment)))
    with rendering([job for _, job in missing], workers=workers) as done:
        for number in done:
            on_video(missing[number][0], True)


def _comment(plan: SynthVideo, truth: dict[str, Any]) -> str:
    content = json.dumps([_RENDERING, truth, plan.encoding.options])
    return f"{_MARK} {hashlib.sha256(content.encode()).hexdigest()[:16]}"
