"""`echoprune overlap` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from echoprune.models.tiny import write_tiny_checkpoint
from jobs.cli import main
from tests.indexed import Footage, index


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {"question_id": str(i), "video": "street.mp4", "question": text}
        for i, text in enumerate(("What?", "Who?"))
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["overlap", *map(str, arguments)], env={"COLUMNS": "160"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_table_a_file_and_a_picture(tiny: Path, questions: Path, tmp_path: Path) -> None:
    index(tmp_path / "store", tiny, [Footage("/v/street.mp4", 8, seed=1, event=(3, 5))])
    options = ("--model", tiny, "--questions", questions, "--budget", "30", "--max-new-tokens", "2")
    code, out, _ = call(tmp_path / "store", *options, "--keeps", "0.5, 2/cell", "--out", tmp_path / "out")
    assert code == 0, out
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[-4:-2]] == ["0.5", "2/cell"]
    table = pq.read_table(tmp_path / "out" / "overlap.parquet")
    assert table.num_rows == 4
    assert table["keep"].to_pylist() == ["0.5", "2/cell"] * 2
    assert (tmp_path / "out" / "overlap.png").read_bytes().startswith(b"\x89PNG")
    with questions.open("a") as file:
        file.write('{"question_id": "x", "video": "nowhere.mp4", "question": "What?"}\n')
    code, out, _ = call(tmp_path / "store", *options, "--keeps", "0.5")
    assert code == 3
    assert "x could not be asked: no video 'nowhere.mp4'" in out


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    tiny: Path, questions: Path, tmp_path: Path
) -> None:
    index(tmp_path / "store", tiny, [Footage("/v/street.mp4", 4, seed=1)])
    (tmp_path / "file").write_text("")
    code, out, err = call(
        tmp_path / "store", "--model", tiny, "--questions", questions, "--out", tmp_path / "file" / "out"
    )
    assert (code, out) == (2, "")
    assert "cannot write to --out" in err.strip().splitlines()[-1] and "progress" not in err


def test_a_pruned_store_is_refused(tiny: Path, questions: Path, tmp_path: Path) -> None:
    index(tmp_path / "store", tiny, [Footage("/v/street.mp4", 8, seed=1)], keep="0.5")
    code, _, err = call(tmp_path / "store", "--model", tiny, "--questions", questions)
    assert code == 2
    assert err.strip().splitlines()[-1] == (
        "echoprune: the store was made with --keep 0.5: what it dropped cannot be compared; index again with --keep all"
    )
