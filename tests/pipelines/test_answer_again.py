"""Answer runs over a folder that has answers: of another store, and with failed ones that can be answered by now."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from echoprune.answer_store import open_answers
from tests import indexed
from tests.indexed import Footage
from tests.pipelines.conftest import call

pytestmark = pytest.mark.usefixtures("shared_ray")

STREET = Footage("/never/there/street.mp4", 12, seed=1, event=(7, 9))
PARK = Footage("/never/there/park.mp4", 5, seed=2)
ROWS: tuple[dict[str, Any], ...] = (
    {"question_id": "street", "video": "street.mp4", "question": "what?"},
    {"question_id": "later", "video": "park.mp4", "question": "what?"},
    {"question_id": "bad", "video": "street.mp4"},
)
# Any engine would do; this is the run of the fast one from the command line.
SMALL = ("--budget", "8", "--max-new-tokens", "4", "--shard-questions", "8", "--engine", "fast")


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def answered(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `store`, `q.jsonl`, and `out`: one answer, one question about a video that is not there, a bad row."""
    folder = tmp_path_factory.mktemp("answered")
    indexed.index(folder / "store", tiny, [STREET], keep="0.3")
    given = (
        "--model",
        tiny,
        "--questions",
        write(folder / "q.jsonl", *ROWS),
        "--out",
        folder / "out",
        *SMALL,
    )
    printed = call("answer", folder / "store", *given, expect=3)
    assert "1 ok, 0 empty, 2 failed" in printed and "--retry-failed" not in printed
    return folder


def tables(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for part in ("answers", "plan") for path in (out / part).iterdir()}


def test_another_store_of_the_same_settings_is_refused(answered: Path, tiny: Path, tmp_path: Path) -> None:
    indexed.index(tmp_path, tiny, [replace(STREET, cells=11)], keep="0.3")
    before = tables(answered / "out")
    more = write(answered / "more.jsonl", *ROWS, ROWS[0] | {"question_id": "new"})
    given = ("--model", tiny, "--questions", more, "--out", answered / "out", *SMALL)
    err = call("answer", tmp_path, *given, expect=2, streams=True)
    assert len(err.strip().splitlines()) == 1, err
    assert "holds another video of that id" in err and "another --out" in err
    assert tables(answered / "out") == before


def test_failed_answers_are_answered_again_in_place(answered: Path, tiny: Path, tmp_path: Path) -> None:
    """After its video was indexed, and after its row was mended; nothing stands twice, for a plain glob neither."""
    store, out = (Path(shutil.copytree(answered / name, tmp_path / name)) for name in ("store", "out"))
    before = {row["question_id"]: row for row in open_answers(out).table().to_pylist()}
    given = ("answer", store, "--model", tiny, "--out", out, *SMALL, "--questions")
    printed = call(*given, answered / "q.jsonl", expect=3)
    assert "nothing to do" in printed and "2 failed in earlier runs: --retry-failed" in printed

    indexed.index(tmp_path / "more", tiny, [PARK], shard_id="b2", keep="0.3")
    for table in ("tokens", "cells", "videos", "receipts"):
        shutil.copytree(tmp_path / "more" / table, store / table, dirs_exist_ok=True)
    call(
        *given,
        write(tmp_path / "mended.jsonl", *ROWS[:2], ROWS[2] | {"question": "where?"}),
        "--retry-failed",
    )
    answers = open_answers(out)
    after = {row["question_id"]: row for row in answers.table().to_pylist()}
    assert {name: row["status"] for name, row in after.items()} == dict.fromkeys(
        ("street", "later", "bad"), "ok"
    )
    assert after["street"] == before["street"] and after["later"]["uri"] == PARK.uri
    assert all(row["video_digest"] for row in after.values()) and before["bad"]["video_digest"] is None
    files = sorted(path.relative_to(out).as_posix() for path in (out / "answers").iterdir())
    assert files == sorted(file.name for file in answers.files) and any(".g1-" in name for name in files)
    assert pq.ParquetDataset(out / "answers").read(["question_id"]).num_rows == 3
    report = json.loads((out / "run_report.json").read_text())
    assert report["answers"] == {"ok": 3, "empty": 0, "failed": 0, "missing": 0}
