"""The scheduler over small workers on real Ray: who is blamed, what is run again, what ends a run."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from echoprune.errors import ConfigError, ModelError, StoreError
from pipelines.events import (
    CellsDone,
    Event,
    QuestionDone,
    QuestionsStarted,
    ShardCommitted,
    VideoDone,
    VideoStarted,
    in_hand,
)
from pipelines.ray_session import session
from pipelines.schedule import DEATHS_PER_SHARD, DEATHS_PER_VIDEO, LOADS, Scheduler


@dataclass(frozen=True)
class Shard:
    shard_id: str
    videos: tuple[str, ...]


class Worker:
    """Does shards whose videos say what happens: "ok", "die" (the process ends), "raise", "die once"."""

    def __init__(self, notes: Path, load: str = "ok") -> None:
        self._notes, self._load = notes, load

    def load(self) -> None:
        count = self._note("load")
        if self._load == "missing":
            raise ModelError("no such model")
        if self._load == "die" or (self._load == "die once" and count == 1):
            os._exit(1)

    def run_shard(self, shard: Shard, quarantined: frozenset[str]) -> Iterator[Event]:
        for video in shard.videos:
            if video in quarantined:
                yield VideoDone(
                    video, video, "failed", 1, 0.0, 0, 0, 0, "worker_died", "killed the worker twice"
                )
                continue
            what = video.split(":")[1]
            if what == "early":
                os._exit(1)
            yield VideoStarted(video)
            if what == "die" or (what == "die once" and self._note(video) == 1):
                os._exit(1)
            if what == "full":
                raise StoreError("disk full")
            if what == "raise":
                raise MemoryError("too large")
            if what == "wrong":
                raise ConfigError("--keep is wrong")
            if what == "io" or (what == "io twice" and self._note(video) <= 2):
                raise OSError(errno.EIO, "input/output error")
            yield VideoDone(video, video, "ok", 1, 1.0, 1, 1, 1, "", "")
        yield ShardCommitted(shard.shard_id, 1, 0.0, 0.0, 0.0)

    def _note(self, name: str) -> int:
        """How often this was noted, over all processes."""
        path = self._notes / name.replace(":", "-").replace(" ", "-")
        with path.open("a") as file:
            file.write("x")
        return path.stat().st_size


class BatchWorker:
    """Does shards of questions all at once, but those that are to be `alone`; "die" and "die once" as above."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes

    def load(self) -> None:
        pass

    def run_shard(
        self, shard: Shard, quarantined: frozenset[str], alone: frozenset[str] = frozenset()
    ) -> Iterator[Event]:
        asked = [each for each in shard.videos if each not in quarantined]
        together = [each for each in asked if each not in alone]
        for batch in ([together] if together else []) + [[each] for each in asked if each in alone]:
            yield QuestionsStarted(tuple(batch))
            for each in batch:
                path = self._notes / each.replace(":", "-")
                first = not path.exists()
                path.touch()
                if each.endswith(":die") or (each.endswith(":die once") and first):
                    os._exit(1)
            for each in batch:
                yield QuestionDone(each, "ok", "", "", 1, 1)
        for each in quarantined & set(shard.videos):
            yield QuestionDone(each, "failed", "killed_worker", "killed the worker twice", 0, 0)
        yield ShardCommitted(shard.shard_id, 1, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with session(None, object_store_bytes=80 << 20):
        yield


class Run:
    """A scheduler at work on shards of worker scripts, and all events it passed on."""

    def __init__(self, notes: Path, *, load: str = "ok", workers: int = 1) -> None:
        self.events: list[tuple[str, Event]] = []
        self.made = 0

        def make_worker() -> object:
            self.made += 1
            return ray.remote(Worker).options(num_cpus=0.1, max_restarts=0).remote(notes, load)

        self.scheduler = Scheduler(
            make_worker, workers, lambda shard, event: self.events.append((shard, event))
        )

    def on(self, *shards: Shard) -> Run:
        self.scheduler.run(shards)
        return self

    @property
    def committed(self) -> Counter[str]:
        return Counter(shard for shard, event in self.events if isinstance(event, ShardCommitted))

    def last_status(self, video: str) -> str:
        return [e.status for _, e in self.events if isinstance(e, VideoDone) and e.video_id == video][-1]


def test_every_shard_is_committed_once_over_several_workers(tmp_path: Path) -> None:
    shards = [Shard(f"s{i}", (f"v{i}:ok", f"w{i}:ok")) for i in range(7)]
    run = Run(tmp_path, workers=3).on(*shards)
    assert run.committed == {f"s{i}": 1 for i in range(7)}
    assert run.made == 3


def test_a_video_that_kills_its_worker_twice_is_quarantined(tmp_path: Path) -> None:
    run = Run(tmp_path).on(Shard("s", ("a:ok", "b:die", "c:ok")), Shard("t", ("d:ok",)))
    assert run.committed == {"s": 1, "t": 1}
    assert run.scheduler.quarantined == {"b:die"}
    assert run.last_status("b:die") == "failed" and run.last_status("a:ok") == run.last_status("c:ok") == "ok"
    assert run.made == 1 + DEATHS_PER_VIDEO


def test_one_death_is_not_held_against_a_video(tmp_path: Path) -> None:
    run = Run(tmp_path).on(Shard("s", ("a:ok", "b:die once")))
    assert run.committed == {"s": 1} and run.scheduler.quarantined == set()
    assert run.last_status("b:die once") == "ok"


def test_two_deadly_videos_in_one_shard(tmp_path: Path) -> None:
    run = Run(tmp_path).on(Shard("s", ("a:die", "b:raise", "c:ok")))
    assert run.committed == {"s": 1} and run.scheduler.quarantined == {"a:die", "b:raise"}


def test_deaths_that_no_video_explains_end_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(StoreError, match=f"broke its worker {DEATHS_PER_SHARD} times"):
        run.on(Shard("s", ("a:early",)))
    assert run.made == DEATHS_PER_SHARD


def test_a_store_error_ends_the_run_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(StoreError, match="disk full"):
        run.on(Shard("s", ("a:full",)))
    assert run.made == 1


def test_a_wrong_option_found_by_a_worker_ends_the_run_as_wrong_usage(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(ConfigError, match="--keep is wrong"):
        run.on(Shard("s", ("a:wrong",)))
    assert run.made == 1


def test_an_error_of_the_disk_is_no_videos_fault(tmp_path: Path) -> None:
    run = Run(tmp_path).on(Shard("s", ("a:io twice", "b:ok")))
    assert run.committed == {"s": 1} and run.last_status("a:io twice") == "ok"
    run = Run(tmp_path)
    with pytest.raises(StoreError, match=f"broke its worker {DEATHS_PER_SHARD} times.*input/output error"):
        run.on(Shard("t", ("a:io",)))
    assert run.scheduler.quarantined == set() and run.made == DEATHS_PER_SHARD


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        Run(tmp_path, load="missing").on(Shard("s", ("a:ok",)))
    run = Run(tmp_path / "..", load="die")
    with pytest.raises(ModelError, match=f"died {LOADS} times"):
        run.on(Shard("s", ("a:ok",)))
    assert run.made == LOADS


def test_an_encoder_killed_while_loading_is_replaced(tmp_path: Path) -> None:
    run = Run(tmp_path, load="die once").on(Shard("s", ("a:ok",)))
    assert run.committed == {"s": 1} and run.made == 2


def test_nothing_to_do_starts_no_worker(tmp_path: Path) -> None:
    assert Run(tmp_path).on().made == 0


def answered(notes: Path, *shards: Shard) -> tuple[Scheduler, dict[str, str], int]:
    """The scheduler after a run of batches, the last status of each question, and how many workers it took."""
    last: dict[str, str] = {}
    made = []

    def make_worker() -> object:
        made.append(1)
        return ray.remote(BatchWorker).options(num_cpus=0.1, max_restarts=0).remote(notes)

    def on_event(shard_id: str, event: Event) -> None:
        if isinstance(event, QuestionDone):
            last[event.question_id] = event.status

    scheduler = Scheduler(make_worker, 1, on_event, what="question", worker_name="answerer")
    scheduler.run(shards)
    return scheduler, last, len(made)


def test_a_deadly_batch_is_asked_one_by_one_and_its_deadly_question_left_out(tmp_path: Path) -> None:
    scheduler, last, made = answered(tmp_path, Shard("s", ("a:ok", "b:die", "c:ok")), Shard("t", ("d:ok",)))
    assert last == {"a:ok": "ok", "b:die": "failed", "c:ok": "ok", "d:ok": "ok"}
    assert scheduler.quarantined == {"b:die"} and scheduler.alone == {"a:ok", "b:die", "c:ok"}
    assert made == 1 + 2 * DEATHS_PER_VIDEO  # the batch twice, then the question by itself twice


def test_one_death_is_not_held_against_a_batch(tmp_path: Path) -> None:
    scheduler, last, made = answered(tmp_path, Shard("s", ("a:ok", "b:die once")))
    assert last == {"a:ok": "ok", "b:die once": "ok"} and made == 2
    assert not scheduler.quarantined and not scheduler.alone


def test_what_a_worker_has_in_hand() -> None:
    assert in_hand(VideoStarted("a")) == ("a",) and in_hand(QuestionsStarted(("a", "b"))) == ("a", "b")
    assert in_hand(CellsDone("a", 1, 1.0)) is None
    assert in_hand(QuestionDone("a", "ok", "", "", 1, 1)) == ()
    assert in_hand(ShardCommitted("s", 1, 0.0, 0.0, 0.0)) == ()
