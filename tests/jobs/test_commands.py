"""Commands as a user meets them: help, options, errors in one line, exit codes. No Ray is started here."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from echoprune.errors import ConfigError
from echoprune.models.tiny import write_tiny_checkpoint
from jobs.cli import main
from jobs.index import index
from jobs.options import options_of
from jobs.plan import plan
from pipelines.config import IndexConfig
from pipelines.job_config import JobConfig, flag_name, option, option_fields
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
        (("--temperature", "inf"), "--temperature is inf: it must be a finite number"),
        (("--temperature", "nan"), "--temperature is nan: it must be a finite number"),
        (("--anchor-every", "inf"), "--anchor-every is inf: it must be a finite number"),
        (("--decode-timeout", "inf"), "--decode-timeout is inf"),
        (("--in-flight-mb", "100000000"), "--in-flight-mb asks for"),
        (("--encoders", "99"), "lower --encoders"),
        (("",), "one of the PATHS is empty"),
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


@pytest.mark.parametrize("command", ["index", "plan", "status", "inspect"])
@pytest.mark.parametrize(("store", "says"), [("ftp://host/store", "cannot be used"), ("FILE", "is a file")])
def test_a_store_that_can_be_no_folder(
    videos: Path, tiny: Path, tmp_path: Path, command: str, store: str, says: str
) -> None:
    (tmp_path / "FILE").write_text("mine")
    where = store if "://" in store else tmp_path / store
    more = (videos, "--model", tiny, "--store") if command in ("index", "plan") else ()
    code, _, err = call(command, *more, where, *(("video",) if command == "inspect" else ()))
    assert code == 2 and len(err) == 1 and f"{where} {says}" in err[0]
    assert (tmp_path / "FILE").read_text() == "mine"


def test_a_foreign_folder_is_not_written_to(videos: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    code, _, err = call("index", videos, "--store", tmp_path, "--model", tiny)
    assert code == 2 and "mine.txt" in err[0]
    # Before a cluster is looked for.
    code, _, err = call("index", videos, "--store", tmp_path, "--model", tiny, "--address", "127.0.0.1:9")
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


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("frames: 1.5", "frames is '1.5': '1.5' is not a valid integer"),
        ("frames: 1:30", "frames is '1:30'"),
        ("shard-mb: 010x", "shard_mb is '010x'"),
        ("fps: 1:30", "--fps is '1:30': give a number"),
        ("fps:", "fps has no value"),
        ("keep: null", "keep has no value"),
        ("dtype: yes", "dtype is 'yes'"),
        ("temperature: .inf", "temperature is '.inf'"),
        ("temperature: inf", "--temperature is inf"),
        ("decoder: [pyav]", "decoder must be a single value, got ['pyav']"),
        ("paths: here", "paths must be a list of texts"),
        ("paths: [a, ~]", "paths must be a list of texts"),
        ("paths:", "paths must be a list of texts"),
        ("42", "must hold a mapping"),
        ("a: [", "is not YAML"),
        ("!!python/object/apply:os.system ['false']", "must hold a mapping"),
    ],
)
def test_wrong_values_in_a_file_are_one_line(
    videos: Path, tiny: Path, tmp_path: Path, line: str, says: str
) -> None:
    (tmp_path / "job.yaml").write_text(line)
    given = (videos, "--store", tmp_path / "s", "--model", tiny, "--config", tmp_path / "job.yaml")
    code, _, err = call("plan", *given)
    assert code == 2 and len(err) == 1 and says in err[0]


def test_values_in_a_file_are_read_as_on_the_command_line(videos: Path, tiny: Path, tmp_path: Path) -> None:
    """Null where that is the default, text that YAML would take for another type, paths from the current folder."""
    (tmp_path / "here").symlink_to(videos)
    (tmp_path / "job.yaml").write_text("frames: ~\nfps: 0.5\nshard-mb: 0100\naddress:\npaths: [here]\n")
    given = (
        "--store",
        tmp_path / "s",
        "--model",
        tiny,
        "--config",
        tmp_path / "job.yaml",
        "--json",
        "--probe",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        code, out, err = call("plan", *given)
    # 4 s and 2 s at half a frame a second, two frames a cell.
    assert code == 0 and json.loads(out)["estimate"]["cells"]["middle"] == 2, err


@dataclasses.dataclass(frozen=True)
class OtherConfig(JobConfig):
    """The configuration of a job that is not here."""

    model: str = option("", "A model.", required=True)
    beams: int = option(1, "Beams.", at_least=1)
    share: float | None = option(None, "A share.", above=0)
    mode: str = option("a", "A mode.", choices=("a", "b"))
    questions: tuple[str, ...] = ()


def test_any_job_gets_options_and_file_from_its_configuration(tmp_path: Path) -> None:
    made: list[OtherConfig] = []

    @click.command()
    @click.argument("questions", nargs=-1)
    @options_of(OtherConfig)
    def job(**options: object) -> None:
        made.append(OtherConfig(**options))

    (tmp_path / "job.yaml").write_text("model: m\nbeams: 3\nshare: 0.5\nmode: b\nquestions: [why]\n")
    flags = ["why", "--model", "m", "--beams", "3", "--share", "0.5", "--mode", "b"]
    for arguments in (["--config", str(tmp_path / "job.yaml")], flags):
        assert CliRunner().invoke(job, arguments, catch_exceptions=False).exit_code == 0
    assert made == [OtherConfig("m", 3, 0.5, "b", ("why",))] * 2
    assert made[0].as_dict()["questions"] == ["why"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "--model is missing"),
        ({"model": "m", "beams": 0}, "--beams is 0: it must be at least 1"),
        ({"model": "m", "beams": 1.5}, "--beams is 1.5: it must be a whole number"),
        ({"model": "m", "beams": True}, "--beams is True"),
        ({"model": 3}, "--model is 3: it must be text"),
        ({"model": "m", "share": 0}, "--share is 0: it must be more than 0"),
        ({"model": "m", "share": float("nan")}, "--share is nan: it must be a finite number"),
        ({"model": "m", "mode": "c"}, "--mode is 'c': choose one of a, b"),
    ],
)
def test_a_configuration_checks_its_declared_limits(values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        OtherConfig(**values)


@pytest.mark.parametrize("arguments", [(), ("models",)])
def test_a_group_without_a_command_shows_its_help_as_it_is(arguments: tuple[str, ...]) -> None:
    code, out, err = call(*arguments)
    assert code == 2 and not out
    assert err[0].startswith("Usage:") and len(err) > 5 and "Commands:" in err


@pytest.mark.parametrize(
    "options", [("--dim", "100000"), ("--dim", "33"), ("--seed", "99999999999999999999")]
)
def test_a_tiny_model_has_limits(tmp_path: Path, options: tuple[str, ...]) -> None:
    code, _, err = call("models", "tiny", "--out", tmp_path / "m", *options)
    assert code == 2 and len(err) == 1 and options[1] in err[0]
    assert not (tmp_path / "m").exists()


def test_jobs_start_as_modules() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "jobs.index", "-h"],
        cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, check=True,
    )  # fmt: skip
    assert result.stdout.startswith("Usage: python -m jobs.index [OPTIONS] [PATHS]...")
    assert "--anchor-every" in result.stdout
