"""Commands as a user meets them: help, options, errors in one line, exit codes. No Ray is started here."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from echoprune.models.tiny import write_tiny_checkpoint
from jobs.cli import main
from jobs.index import index
from jobs.options import flag_name, option_fields
from jobs.plan import plan
from pipelines.config import IndexConfig
from tests.clips import Clip, even, write

REPOSITORY = Path(__file__).parents[2]


def call(*arguments: str | Path) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the lines of standard error of a command."""
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr.strip().splitlines()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write(Clip("a.mp4", even(100)), folder)
    write(Clip("b.mp4", even(50)), folder)
    return folder


def commands() -> list[tuple[str, click.Command]]:
    found = []
    for name, command in main.commands.items():
        if isinstance(command, click.Group):
            found += [(f"{name} {inner}", each) for inner, each in command.commands.items()]
        found.append((name, command))
    return found


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_and_option_has_help(name: str, command: click.Command) -> None:
    assert command.help and command.help[0].isupper()
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts} has no help"
    code, out, _ = call(*name.split(), "--help")
    assert code == 0 and "Usage:" in out


@pytest.mark.parametrize("command", [index, plan])
def test_options_are_the_fields_of_the_configuration(command: click.Command) -> None:
    options = {each.name: each for each in command.params if isinstance(each, click.Option)}
    fields = {field.name: field for field in option_fields(IndexConfig)}
    assert fields.keys() <= options.keys()
    assert {"paths", *fields} == {field.name for field in dataclasses.fields(IndexConfig)}
    for name, field in fields.items():
        assert options[name].default == field.default
        assert options[name].opts == [flag_name(field)]
        assert options[name].help == field.metadata["help"]


def test_the_documentation_names_every_command_and_option() -> None:
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    for name, _ in commands():
        assert f"echoprune {name}" in text, name
    for field in option_fields(IndexConfig):
        assert f"`{flag_name(field)}`" in text, field.name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--fps", "fast"), "--fps is 'fast'"),
        (("--fps", "0"), "--fps is 0"),
        (("--keep", "2"), "keep is '2'"),
        (("--keep", "25%"), "64/cell"),
        (("--window", "4"), "--window is '4'"),
        (("--temperature", "-1"), "--temperature is -1.0"),
        (("--decode-timeout", "0"), "--decode-timeout"),
        (("--frames", "8", "--max-frames", "9"), "exclude each other"),
        (("--dtype", "fp64"), "fp64"),
        (("--max-pixels", "10"), "max pixels 10"),
        (("--anchor-every", "-3"), "--anchor-every is -3.0"),
        (("--config", "nosuch.yaml"), "nosuch.yaml"),
        (("--nosuch",), "--nosuch"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(
    videos: Path, tiny: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    code, _, err = call("index", videos, "--store", tmp_path / "store", "--model", tiny, *options)
    assert code == 2 and len(err) == 1 and says in err[0]
    assert not (tmp_path / "store").exists()


def test_missing_arguments(videos: Path, tiny: Path, tmp_path: Path) -> None:
    for given in (("--model", tiny), ("--store", tmp_path / "store")):
        code, _, err = call("index", videos, *given)
        assert code == 2 and len(err) == 1 and "is missing" in err[0]
    code, _, err = call("index", "--store", tmp_path / "store", "--model", tiny)
    assert code == 2 and err == ["echoprune: no PATHS: give video files, globs, folders or a manifest"]


def test_a_folder_without_videos(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = call("index", tmp_path / "empty", "--store", tmp_path / "store", "--model", tiny)
    assert code == 2 and len(err) == 1 and "holds no video" in err[0]


@pytest.mark.parametrize("model", ["nosuch", "."])
def test_a_missing_model_is_a_wrong_option(videos: Path, tmp_path: Path, model: str) -> None:
    where = tmp_path if model == "." else tmp_path / model
    code, _, err = call("index", videos, "--store", tmp_path / "store", "--model", where)
    assert code == 2 and len(err) == 1 and str(where) in err[0]


@pytest.mark.parametrize("command", ["status", "inspect"])
def test_what_is_no_store_is_refused(command: str, tmp_path: Path) -> None:
    more = ("video",) if command == "inspect" else ()
    code, _, err = call(command, tmp_path, *more)
    assert code == 2 and len(err) == 1 and "is no store" in err[0]


def test_a_foreign_folder_is_not_written_to(videos: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    code, _, err = call("index", videos, "--store", tmp_path, "--model", tiny)
    assert code == 2 and "mine.txt" in err[0]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_address_where_nobody_listens(videos: Path, tiny: Path, tmp_path: Path) -> None:
    given = ("--store", tmp_path / "store", "--model", tiny, "--address", "127.0.0.1:9")
    code, _, err = call("index", videos, *given)
    assert code == 2 and "no Ray cluster answers at '127.0.0.1:9'" in err[-1]


def test_plan_prints_an_exact_forecast_and_writes_nothing(videos: Path, tiny: Path, tmp_path: Path) -> None:
    given = (videos, "--store", tmp_path / "store", "--model", tiny, "--keep", "all", "--probe")
    code, out, _ = call("plan", *given, "--json")
    found = json.loads(out)
    # 4 s and 2 s at 2 frames a second, two frames a cell, 3 x 5 tokens a cell.
    assert code == 0 and found["new_videos"] == 2
    assert found["estimate"]["video_s"]["middle"] == pytest.approx(6.0, abs=0.1)
    assert found["estimate"]["cells"]["middle"] == 6 and found["estimate"]["tokens"]["middle"] == 90
    code, out, _ = call("plan", *given)
    assert code == 0 and "2 videos" in out and "time" in out
    assert not (tmp_path / "store").exists()


def test_a_file_and_flags_mean_the_same(videos: Path, tiny: Path, tmp_path: Path) -> None:
    settings = {
        "paths": [str(videos)],
        "store": str(tmp_path / "s"),
        "model": str(tiny),
        "fps": 1,
        "keep": "all",
    }
    file = tmp_path / "job.yaml"
    file.write_text(
        "\n".join(f"{name}: {json.dumps(value)}" for name, value in settings.items()) + "\nprobe-not: 1\n"
    )
    code, _, err = call("plan", "--config", file)
    assert code == 2 and "unknown option 'probe_not'" in err[0]
    file.write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in settings.items()))
    flags = (videos, "--store", tmp_path / "s", "--model", tiny, "--fps", "1", "--keep", "all")
    assert call("plan", "--json", "--config", file)[1] == call("plan", "--json", *flags)[1]
    # A flag wins over the file.
    more = json.loads(call("plan", "--json", "--config", file, "--fps", "4")[1])
    assert more["estimate"]["cells"]["middle"] == 12


def test_jobs_start_as_modules() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "jobs.index", "--help"],
        cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, check=True,
    )  # fmt: skip
    assert "--anchor-every" in result.stdout
