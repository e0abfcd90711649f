"""`--max-failed`: a run that fails too much stops with one line; what was committed stands, the same command goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from echoprune.answer_store import open_answers
from echoprune.errors import ConfigError, TooManyFailedError
from echoprune.receipt import read_receipts
from echoprune.storage import Storage
from echoprune.verify import verify
from pipelines.answer import run_answer
from pipelines.answer_config import AnswerConfig
from pipelines.config import IndexConfig
from pipelines.index import run_index
from pipelines.max_failed import MaxFailed
from pipelines.retry import run_retry
from pipelines.retry_config import RetryConfig
from tests.clips import Clip, even, write
from tests.pipelines.conftest import report

pytestmark = pytest.mark.usefixtures("shared_ray")

BROKEN, GOOD, UNKNOWN = 6, 2, 8


@pytest.mark.parametrize(
    ("text", "of", "most"),
    [(None, 10, math.inf), ("3", 10, 3), ("0", 10, 0), ("0.25", 10, 2.5), ("0.0", 9, 0)],
)
def test_a_number_or_a_share(text: str | None, of: int, most: float) -> None:
    limit = MaxFailed.parse(text, of=of)
    assert limit.most == most
    limit.check(min(of, math.floor(most) if most < of else of), of=of, what="videos", classes={})
    if most < of:
        with pytest.raises(TooManyFailedError, match=f"{math.floor(most) + 1} of {of} videos failed"):
            limit.check(math.floor(most) + 1, of=of, what="videos", classes={"empty": 1})


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1.0", "5%", "nan", "inf", "many", "٣"])
def test_what_is_neither(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--max-failed is .*give a whole number"):
        IndexConfig(store="store", model="tiny", max_failed=text)
    with pytest.raises(ConfigError, match=r"--max-failed is .*give a whole number"):
        AnswerConfig(store="store", model="tiny", out="out", questions="q.jsonl", max_failed=text)
    with pytest.raises(ConfigError, match=r"--max-failed is .*give a whole number"):
        RetryConfig(store="store", max_failed=text)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in range(GOOD):
        write(Clip(f"good {number}.mp4", even(40 + 8 * number)), folder)
    for number in range(BROKEN):
        (folder / f"broken {number}.mp4").write_text("not a video")
    return folder


def index(store: Path, clips: Path, tiny: Path, max_failed: str | None) -> None:
    config = IndexConfig(
        store=str(store), model=str(tiny), paths=(str(clips),), shard_videos=2, decoders_per_gpu="0",
        max_failed=max_failed,
    )  # fmt: skip
    run_index(config, on_progress=lambda snapshot: None)


def test_index_retry_and_answer(clips: Path, tiny: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(TooManyFailedError, match=f"3 of {BROKEN + GOOD} videos failed .*--max-failed 2 lets"):
        index(store, clips, tiny, "2")
    done = read_receipts(Storage(store))
    # The third, whose shard has one more to come, ends the run.
    assert 0 < len(done) < BROKEN + GOOD and sum(each.failed for each in done.values()) == 2
    assert report(store)["run"]["videos"]["failed"] == 2
    # What failed in an earlier run counts there alone: four are left.
    index(store, clips, tiny, str(BROKEN - 2))
    assert report(store)["store"] == {"ok": GOOD, "partial": 0, "failed": BROKEN, "missing": 0}
    with pytest.raises(TooManyFailedError, match=rf"4 of {BROKEN} videos failed .*--max-failed 0.5 lets"):
        run_retry(RetryConfig(store=str(store), max_failed="0.5"), on_progress=lambda snapshot: None)
    assert report(store)["store"] == {"ok": GOOD, "partial": 0, "failed": BROKEN, "missing": 0}
    # What was written again before the end counts; what it superseded lies there until the next command.
    assert report(store)["job"] == "retry" and all("run gc" in line for line in verify(store))

    questions = tmp_path / "q.jsonl"
    rows = [{"question_id": "a", "video": "good 0.mp4", "question": "What moves?"}]
    rows += [
        {"question_id": f"u{i}", "video": "nowhere.mp4", "question": "What moves?"} for i in range(UNKNOWN)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answer(max_failed: str | None) -> None:
        config = AnswerConfig(
            store=str(store), model=str(tiny), out=str(tmp_path / "out"), questions=str(questions), budget="32",
            max_new_tokens=4, shard_questions=2, batch=2, max_failed=max_failed,
        )  # fmt: skip
        run_answer(config, on_progress=lambda snapshot: None)

    with pytest.raises(TooManyFailedError, match=rf"5 of {UNKNOWN + 1} questions failed"):
        answer("0.5")
    assert 0 < len(open_answers(tmp_path / "out").table(["status"])) < UNKNOWN + 1
    answer(None)
    statuses = open_answers(tmp_path / "out").table(["status"])["status"].to_pylist()
    assert sorted(statuses) == ["failed"] * UNKNOWN + ["ok"]
