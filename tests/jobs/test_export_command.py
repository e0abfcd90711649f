"""`echoprune export` as a user meets it: what goes with what, and that files hold what the store holds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.sources import video_id
from echoprune.store import open_store
from jobs.cli import main
from tests.answer_folders import answer, failed, write_answers
from tests.indexed import Footage, index

URI = "/v/a.mp4"


def call(*arguments: str | Path) -> tuple[int, str, list[str]]:
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr.strip().splitlines()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    tiny = write_tiny_checkpoint("qwen2_5_vl", folder / "tiny")
    index(folder / "store", tiny, [Footage(URI, 5, event=(1, 3))], failed=["/v/b.mp4"], dtype="int8")
    return folder / "store"


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    rows = [answer("q1", "What is it?", "a bus", answer="a bus", correct=True), failed("q2", "Where?")]
    write_answers(tmp_path / "answers", "a1", rows)
    return tmp_path / "answers"


@pytest.mark.parametrize("option", [(), ("--format", "jsonl")])
def test_answers_as_samples(answers: Path, tmp_path: Path, option: tuple[str, ...]) -> None:
    code, out, err = call("export", answers, "--out", tmp_path / "new" / "a.jsonl", *option)
    assert code == 0 and err == [] and out == f"2 answers written to {tmp_path / 'new' / 'a.jsonl'}\n"
    first, second = (json.loads(line) for line in (tmp_path / "new" / "a.jsonl").read_text().splitlines())
    assert (first["doc"]["question_id"], first["resps"], first["accuracy"]) == ("q1", [["a bus"]], 1.0)
    assert second["echoprune"]["status"] == "failed"


@pytest.mark.parametrize("option", [(), ("--format", "parquet")])
def test_tokens_as_parquet(store: Path, tmp_path: Path, option: tuple[str, ...]) -> None:
    tokens = open_store(store).tokens(URI)
    code, out, _ = call("export", store, "--out", tmp_path / "p", *option)
    assert code == 0 and out == f"{len(tokens)} tokens written to {tmp_path / 'p'}\n"
    read = pq.read_table(tmp_path / "p" / "tokens.parquet")
    assert np.array_equal(np.array(read["emb"].to_pylist(), np.float32), tokens.tokens.numpy())
    assert len(pq.read_table(tmp_path / "p" / "videos.parquet")) == 2


def test_tokens_as_numpy(store: Path, tmp_path: Path) -> None:
    tokens = open_store(store).tokens(URI)
    code, out, _ = call("export", store, "--out", tmp_path / "n", "--format", "npz")
    assert code == 0 and out.startswith(f"{len(tokens)} tokens")
    assert [path.name for path in (tmp_path / "n").iterdir()] == [f"{video_id(URI)}.npz"]
    with np.load(tmp_path / "n" / f"{video_id(URI)}.npz") as read:
        assert np.array_equal(read["emb"], tokens.tokens.numpy())


@pytest.mark.skipif(importlib.util.find_spec("lance") is None, reason="needs the package pylance")
def test_tokens_as_lance(store: Path, tmp_path: Path) -> None:
    import lance

    code, _, _ = call("export", store, "--out", tmp_path / "l", "--format", "lance")
    assert code == 0
    assert lance.dataset(tmp_path / "l" / "tokens.lance").count_rows() == len(open_store(store).tokens(URI))


@pytest.mark.skipif(importlib.util.find_spec("lance") is not None, reason="pylance is there")
def test_without_lance_the_cure_is_named(store: Path, tmp_path: Path) -> None:
    code, _, err = call("export", store, "--out", tmp_path / "l", "--format", "lance")
    assert code == 2 and len(err) == 1 and "pip install pylance" in err[0]
    assert not (tmp_path / "l").exists()


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("STORE", ("--format", "jsonl"), "is a store, which is written as parquet or npz or lance"),
        ("ANSWERS", ("--format", "npz"), "holds answers, which is written as jsonl"),
        ("STORE", ("--format", "csv"), "csv"),
        ("EMPTY", (), "is neither a store (it has no store.json) nor answers (no answers.json)"),
        ("nosuch", (), "is neither a store"),
        ("ftp://host/store", (), "STORE_OR_ANSWERS ftp://host/store cannot be used"),
        ("STORE", ("--out", "THERE"), "is there already"),
        ("ANSWERS", ("--out", "THERE"), "is there already"),
        ("STORE", ("--out", ""), "--out '' is not a local path"),
        ("STORE", ("--out", "s3://bucket/out"), "is not a local path"),
    ],
)
def test_wrong_usage_is_one_line(
    store: Path, answers: Path, tmp_path: Path, source: str, options: tuple[str, ...], says: str
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    (tmp_path / "empty").mkdir()
    named = {"STORE": store, "ANSWERS": answers, "EMPTY": tmp_path / "empty", "THERE": tmp_path / "there"}
    given = [named.get(each, each) for each in (source, "--out", str(tmp_path / "out"), *options)]
    code, out, err = call("export", *given)
    assert code == 2 and out == "" and len(err) == 1 and says in err[0], err
    assert not (tmp_path / "out").exists() and (tmp_path / "there" / "mine").read_text() == "mine"


def test_out_is_needed(store: Path) -> None:
    code, _, err = call("export", store)
    assert code == 2 and len(err) == 1 and "--out" in err[0]
