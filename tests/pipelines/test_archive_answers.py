"""A hundred questions about real clips whose files are gone, answered once in peace and once with the driver killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from echoprune.answer_store import open_answers
from pipelines.config import IndexConfig
from tests.pipelines import in_process
from tests.pipelines.conftest import call, start

SHARED = Path(__file__).parents[3] / "shared" / "videos"
CLIPS = (
    "bigbuckbunny.mp4",
    "carphone_pristine.mp4",
    "flipping_a_pancake.mkv",
    "nasa_13013.mp4",
)

pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared clips"),
    pytest.mark.usefixtures("shared_ray"),
]


@pytest.fixture(scope="module")
def store(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the clips, whose files are removed."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "videos").mkdir()
    for name in CLIPS:
        shutil.copy(SHARED / name, folder / "videos" / name)
    paths = (str(folder / "videos"),)
    in_process.index(IndexConfig(paths=paths, store=str(folder / "store"), model=str(tiny)))
    shutil.rmtree(folder / "videos")
    return folder / "store"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [
        {
            "question_id": f"{i:03d}",
            "video": CLIPS[i % len(CLIPS)],
            "question": f"What happens, {i}?",
            "mine": i,
        }
        | ({"options": ["nothing", "much"], "answer": "B"} if i % 3 == 0 else {})
        | ({"start_s": 1.0, "end_s": 3.5} if i % 5 == 0 else {})
        for i in range(100)
    ]


@pytest.fixture(scope="module")
def options(
    store: Path, tiny: Path, rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str | Path, ...]:
    questions = tmp_path_factory.mktemp("questions") / "q.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("answer", store, "--model", tiny, "--questions", questions, "--budget", "64")
    return (*options, "--max-new-tokens", "4", "--shard-questions", "8")


@pytest.fixture(scope="module")
def clean(options: tuple[str | Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clean") / "out"
    call(*options, "--out", out)
    return out


def test_a_hundred_questions_without_the_files(clean: Path, rows: list[dict[str, Any]]) -> None:
    answers = open_answers(clean).table().to_pylist()
    assert len(answers) == 100
    for row, answer in zip(rows, answers, strict=True):
        assert (answer["question_id"], answer["mine"], answer["status"]) == (
            row["question_id"],
            row["mine"],
            "ok",
        )
        assert answer["uri"].endswith(str(row["video"]))
        assert len(answer["kept"]) == answer["visual_tokens"] == min(64, answer["stored_tokens"])
        assert answer["evidence"] and answer["prompt_tokens"] > 64
        inside = (row.get("start_s", 0.0), row.get("end_s", 1e9))
        assert all(inside[0] <= moment["start_s"] < inside[1] for moment in answer["evidence"])
        assert (answer["correct"] is not None) == ("answer" in row)


@pytest.mark.long  # test_answer.py kills a driver and its worker on made-up footage
def test_a_killed_driver_changes_none_of_them(
    clean: Path, options: tuple[str | Path, ...], tmp_path: Path
) -> None:
    driver = start(*options, "--out", tmp_path / "killed")
    while len(list((tmp_path / "killed" / "receipts").glob("*.json"))) < 4:
        assert driver.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(3)
    done = len(list((tmp_path / "killed" / "receipts").glob("*.json")))
    assert 4 <= done < 13
    call(*options, "--out", tmp_path / "killed")
    assert tables(tmp_path / "killed") == tables(clean)


def tables(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (out / "answers").iterdir()}
