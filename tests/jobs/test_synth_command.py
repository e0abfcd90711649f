"""`echoprune synth` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from jobs.cli import main
from jobs.synth import synth

REPOSITORY = Path(__file__).parents[2]
SHORT = ("--videos", "2", "--minutes", "0.1", "--size", "64x64", "--workers", "1")


def call(*arguments: str | Path) -> tuple[int, list[str], list[str]]:
    result = CliRunner().invoke(main, ["synth", *map(str, arguments)])
    return result.exit_code, result.stdout.splitlines(), result.stderr.strip().splitlines()


def test_an_archive_and_what_to_do_next(tmp_path: Path) -> None:
    out = tmp_path / "an archive"
    code, lines, errors = call("--out", out, *SHORT)
    assert code == 0
    assert lines[0].startswith("2 clips of 6.0 s rendered in ")
    questions = (out / "questions.jsonl").read_text().splitlines()
    assert lines[1].startswith(f"{out}: ") and f"{len(questions)} questions" in lines[1]
    assert lines[2].startswith(
        f"next: echoprune eval '{out}/videos' --questions '{out}/questions.jsonl' --model"
    )
    last = json.loads(errors[-1])
    assert (last["event"], last["videos"], last["videos_done"], last["eta_s"]) == ("progress", 2, 2, 0.0)

    code, lines, _ = call("--out", out, *SHORT, "--questions", "3")
    assert code == 0 and lines[0] == "nothing to render: all 2 clips are there"
    assert "6 questions" in lines[1]
    code, lines, _ = call("--out", out, *SHORT, "--videos", "3")
    assert code == 0 and lines[0].startswith("1 clips of 6.0 s rendered in ")
    assert lines[0].endswith(", 2 there before")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--minutes", "0.05"), "a clip of 3 s is too short"),
        (("--minutes", "nan"), "too short"),
        (("--minutes", "0.5", "--task", "cuts"), "30 s is too short for cuts"),
        (("--task", "dance"), "task is 'dance'; give one of mixed, still, drift, cuts, fade"),
        (("--size", "224"), "--size is '224'"),
        (("--size", "-2x64"), "--size is '-2x64'"),
        (("--size", "65x64"), "size 65x64"),
        (("--videos", "0"), "--videos"),
        (("--workers", "0"), "--workers"),
        (("--questions", "0"), "--questions"),
    ],
)
def test_wrong_options_are_one_line_and_nothing_is_made(
    tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    code, _, errors = call("--out", tmp_path / "out", *options)
    assert code == 2 and len(errors) == 1 and says in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_is_named_and_is_no_file_and_no_other_archive(tmp_path: Path) -> None:
    code, _, errors = call()
    assert code == 2 and len(errors) == 1 and "--out" in errors[0]
    (tmp_path / "file").write_text("mine")
    code, _, errors = call("--out", tmp_path / "file")
    assert code == 2 and len(errors) == 1 and "name another folder" in errors[0]
    assert call("--out", tmp_path / "out", *SHORT)[0] == 0
    code, _, errors = call("--out", tmp_path / "out", *SHORT, "--seed", "1")
    assert code == 2 and len(errors) == 1 and "holds another archive" in errors[0]


def test_the_documentation_names_options_kinds_and_fields(tmp_path: Path) -> None:
    from echoprune.scene import TASKS
    from echoprune.scene_questions import KINDS

    text = (REPOSITORY / "docs" / "synth.md").read_text()
    options = {each.opts[0]: each for each in synth.params if isinstance(each, click.Option)}
    for name, option in options.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        if isinstance(option.default, (int, float, str)):
            assert (
                f"| {option.default:g} |" in row
                if not isinstance(option.default, str)
                else option.default in row
            )
    assert call("--out", tmp_path / "out", *SHORT)[0] == 0
    truth = json.loads((tmp_path / "out" / "truth.jsonl").read_text().splitlines()[0])
    for name in (*KINDS, *TASKS, *truth, *truth["objects"][0]):
        assert f"`{name}`" in text, name
