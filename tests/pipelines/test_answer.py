"""Whole answer and caption runs, with real Ray, most of them with the same; their store was made without Ray or video."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from echoprune.answer import answer_questions
from echoprune.answer_plan import AnswerShard, extend_plan
from echoprune.answer_run import create_answers
from echoprune.answer_settings import AnswerSettings
from echoprune.answer_store import open_answers
from echoprune.errors import StoreMismatchError
from echoprune.lease import Lease
from echoprune.models import load_answerer
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.question import Question
from echoprune.questions import read_questions
from echoprune.receipt import read_receipts
from echoprune.storage import Storage
from echoprune.store import open_store
from pipelines import answer as driver
from pipelines.answer_config import AnswerConfig
from pipelines.answer_worker import AnswerJob, AnswerWorker
from pipelines.crew import Crew
from pipelines.events import QuestionsStarted, ShardCommitted
from tests import indexed
from tests.indexed import Footage
from tests.pipelines.conftest import NO_RAY, RUN_LIMIT_S, actors, call, run, start

pytestmark = pytest.mark.usefixtures("shared_ray")

FOOTAGE = (
    Footage("/never/there/street.mp4", 12, seed=1, event=(7, 9)),
    Footage("/never/there/park.mp4", 5, seed=2),
    Footage("/never/there/more/park.mp4", 4, seed=3, event=(2, 3)),
)
SMALL = ("--budget", "24", "--max-new-tokens", "12", "--shard-questions", "3", "--batch", "2")
QUESTIONS = 30


def asked(count: int = QUESTIONS) -> list[dict[str, Any]]:
    """`count` good questions, half of them with options, and five that cannot be answered."""
    good: list[dict[str, Any]] = [
        {
            "question_id": f"q{i:02d}",
            "video": "street.mp4" if i % 3 else "/never/there/park.mp4",
            "question": f"What is in the corner, {'left' * (i % 4)}?",
            "kind": "choice" if i % 2 else "open",
            "level": i % 5,
        }
        | ({"options": ["a bird", "a car"], "answer": "A"} if i % 2 else {})
        | ({"start_s": 2.0, "end_s": 9.0} if i % 5 == 0 else {})
        for i in range(count)
    ]
    return [
        *good,
        {"question_id": "unknown", "video": "nosuch.mp4", "question": "x?", "level": 1},
        {"question_id": "ambiguous", "video": "park.mp4", "question": "x?"},
        {"question_id": "unreadable", "video": "/never/there/broken.mp4", "question": "x?"},
        {"question_id": "late", "video": "street.mp4", "question": "x?", "start_s": 100},
        {"question_id": "nothing", "video": "street.mp4"},
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def store(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("indexed") / "store"
    indexed.index(folder, tiny, FOOTAGE, failed=["/never/there/broken.mp4"], keep="0.3")
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("questions") / "q.jsonl", asked())


@pytest.fixture(scope="module")
def clean(store: Path, tiny: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers of one undisturbed run, failed ones among them (exit code 3)."""
    out = tmp_path_factory.mktemp("clean") / "out"
    printed = call(
        "answer", store, "--model", tiny, "--questions", questions, "--out", out, *SMALL,
        "--by", "kind", "--by", "level", "--limit", "4", expect=3,
    )  # fmt: skip
    assert "30 ok, 0 empty, 5 failed" in printed and "accuracy of kind choice, level 1" in printed
    assert "q00 park.mp4 2.0-9.0 s: What is in the corner" in printed and "evidence: " in printed
    return out


def tables(out: Path) -> dict[str, str]:
    """sha256 of every table file that must not differ between two runs of the same input."""
    found = [path for table in ("answers", "plan") for path in sorted((out / table).glob("*.parquet"))]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run_report.json").read_text())
    return found


def test_every_question_has_its_row(clean: Path, store: Path, tiny: Path, questions: Path) -> None:
    rows = {row["question_id"]: row for row in open_answers(clean).table().to_pylist()}
    assert set(rows) == {row["question_id"] for row in asked()}
    classes = {name: row["error_class"] for name, row in rows.items() if row["status"] == "failed"}
    assert classes == {
        "unknown": "unknown_video",
        "ambiguous": "ambiguous_video",
        "unreadable": "video_failed",
        "late": "range_outside",
        "nothing": "bad_row",
    }
    good = [row for row in rows.values() if row["status"] == "ok"]
    assert len(good) == QUESTIONS
    assert all(row["evidence"] and 0 < row["visual_tokens"] <= 24 for row in good)
    assert all(len(row["kept"]) == row["visual_tokens"] and row["new_tokens"] for row in good)
    assert rows["q03"]["level"] == 3 and rows["ambiguous"]["level"] is None
    assert rows["q00"]["correct"] is None and rows["q01"]["correct"] is not None
    assert open_answers(clean).table().schema.field("level").type == pa.int64()


def test_rows_are_those_of_the_plain_function(clean: Path, store: Path, tiny: Path, questions: Path) -> None:
    """The cluster changes nothing: one call of the core over each shard's questions gives its rows."""
    settings = AnswerSettings(budget="24", max_new_tokens=12, batch=2)
    answerer = load_answerer(str(tiny), device="cpu")
    file = read_questions(str(questions))
    shards = extend_plan(
        Storage(clean.parent / "plan"), file.questions, extra=file.extra, shard_questions=3, batch=2
    )
    texts = {
        answer.question.question_id: answer.raw_text
        for shard in shards[:4]
        for answer in answer_questions(
            shard.questions, store=open_store(store), answerer=answerer, settings=settings
        )
    }
    found = open_answers(clean).table(["question_id", "raw_text"]).to_pylist()
    stored = {row["question_id"]: row["raw_text"] or "" for row in found}
    assert len(texts) > 8 and texts.items() <= stored.items()


def test_the_report_and_receipts_add_up(clean: Path) -> None:
    found = report(clean)
    assert found["answers"] == {"ok": 30, "empty": 0, "failed": 5, "missing": 0}
    assert found["run"]["questions"] == {"done": 35, "of": 35, "before": 0, "ok": 30, "failed": 5}
    assert found["errors"] == found["run"]["errors"] and sum(found["errors"].values()) == 5
    table = open_answers(clean).table(["visual_tokens", "answer", "correct"])
    assert found["run"]["visual_tokens"] == sum(table["visual_tokens"].to_pylist())
    total = found["accuracy"][-1]
    assert (
        total["overall"]
        and total["n"] == 15
        and total["correct"] == sum(filter(None, table["correct"].to_pylist()))
    )
    receipts = read_receipts(Storage(clean)).values()
    assert len(receipts) == found["run"]["shards"] > 10
    assert (sum(each.ok for each in receipts), sum(each.failed for each in receipts)) == (30, 5)
    assert sum(each.files[0].rows for each in receipts) == 35


def test_the_same_command_again_has_nothing_to_do_and_starts_no_ray(
    clean: Path, store: Path, tiny: Path, questions: Path
) -> None:
    before = tables(clean)
    command = ("answer", store, "--model", tiny, "--questions", questions, "--out", clean, *SMALL)
    # Failed answers stand: the exit code says so again.
    assert "nothing to do" in run(*command, expect=3, more=NO_RAY)
    assert tables(clean) == before
    assert report(clean)["run"]["questions"] == {"done": 0, "of": 0, "before": 35}
    assert "nothing to do" in call(*command, "--failed-ok")


def test_a_killed_worker_and_a_killed_driver_lose_nothing(
    clean: Path, store: Path, tiny: Path, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("answer", store, "--model", tiny, "--questions", questions, "--out", out, *SMALL)
    process = start(*command)
    deadline = time.monotonic() + RUN_LIMIT_S

    def wait_for(what: str, count: int) -> None:
        while len(list((out / what).glob("*.json"))) < count:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.005)

    wait_for("receipts", 1)
    for worker in actors(process.pid, "AnswerWorker"):
        os.kill(worker, signal.SIGKILL)
    wait_for("receipts", 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(list((out / "receipts").glob("*.json")))
    assert 3 <= done < len(list((clean / "receipts").glob("*.json"))), "killed too late to show anything"
    call(*command, expect=3)
    assert tables(out) == tables(clean)
    assert report(out)["run"]["questions"]["before"] >= 3 and not list((out / ".tmp").glob("*"))


def test_appended_questions_alone_are_answered(clean: Path, store: Path, tiny: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(clean, tmp_path / "out"))
    before = tables(out)
    more = [row | {"question_id": f"new {i}"} for i, row in enumerate(asked(2)[:2])]
    command = ("answer", store, "--model", tiny, "--out", out, *SMALL, "--questions")
    call(*command, write(tmp_path / "more.jsonl", [*asked(), *more]), expect=3)
    assert before.items() < tables(out).items()
    assert report(out)["run"]["questions"] == {"done": 2, "of": 2, "before": 35, "ok": 2}
    ids = open_answers(out).table(["question_id"])["question_id"].to_pylist()
    assert len(ids) == 37 and {"new 0", "new 1"} < set(ids)

    changed = [asked()[0] | {"question": "Something else?"}, *asked()[1:]]
    err = call(*command, write(tmp_path / "changed.jsonl", changed), expect=2, streams=True)
    assert "'q00' was planned with other content" in err


def test_captions_of_every_window(tiny: Path, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    indexed.index(store, tiny, FOOTAGE, keep="0.02")
    (tmp_path / "mine.jinja").write_text("Tell what happens from {{ start_s | clock }} on.")
    printed = call(
        "caption", store, "--model", tiny, "--out", out, "--window", "1s", "--template", tmp_path / "mine.jinja",
        "--max-new-tokens", "6", "--limit", "1",
    )  # fmt: skip
    rows = open_answers(out).table().to_pylist()
    windows = {
        (Path(row["uri"]).parent.name, Path(row["uri"]).name, row["start_s"], row["end_s"]) for row in rows
    }
    assert {window for window in windows if window[0] == "more"} == {
        ("more", "park.mp4", float(second), second + 1.0) for second in range(4)
    }
    assert len(rows) == 12 + 5 + 4 and {row["kind"] for row in rows} == {"caption"}
    assert {row["template"] for row in rows} == {"mine.jinja"} and len(
        {row["template_hash"] for row in rows}
    ) == 1
    # So little is kept, and no anchors, that some windows have nothing.
    status = {row["status"] for row in rows}
    assert status == {"ok", "empty"}
    for row in rows:
        times = {position["t"] for position in row["kept"]}
        assert all(row["start_s"] <= t < row["end_s"] for t in times)
        assert (row["status"] == "empty") == (not times)
    assert "empty" in printed
    marker = json.loads((out / "answers.json").read_text())
    assert (marker["job"], marker["window_s"], marker["settings"]["relevance"]) == ("caption", 1.0, "off")


def test_a_model_that_did_not_make_the_store_is_refused_first(
    store: Path, tmp_path: Path, questions: Path
) -> None:
    other = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "other", seed=5)
    out = tmp_path / "out"
    command = ("answer", store, "--model", other, "--questions", "nosuch.jsonl", "--out", out)
    err = call(*command, expect=2, streams=True)
    assert len(err.strip().splitlines()) == 1
    made_with = open_store(store).settings.model_fingerprint
    assert made_with[:16] in err and str(other) in err and "give the --model" in err
    assert not out.exists()


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"budget": "25"}, "budget = '24'"),
        ({"letters": True}, "letters = False"),
        ({"seed": 1}, "seed = 0"),
    ],
)
def test_other_settings_are_refused(
    clean: Path, store: Path, tiny: Path, questions: Path, option: dict[str, Any], says: str
) -> None:
    given = {"budget": "24", "max_new_tokens": 12, "batch": 2, "questions": str(questions)}
    config = AnswerConfig(store=str(store), model=str(tiny), out=str(clean), **(given | option))
    before = sorted(clean.rglob("*"))
    with pytest.raises(StoreMismatchError, match=says):
        driver.run_answer(config, on_progress=lambda snapshot: None)
    assert sorted(clean.rglob("*")) == before


@pytest.fixture
def job(store: Path, tiny: Path, questions: Path, tmp_path: Path) -> AnswerJob:
    """A job for a worker in this process, with the lease that it writes under."""
    config = AnswerConfig(
        store=str(store),
        model=str(tiny),
        out=str(tmp_path / "out"),
        budget="24",
        max_new_tokens=4,
        batch=3,
        questions=str(questions),
    )
    settings = AnswerSettings(**config.settings_values())
    made_by = driver._answer_run(config, settings, open_store(store), job="answer", extra={})
    storage = create_answers(config.out, made_by)
    threads = torch.get_num_threads()
    lease = Lease.acquire(storage, run_id="test")
    crew = Crew(encoders=1, decoders=0, gpus_each=0, threads=threads)
    return AnswerJob(config, settings, {}, "fp32", crew, str(store), config.out, "test", lease.epoch)


def test_what_a_worker_announces_and_leaves_out(job: AnswerJob) -> None:
    """Each question before it is looked at, each batch before it is answered; suspects one by one, killers not at all."""
    worker = AnswerWorker(job)
    worker.load()
    about = tuple(
        Question(question_id=name, video="street.mp4", question=f"what {name}?") for name in "abcdefg"
    )

    def answered(
        shard_id: str, *known: frozenset[str]
    ) -> tuple[list[tuple[str, ...]], dict[str, dict[str, Any]]]:
        events = list(worker.run_shard(AnswerShard(shard_id, about), *known))
        assert isinstance(events[-1], ShardCommitted)
        batches = [each.question_ids for each in events if isinstance(each, QuestionsStarted)]
        table = open_answers(job.out)
        table.receipts = {shard_id: table.receipts[shard_id]}
        return batches, {row["question_id"]: row for row in table.table().to_pylist()}

    batches, rows = answered("one", frozenset())
    assert batches == [
        ("a",), ("b",), ("c",), ("d",), ("a", "b", "c"), ("e",), ("f",), ("g",), ("d", "e", "f"), ("g",),
    ]  # fmt: skip
    batches, again = answered("two", frozenset({"e"}), frozenset({"d", "e", "f"}))
    together = [batch for batch in batches if len(batch) > 1]
    assert together == [("a", "b", "c")] and batches.count(("d",)) == batches.count(("f",)) == 2
    assert ("e",) not in batches
    assert (again["e"]["status"], again["e"]["error_class"]) == ("failed", "killed_worker")
    assert {name: row for name, row in again.items() if name != "e"} == {
        name: row for name, row in rows.items() if name != "e"
    }
