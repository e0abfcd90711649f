"""`--policy` as a user of `answer`, `caption` and `overlap` meets it, where a store does not serve it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.policies import POLICIES
from jobs.cli import main
from tests import indexed
from tests.indexed import Footage

NEEDS_ALL = [name for name, each in POLICIES.items() if each.needs_all]


def call(*arguments: str | Path) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the lines of standard error of a command."""
    result = CliRunner().invoke(main, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr.strip().splitlines()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    path.write_text(json.dumps({"question_id": "q", "video": "a.mp4", "question": "what?"}))
    return path


@pytest.fixture(scope="module")
def pruned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned") / "store"
    indexed.index(folder, model, [Footage("/v/a.mp4", 4, seed=1)], keep="0.5")
    return folder


@pytest.mark.parametrize("policy", NEEDS_ALL)
@pytest.mark.parametrize("command", ["answer", "caption"])
def test_a_pruned_store_is_refused_by_policies_that_need_every_token(
    command: str, policy: str, model: Path, pruned: Path, questions: Path, tmp_path: Path
) -> None:
    asked = ("--questions", questions) if command == "answer" else ()
    out = tmp_path / "out"
    code, said, err = call(command, pruned, "--model", model, "--out", out, "--policy", policy, *asked)
    assert (code, said, len(err)) == (2, "", 1), err
    assert err[0] == (
        f"echoprune: --policy {policy} needs every token, and the store was made with --keep 0.5: "
        "give --policy anchored or echoprune, or index with --keep all"
    )
    assert not out.exists()


@pytest.mark.parametrize("policy", NEEDS_ALL)
def test_overlap_compares_policies_that_take_pruned_stores(
    policy: str, model: Path, questions: Path, tmp_path: Path
) -> None:
    indexed.index(tmp_path / "store", model, [Footage("/v/a.mp4", 4, seed=1)])
    given = ("--model", model, "--questions", questions, "--policy", policy, "--out", tmp_path / "out")
    code, said, err = call("overlap", tmp_path / "store", *given)
    assert (code, said, err) == (
        2,
        "",
        [
            f"echoprune: --policy {policy} takes no pruned store, so that there is nothing to compare: "
            "give one of anchored, echoprune"
        ],
    )
    assert not (tmp_path / "out").exists()
