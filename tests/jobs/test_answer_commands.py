"""`answer` and `caption` as a user meets them: options, errors in one line, exit codes. No Ray is started here."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import click
import duckdb
import pytest
from click.testing import CliRunner

from echoprune.accuracy import accuracy
from echoprune.answer_settings import FIRST, QUERIES, RELEVANCE, AnswerSettings
from echoprune.answer_store import open_answers
from echoprune.errors import ConfigError
from echoprune.models import families, load_answerer
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.policies import POLICIES
from echoprune.templates import template_names
from jobs.answer import answer, examples, rates, summary
from jobs.caption import caption
from jobs.cli import main
from pipelines import answer_config
from pipelines.answer import COMPACT_FAMILIES
from pipelines.answer_config import SETTINGS, AnswerConfig, AnsweringConfig, CaptionConfig
from pipelines.job_config import flag_name, option_fields
from tests import answer_folders, indexed
from tests.indexed import Footage

REPOSITORY = Path(__file__).parents[2]
GIVEN = {"store": "s", "model": "m", "out": "o"}


def call(*arguments: str | Path) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the lines of standard error of a command."""
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr.strip().splitlines()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def store(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed") / "store"
    indexed.index(folder, tiny, [Footage("/v/a.mp4", 4, seed=1)], failed=["/v/bad.mp4"])
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    path.write_text(json.dumps({"question_id": "q", "video": "a.mp4", "question": "what?", "tags": ["x"]}))
    return path


def test_the_options_are_the_settings_with_their_defaults() -> None:
    settings = {field.name: field.default for field in dataclasses.fields(AnswerSettings)}
    assert set(SETTINGS) == set(settings)
    config = AnswerConfig(**GIVEN, questions="q")
    assert config.settings_values() == settings
    assert AnswerSettings(**config.settings_values()) == AnswerSettings()
    captions = CaptionConfig(**GIVEN).settings_values()
    assert captions == settings | {"relevance": "off", "template": "brief"}


def test_the_choices_are_those_of_the_settings() -> None:
    choices = {field.name: field.metadata["choices"] for field in option_fields(AnsweringConfig)}
    assert choices["relevance"] == RELEVANCE == answer_config.RELEVANCE and choices["query"] == QUERIES
    assert choices["policy"] == tuple(POLICIES) == answer_config.POLICIES and choices["first"] == FIRST
    for name, accepted in choices.items():
        if name in SETTINGS:
            for value in accepted:
                # "auto" of the engine is settled before there are settings (pipelines/chosen.py).
                if (name, value) != ("engine", "auto"):
                    AnswerSettings(**{name: value})
    template = next(field for field in option_fields(AnsweringConfig) if field.name == "template")
    assert all(name in template.metadata["help"] for name in template_names())


@pytest.mark.parametrize(("command", "config"), [(answer, AnswerConfig), (caption, CaptionConfig)])
def test_options_are_the_fields_of_the_configuration(command: click.Command, config: type) -> None:
    options = {each.name: each for each in command.params if isinstance(each, click.Option)}
    fields = {field.name: field for field in option_fields(config)}
    for name, field in fields.items():
        assert options[name].default == field.default and options[name].opts == [flag_name(field)]
    arguments = {each.name for each in command.params} - set(fields) - {"config_file", "limit"}
    assert arguments == {field.name for field in dataclasses.fields(config)} - set(fields)


def test_the_documentation_names_every_option_and_column() -> None:
    operations = (REPOSITORY / "docs" / "operations.md").read_text()
    answers = (REPOSITORY / "docs" / "answers.md").read_text()
    for config in (AnswerConfig, CaptionConfig):
        for field in option_fields(config):
            assert f"`{flag_name(field)}`" in answers, field.name
    from echoprune.answer_schema import OWN_COLUMNS

    for column in OWN_COLUMNS:
        assert f"`{column}`" in answers, column
    assert "answers.md" in operations


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--budget", "0"), "--budget is '0'"),
        (("--budget", "many"), "--budget is 'many'"),
        (("--relevance", "median"), "median"),
        (("--policy", "best"), "'best' is not one of 'anchored'"),
        (("--policy", "evs", "--first", "whole"), "--first is whole, which --policy evs does not use"),
        (("--policy", "mmtok", "--relevance", "mean"), "--relevance is mean"),
        (("--temperature", "-1"), "--temperature is -1.0: it must be 0 or more"),
        (("--top-p", "2"), "--top-p is 2.0"),
        (("--top-p", "0"), "--top-p is 0.0: it must be more than 0"),
        (("--max-new-tokens", "0"), "--max-new-tokens is 0"),
        (("--batch", "0"), "--batch is 0"),
        (("--echo-weight", "2000"), "--echo-weight is 2000"),
        (("--template", "nosuch"), "no template 'nosuch'"),
        (("--questions", "nosuch.jsonl"), "nosuch.jsonl"),
        (("--questions", "q.txt"), "q.txt"),
        (("--by", "nosuch"), "no column 'nosuch'"),
        (("--by", "evidence"), "cannot group by 'evidence'"),
        (("--shard-questions", "0"), "--shard-questions is 0"),
        (("--model", "nosuch"), "nosuch"),
        (("--out", "ftp://host/a"), "--out ftp://host/a cannot be used"),
        (("--limit", "-1"), "--limit"),
        (("--positions", "compact"), "--positions compact is not for qwen2_5_vl"),
        (("--nosuch",), "--nosuch"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(
    store: Path, tiny: Path, questions: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    out = tmp_path / "out"
    given = ("--model", tiny, "--questions", questions, "--out", out)
    code, _, err = call("answer", store, *given, *options)
    assert code == 2 and len(err) == 1 and says in err[0], err
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--window", "soon"), "window 'soon'"),
        (("--videos", "nosuch.mp4"), "no video 'nosuch.mp4'"),
        (("--videos", "bad.mp4"), "failed"),
        (("--template", "nosuch"), "no template 'nosuch'"),
    ],
)
def test_wrong_options_of_captions(
    store: Path, tiny: Path, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    code, _, err = call("caption", store, "--model", tiny, "--out", tmp_path / "out", *options)
    assert code == 2 and len(err) == 1 and says in err[0], err
    assert not (tmp_path / "out").exists()


def test_positions_are_refused_where_the_model_would_refuse_them(tmp_path: Path) -> None:
    for family in families():
        model = str(write_tiny_checkpoint(family, tmp_path / family))
        if family in COMPACT_FAMILIES:
            load_answerer(model, device="cpu", positions="compact")
        else:
            with pytest.raises(ConfigError, match="positions"):
                load_answerer(model, device="cpu", positions="compact")


def test_printed_answers_are_short_whatever_they_are_about(tmp_path: Path) -> None:
    about = answer_folders.answer("i" * 500, "w" * 5000, "t" * 5000, start_s=0.0, end_s=1e300)
    answer_folders.write_answers(tmp_path, "a1", [about])
    lines = examples(str(tmp_path), 1)
    assert lines[0].startswith("iii") and " clip.mp4 0.0-1e+300 s: www" in lines[0]
    assert all(len(line) <= 500 for line in lines)


def test_the_accuracy_that_sql_gives_is_the_programs(tmp_path: Path) -> None:
    """The query of docs/answers.md: failed answers count as not right."""
    right = answer_folders.answer("q1", "what?", "A", answer="A", kind="k", correct=True)
    wrong = answer_folders.answer("q2", "what?", "B", answer="A", kind="k", correct=False)
    lost = {"status": "failed", "error_class": "unknown_video", "error": "x", "raw_text": ""}
    failed = answer_folders.answer("q3", "what?", "", answer="A", kind="k", **lost)
    unasked = answer_folders.answer("q4", "what?", "x", kind="k")
    answer_folders.write_answers(tmp_path, "a1", [right, wrong, failed, unasked])
    docs = (REPOSITORY / "docs" / "answers.md").read_text()
    query = next(line for line in docs.splitlines() if line.startswith("SELECT kind, avg("))
    [(kind, share)] = duckdb.sql(query.replace("DIR/", f"{tmp_path}/")).fetchall()
    ours = accuracy(open_answers(tmp_path).table(), by=["kind"]).to_pylist()[0]
    assert (kind, share) == ("k", pytest.approx(ours["accuracy"])) and ours["n"] == 3


def test_missing_arguments(store: Path, tiny: Path, questions: Path, tmp_path: Path) -> None:
    every = {"--model": tiny, "--questions": questions, "--out": tmp_path / "out"}
    for missing in every:
        given = [each for name, value in every.items() if name != missing for each in (name, value)]
        code, _, err = call("answer", store, *given)
        assert code == 2 and err[0].startswith(f"echoprune: {missing} is missing")
    code, _, err = call("answer", *[each for pair in every.items() for each in pair])
    assert code == 2 and "STORE" in err[0]


def test_what_is_no_store_is_refused(tiny: Path, questions: Path, tmp_path: Path) -> None:
    given = ("--model", tiny, "--questions", questions, "--out", tmp_path / "out")
    code, _, err = call("answer", tmp_path, *given)
    assert code == 2 and len(err) == 1 and "is no store" in err[0]


def test_a_foreign_folder_is_not_written_to(store: Path, tiny: Path, questions: Path) -> None:
    before = sorted(store.rglob("*"))
    # The folder of the store itself, which holds no answers.
    code, _, err = call("answer", store, "--model", tiny, "--questions", questions, "--out", store)
    assert code == 2 and len(err) == 1 and "but no answers.json" in err[0]
    assert sorted(store.rglob("*")) == before


def test_a_file_and_flags_mean_the_same(store: Path, tiny: Path, questions: Path, tmp_path: Path) -> None:
    values = {
        "store": str(store),
        "model": str(tiny),
        "out": str(tmp_path / "out"),
        "questions": str(questions),
    }
    made: list[AnswerConfig] = []

    @click.command()
    @click.argument("store")
    @answer_config_options
    @click.option("--by", multiple=True)
    def job(**options: object) -> None:
        made.append(AnswerConfig(**options))  # type: ignore[arg-type]

    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
    (tmp_path / "job.yaml").write_text(
        "\n".join([*lines, "letters: true", "budget: 0.5", "by: [kind, level]"])
    )
    flags = [values["store"], *(x for n in ("model", "out", "questions") for x in (f"--{n}", values[n]))]
    more = ["--letters", "--budget", "0.5", "--by", "kind", "--by", "level"]
    for arguments in (["--config", str(tmp_path / "job.yaml")], [*flags, *more]):
        result = CliRunner().invoke(job, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert made[0] == made[1] and made[0].letters is True and made[0].by == ("kind", "level")
    # A flag wins over the file, also where the file says true.
    CliRunner().invoke(job, ["--config", str(tmp_path / "job.yaml"), "--no-letters"], catch_exceptions=False)
    assert made[2] == dataclasses.replace(made[0], letters=False)
    for line, says in (
        ("letters: perhaps", "letters is 'perhaps'"),
        ("store: [a]", "store must be a single"),
    ):
        (tmp_path / "job.yaml").write_text(line)
        with pytest.raises(ConfigError, match=says):
            CliRunner().invoke(job, ["--config", str(tmp_path / "job.yaml"), *flags], catch_exceptions=False)


def answer_config_options(command: click.Command) -> click.Command:
    from jobs.options import options_of

    return options_of(AnswerConfig)(command)


def test_a_configuration_is_checked_when_made() -> None:
    with pytest.raises(ConfigError, match="--letters is 'yes': it must be true or false"):
        AnswerConfig(**GIVEN, questions="q", letters="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="STORE is missing"):
        AnswerConfig(model="m", out="o", questions="q")
    with pytest.raises(ConfigError, match="--seed is True"):
        AnswerConfig(**GIVEN, questions="q", seed=True)


def test_the_summary_says_what_failed_and_what_was_right() -> None:
    row = {"n": 4, "answered": 3, "failed": 1, "correct": 2, "accuracy": 0.5, "low": 0.15, "high": 0.85}
    failures = [(f"q{i}", "unknown_video", "no\nvideo") for i in range(7)]
    report = {
        "config": {"out": "o"},
        "run": {
            "questions": {"done": 9, "of": 9, "before": 0},
            "elapsed_s": 3.0,
            "questions_per_s": 3.0,
            "visual_tokens": 4096,
            "new_tokens": 90,
            "answer_bytes": 2000,
            "failures": failures[:6],
            "failures_left_out": 1,
        },
        "answers": {"ok": 2, "empty": 0, "failed": 7, "missing": 0},
        "errors": {"unknown_video": 7},
        "accuracy": [
            row | {"kind": "open", "overall": False},
            row | {"kind": None, "overall": False},
            row | {"kind": None, "overall": True},
        ],
    }
    lines = summary(report, noun="questions")
    assert lines[0].startswith("9 questions in 3.0 s (3.0/s); 4.1k visual tokens")
    assert "2 ok, 0 empty, 7 failed" in lines[1] and "unknown_video 7" in lines[2]
    assert sum("q" in line and "failed (unknown_video)" in line for line in lines) == 5
    assert "  and 2 more" in lines and all("\n" not in line for line in lines)
    assert not any("--retry-failed" in line for line in lines)
    assert lines[-3:] == [
        "  accuracy of kind open: 50.0% (15.0% to 85.0%), 2 of 4",
        "  accuracy without kind: 50.0% (15.0% to 85.0%), 2 of 4",
        "  accuracy of all: 50.0% (15.0% to 85.0%), 2 of 4",
    ]
    report["answers"]["failed"] = 9
    assert "  2 failed in earlier runs: --retry-failed answers them again" in summary(
        report, noun="questions"
    )
    report["run"]["questions"]["of"] = 0
    assert summary(report, noun="captions")[0] == "nothing to do: all of these captions are in the answers"


def test_the_words_beside_the_bar() -> None:
    snapshot = {"questions_per_s": 0.0, "visual_tokens": 0, "failed": 0, "eta_s": None}
    assert "starting" in rates(snapshot)
    snapshot |= {"questions_per_s": 2.5, "visual_tokens": 4096, "failed": 3, "eta_s": 60.0}
    assert rates(snapshot) == "2.5/s · 4.1k visual tokens · 3 failed · 1 min left"


@pytest.mark.parametrize("name", ["answer", "caption"])
def test_jobs_start_as_modules(name: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", "-h"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(f"Usage: python -m jobs.{name} [OPTIONS] STORE")
    assert "--budget" in result.stdout
