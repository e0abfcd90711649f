"""`echoprune eval` as a user meets it before anything runs: options, documentation, bad input. No Ray is started here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.policies import POLICIES
from jobs.cli import main
from jobs.eval import evaluate
from pipelines.evaluate_config import EvalConfig
from pipelines.job_config import flag_name, option_fields
from tests.clips import Clip, even, write

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Videos, questions and model, all of them good."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "videos").mkdir()
    write(Clip("a.mp4", even(20)), folder / "videos")
    row = {"question_id": "1", "video": "a.mp4", "question": "x?", "answer": "yes", "kind": "event_x"}
    (folder / "q.jsonl").write_text(json.dumps(row) + "\n")
    return folder / "videos", folder / "q.jsonl", write_tiny_checkpoint("qwen2_5_vl", folder / "tiny")


def refusal(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, ["eval", *map(str, arguments)])
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2 and len(lines) == 1, result.output
    return lines[0]


def test_options_are_the_fields_of_the_configuration_and_documented() -> None:
    text = (REPOSITORY / "docs" / "evaluation.md").read_text()
    options = {each.name: each for each in evaluate.params if isinstance(each, click.Option)}
    fields = {field.name: field for field in option_fields(EvalConfig)}
    assert {"paths", *fields} == {field.name for field in dataclasses.fields(EvalConfig)}
    for name, field in fields.items():
        assert options[name].default == field.default and options[name].opts == [flag_name(field)]
        assert f"`{flag_name(field)}`" in text, name


def test_all_policies_are_compared_unless_told_otherwise() -> None:
    assert next(f.default for f in option_fields(EvalConfig) if f.name == "policies").split(",") == list(
        POLICIES
    )


def test_the_documentation_names_every_column() -> None:
    from echoprune.evaluation_folder import ANSWERS_SCHEMA, RESULT_SCHEMA

    text = (REPOSITORY / "docs" / "evaluation.md").read_text()
    for name in (*ANSWERS_SCHEMA.names, *RESULT_SCHEMA.names):
        assert f"`{name}`" in text, name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--policies", "anchored,best"), "--policies is 'best'; give one of anchored"),
        (("--policies", ","), "--policies is ','"),
        (("--policies", "uniform"), "--reference is 'anchored': give one of the --policies, uniform"),
        (("--frames", "16,many"), "--frames is '16,many'"),
        (("--frames", ""), "--frames is ''"),
        (("--frames", "0"), "--frames is '0'"),
        (("--budgets", "512,none"), "--budgets is 'none'"),
        (("--keeps", "2"), "keep is '2'"),
        (("--by", "level"), "--by is 'level'"),
        (("--max-pixels", "10"), "max pixels 10"),
        (("--workers", "0"), "--workers is 0"),
        (("--anchor-every", "-1"), "--anchor-every is -1.0"),
    ],
)
def test_wrong_options_are_one_line_and_nothing_is_made(
    given: tuple[Path, Path, Path], tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    videos, questions, model = given
    common = (videos, "--questions", questions, "--model", model, "--out", tmp_path / "out")
    assert says in refusal(*common, *options)
    assert not (tmp_path / "out").exists()


def test_missing_and_misplaced_things(given: tuple[Path, Path, Path], tmp_path: Path) -> None:
    videos, questions, model = given
    whole = {"--questions": questions, "--model": model, "--out": tmp_path / "out"}
    for name in whole:
        rest = [each for key, value in whole.items() if key != name for each in (key, value)]
        assert f"{name} is missing" in refusal(videos, *rest)
    every = [each for pair in whole.items() for each in pair]
    assert "no VIDEOS" in refusal(*every)
    assert "nosuch" in refusal(tmp_path / "nosuch", *every)
    assert "nosuch.jsonl" in refusal(videos, *every, "--questions", tmp_path / "nosuch.jsonl")
    assert "nosuch" in refusal(videos, *every, "--model", tmp_path / "nosuch")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").write_text("")
    assert "photo.jpg but no eval.json" in refusal(videos, *every, "--out", tmp_path / "other")
    assert not (tmp_path / "out").exists()
