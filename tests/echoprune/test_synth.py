"""Archives: what lies in the folder, that it can be made again and grow, and that it is never mixed with another."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from echoprune.clip_file import ENCODINGS, read_comment
from echoprune.errors import ConfigError, EchoPruneError
from echoprune.questions import read_questions
from echoprune.scene import Scene, SynthObject
from echoprune.scene_questions import KINDS
from echoprune.synth import SynthVideo, render_archive, truth_row, video_questions

SECONDS = 8.0
SIZE = (128, 96)


def archive_in(out: Path, videos: int = 6, **changed: object) -> list[SynthVideo]:
    given: dict[str, object] = {"seconds": SECONDS, "seed": 7, "size": SIZE, **changed}
    return render_archive(out, videos=videos, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SynthVideo]]:
    out = tmp_path_factory.mktemp("synth") / "made"
    return out, archive_in(out)


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def bytes_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_the_folder_holds_videos_questions_truth_and_nothing_else(
    made: tuple[Path, list[SynthVideo]],
) -> None:
    out, clips = made
    names = [f"videos/clip_{i:03d}{ENCODINGS[i].suffix}" for i in range(6)]
    assert sorted(bytes_of(out)) == sorted(["questions.jsonl", "truth.jsonl", *names])
    assert [clip.path for clip in clips] == [out / name for name in names]
    assert all((clip.size, clip.duration_s) == (SIZE, SECONDS) for clip in clips)


def test_the_truth_is_all_of_the_scene(made: tuple[Path, list[SynthVideo]]) -> None:
    out, clips = made
    for row, clip in zip(rows(out / "truth.jsonl"), clips, strict=True):
        assert row == json.loads(json.dumps(truth_row(clip)))
        objects = tuple(
            SynthObject(**{**item, "path": tuple(map(tuple, item["path"]))})
            for item in row["objects"]  # type: ignore[attr-defined]
        )
        again = Scene(
            tuple(row["size"]),  # type: ignore[arg-type]
            row["seconds"],  # type: ignore[arg-type]
            tuple(row["shots_s"]),  # type: ignore[arg-type]
            row["drift_px"],  # type: ignore[arg-type]
            row["noise"],  # type: ignore[arg-type]
            tuple(row["background_seeds"]),  # type: ignore[arg-type]
            objects,
        )
        assert again == clip.scene and row["task"] == clip.scene.task
        assert row["file"] == f"videos/{clip.path.name}" and row["seed"] == 7
        encoding = clip.encoding
        stored = (encoding.codec, encoding.fps, encoding.vfr, encoding.rotation)
        assert (row["codec"], row["fps"], row["vfr"], row["rotation"]) == stored


def test_the_questions_are_those_of_the_scenes_and_can_be_read(made: tuple[Path, list[SynthVideo]]) -> None:
    out, clips = made
    questions = read_questions(str(out / "questions.jsonl")).questions
    assert not any(question.error for question in questions)
    wanted = [question for clip in clips for question in video_questions(clip)]
    for question, drawn in zip(questions, wanted, strict=True):
        times = {name: value for name, value in drawn.extra.items() if value is not None}
        assert question == replace(drawn, extra=question.extra)
        assert {name: value for name, value in question.extra.items() if value is not None} == times
    assert len({question.question_id for question in questions}) == len(questions)
    for question in questions:
        stem = question.video.partition(".")[0]
        assert question.question_id.startswith(f"{stem}-{question.kind}-")
    assert {question.video for question in questions} == {clip.path.name for clip in clips}


def test_the_same_seed_gives_the_same_bytes(made: tuple[Path, list[SynthVideo]], tmp_path: Path) -> None:
    archive_in(tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(made[0])
    other = archive_in(tmp_path / "other", videos=1, seed=8)
    assert other[0].path.read_bytes() != made[1][0].path.read_bytes()


def test_an_archive_grows_and_nothing_is_rendered_twice(
    made: tuple[Path, list[SynthVideo]], tmp_path: Path
) -> None:
    told: list[tuple[str, bool]] = []

    def tell(video: SynthVideo, new: bool) -> None:
        assert video.path.exists()
        told.append((video.path.name, new))

    archive_in(tmp_path / "out", videos=2, on_video=tell)
    assert [new for _, new in told] == [True, True]
    stamps = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "videos").iterdir())]
    told.clear()
    (tmp_path / "out" / "questions.jsonl").unlink()
    archive_in(tmp_path / "out", videos=6, on_video=tell)
    assert [new for _, new in told] == [False] * 2 + [True] * 4
    assert bytes_of(tmp_path / "out") == bytes_of(made[0])
    after = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "videos").iterdir())]
    assert after[:2] == stamps


def test_a_file_that_shows_something_else_is_rendered_again(
    made: tuple[Path, list[SynthVideo]], tmp_path: Path
) -> None:
    clips = archive_in(tmp_path, videos=2)
    other = archive_in(tmp_path / "other", videos=1, seed=8)
    clips[0].path.write_bytes(other[0].path.read_bytes())
    clips[1].path.write_bytes(clips[1].path.read_bytes()[:1000])
    told = []
    archive_in(tmp_path, videos=2, on_video=lambda video, new: told.append(new))
    assert told == [True, True]
    assert all(a.path.read_bytes() == b.path.read_bytes() for a, b in zip(clips, made[1], strict=False))


def test_an_interrupted_archive_goes_on(made: tuple[Path, list[SynthVideo]], tmp_path: Path) -> None:
    def stop(video: SynthVideo, new: bool) -> None:
        if video.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive_in(tmp_path / "out", on_video=stop)
    # No questions are there before all that they are about is.
    assert len(bytes_of(tmp_path / "out")) == 4 and not (tmp_path / "out" / "questions.jsonl").exists()
    told = []
    archive_in(tmp_path / "out", on_video=lambda video, new: told.append(new))
    assert told == [False] * 3 + [True] * 3
    assert bytes_of(tmp_path / "out") == bytes_of(made[0])


@pytest.mark.parametrize("changed", [{"seed": 8}, {"seconds": 9.0}, {"size": (96, 128)}, {"task": "drift"}])
def test_another_archive_is_not_mixed_in(
    made: tuple[Path, list[SynthVideo]], changed: dict[str, object]
) -> None:
    before = bytes_of(made[0])
    with pytest.raises(
        ConfigError, match=r"holds another archive: its videos/clip_000\.mp4 shows something else"
    ):
        archive_in(made[0], **changed)
    with pytest.raises(ConfigError, match="holds 6 videos of this archive, more than 5"):
        archive_in(made[0], videos=5)
    assert bytes_of(made[0]) == before


@pytest.mark.parametrize("name", ["questions.jsonl", "videos/clip_001.mp4"])
def test_files_of_others_are_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=rf"{name} is there and is not of a rendered archive"):
        archive_in(tmp_path)
    assert bytes_of(tmp_path) == {name: b"mine"}


def test_fewer_questions_are_some_of_all_evenly_of_all_kinds(made: tuple[Path, list[SynthVideo]]) -> None:
    for clip in made[1]:
        all_of_them = video_questions(clip)
        kinds = Counter(question.kind for question in all_of_them)
        assert set(kinds) <= set(KINDS)
        for count in (1, 4, len(kinds), len(kinds) + 2, 1000):
            some = video_questions(clip, count)
            assert len(some) == min(count, len(all_of_them))
            assert [question for question in all_of_them if question in some] == some
            taken = Counter(question.kind for question in some)
            short = [kind for kind in kinds if taken[kind] < kinds[kind]]
            if taken and short:
                assert max(taken.values()) - min(taken[kind] for kind in short) <= 1
    drawn = {question.kind for clip in made[1] for question in video_questions(clip, 2)}
    assert len(drawn) > 4


def test_processes_render_the_same_files(made: tuple[Path, list[SynthVideo]], tmp_path: Path) -> None:
    told: list[str] = []
    archive_in(tmp_path / "out", workers=2, on_video=lambda video, new: told.append(video.path.name))
    assert bytes_of(tmp_path / "out") == bytes_of(made[0])
    assert sorted(told) == sorted(clip.path.name for clip in made[1])
    comments = {read_comment(clip.path) for clip in made[1]}
    assert len(comments) == 6 and all(
        comment and comment.startswith("echoprune synth ") for comment in comments
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"videos": 0}, "videos is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"questions_per_video": 0}, "questions is 0"),
        ({"seconds": 5}, "5 s is too short"),
        ({"task": "dance"}, "task is 'dance'"),
    ],
)
def test_refuses_what_cannot_be_rendered(tmp_path: Path, wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        archive_in(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="name another folder"):
        archive_in(tmp_path / "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "videos").write_text("")
    with pytest.raises(EchoPruneError, match="cannot be written"):
        archive_in(tmp_path / "out")
