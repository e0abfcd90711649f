"""The parts of an evaluation that need no Ray: what a budget holds, and what a worker does with questions that kill it."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from echoprune.answer_settings import AnswerSettings
from echoprune.errors import ConfigError
from echoprune.evaluation_folder import EvalRun, answers_name, create_evaluation, store_name
from echoprune.evaluation_grid import Setting
from echoprune.evaluation_questions import Scorable
from echoprune.lease import Lease
from echoprune.models.tiny import write_tiny_checkpoint
from echoprune.question import Question
from echoprune.s3_options import S3Options
from echoprune.storage import Storage
from echoprune.store import open_store
from pipelines.evaluate_config import EvalConfig
from pipelines.evaluate_stores import budget_fits
from pipelines.evaluate_worker import EvalJob, EvalTask, EvalWorker
from pipelines.events import QuestionsStarted, ShardCommitted
from tests import indexed
from tests.indexed import Footage

FOOTAGE = (Footage("/v/street.mp4", 8, seed=1, event=(3, 5)), Footage("/v/park.mp4", 4, seed=2))
ASKED = tuple(
    Question(question_id=name, video="street.mp4", question=f"what {name}?", kind="event_x", answer="yes")
    for name in "abcdefg"
)


def scorable(*questions: Question) -> Scorable:
    return Scorable(questions, {each.question_id: each.kind for each in questions}, ("/v/street.mp4",))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_budget_that_holds_all_of_every_video(family: str, tmp_path: Path) -> None:
    model = write_tiny_checkpoint(family, tmp_path / "tiny")
    stores = [(8, "all"), (8, "0.25")]
    for count, keep in stores:
        folder = tmp_path / "out" / store_name(count, keep)
        indexed.index(folder, model, FOOTAGE, failed=["/v/broken.mp4"], keep=keep)
    config = EvalConfig(questions="q", model=str(model), out=str(tmp_path / "out"), paths=("v",))
    storage = Storage(tmp_path / "out")
    fits = budget_fits(config, scorable(*ASKED), storage, stores)
    ranged = budget_fits(
        config, scorable(Question(question_id="r", video="a", question="x?", end_s=2.0)), storage, stores
    )
    rows = open_store(tmp_path / "out" / store_name(8, "0.25")).videos().to_pylist()
    tokens, kept = (max(row[name] or 0 for row in rows) for name in ("tokens", "kept"))
    assert kept < tokens / 2
    # The text of Qwen3-VL's cells takes room of its own.
    plain = family == "qwen2_5_vl"
    assert fits(8, "all", str(tokens)) is plain and not fits(8, "all", str(tokens - 1))
    assert fits(8, "0.25", str(kept)) is plain and not fits(8, "0.25", str(kept - 1))
    assert fits(8, "0.25", "0.9") is plain and not fits(8, "0.25", "0.1") and not fits(8, "all", "0.9")
    assert ranged(8, "all", str(tokens)) is plain and not ranged(8, "0.25", "0.9")


def test_videos_that_all_failed_are_no_evaluation(tmp_path: Path) -> None:
    model = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "tiny")
    indexed.index(tmp_path / "out" / store_name(8, "all"), model, [], failed=["/v/broken.mp4"])
    config = EvalConfig(questions="q", model=str(model), out=str(tmp_path / "out"), paths=("v",))
    with pytest.raises(ConfigError, match=r"none of the videos could be indexed, such as /v/broken\.mp4: "):
        budget_fits(config, scorable(*ASKED), Storage(tmp_path / "out"), [(8, "all")])


def test_what_a_worker_announces_and_leaves_out(tmp_path: Path) -> None:
    """Batches; suspects one by one, killers not at all; what is known of another setting does not matter here."""
    model = write_tiny_checkpoint("qwen2_5_vl", tmp_path / "tiny")
    run = EvalRun(model_digest="m", compute_dtype="fp32", videos="v", questions="q", settings={})
    storage = create_evaluation(tmp_path / "out", run)
    lease = Lease.acquire(storage, run_id="test")
    setting = Setting("uniform", 8, "20", "all")
    store = indexed.index(tmp_path / "out" / store_name(8, "all"), model, FOOTAGE).storage.url
    job = EvalJob(
        model=str(model),
        compute_dtype="fp32",
        device="cpu",
        threads=torch.get_num_threads(),
        questions=ASKED,
        settings=AnswerSettings(budget_includes_text=True, max_new_tokens=2, batch=3),
        out=storage.url,
        s3=S3Options(),
        lease_epoch=lease.epoch,
    )
    worker = EvalWorker(job)
    worker.load()

    def answered(*known: set[str]) -> tuple[list[str], list[dict[str, object]]]:
        events = list(worker.run_shard(EvalTask(setting, store), *map(frozenset, known)))
        assert isinstance(events[-1], ShardCommitted) and events[-1].shard_id == setting.name
        batches = [
            "".join(name[0] for name in each.question_ids)
            for each in events
            if isinstance(each, QuestionsStarted)
        ]
        return batches, pq.read_table(tmp_path / "out" / answers_name(setting)).to_pylist()

    batches, rows = answered(set())
    assert batches == ["abc", "def", "g"] and [row["question_id"] for row in rows] == list("abcdefg")
    assert all(row["visual_tokens"] == 20 and row["status"] == "ok" for row in rows)
    here = f"({setting.name})"
    batches, again = answered({f"e {here}", "a (another)"}, {f"{name} {here}" for name in "def"})
    assert batches == ["abc", "d", "f", "g"]
    assert [row["error_class"] for row in again] == [None] * 4 + ["killed_worker"] + [None] * 2
    assert [row for row in again if row["question_id"] != "e"] == [
        row for row in rows if row["question_id"] != "e"
    ]
