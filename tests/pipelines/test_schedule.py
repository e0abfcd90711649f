"""The scheduler over small workers on real Ray: who is blamed, what is run again, what ends a run."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from echoprune.errors import ConfigError, LeaseLostError, ModelError, StoreError
from pipelines import loading, schedule
from pipelines.events import (
    Event,
    QuestionDone,
    QuestionsStarted,
    ShardCommitted,
    VideoDone,
    VideoStarted,
)
from pipelines.loading import LOADS
from pipelines.lost_nodes import Place
from pipelines.schedule import DEATHS_PER_SHARD, DEATHS_PER_VIDEO, Scheduler

pytestmark = pytest.mark.usefixtures("shared_ray")


@dataclass(frozen=True)
class Shard:
    shard_id: str
    videos: tuple[str, ...]


class Worker:
    """Does shards whose videos say what happens: "ok", "die" (the process ends), "raise", "die once"."""

    def __init__(self, notes: Path, load: str = "ok", gpu: str = "") -> None:
        self._notes, self._load, self._gpu = notes, load, gpu

    def load(self) -> None:
        count = self._note("load")
        if self._load == "missing":
            raise ModelError("no such model")
        if self._load == "die" or (self._load == "die once" and count == 1):
            os._exit(1)
        if self._load == "first or not" and count > 1:
            raise OSError("429 Too Many Requests")
        while self._load == "first only" and count > 1:
            time.sleep(0.1)

    def run_shard(
        self, shard: Shard, quarantined: dict[str, str], alone: frozenset[str] = frozenset()
    ) -> Iterator[Event]:
        for video in shard.videos:
            if video in alone:
                self._note(f"{video} alone")
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
            if what == "full" or (what == "full once" and self._note("full", after="other") == 1):
                raise StoreError("disk full")
            if what == "lost":
                self._note("full", after="other")
                raise LeaseLostError("another run took over")
            if what == "other":
                self._note("other", then="full", times=2)
            if what == "load":
                self._note("other", then="load", times=2)
                time.sleep(1.0)
            if what == "gpu":
                self._on_gpu()
            if what in ("raise", "wrong"):
                raise MemoryError("too large") if what == "raise" else ConfigError("--keep is wrong")
            if what == "io" or (what == "io twice" and self._note(video) <= 2):
                raise OSError(errno.EIO, "input/output error")
            yield VideoDone(video, video, "ok", 1, 1.0, 1, 1, 1, "", "")
        yield ShardCommitted(shard.shard_id, 1, 0.0, 0.0, 0.0)

    def _on_gpu(self) -> None:
        """Fails on GPU A, once B is at work; B has its first video in hand until A has failed twice."""
        if self._gpu == "A":
            self._note("A", after="B")
            raise RuntimeError("cuBLAS error")
        self._note("B", then="A", times=2)

    def _note(self, name: str, *, after: str = "", then: str = "", times: int = 1) -> int:
        """How often this was noted, over all processes. Waits for a note of `after` before, or for some of `then` behind."""
        path = self._notes / name.replace(":", "-").replace(" ", "-")
        while after and not (self._notes / after).exists():
            time.sleep(0.05)
        with path.open("a") as file:
            file.write("x")
        while then and (not (self._notes / then).exists() or (self._notes / then).stat().st_size < times):
            time.sleep(0.05)
        return path.stat().st_size


class BatchWorker:
    """Does shards of questions all at once, but those that are to be `alone`; "die" and "die once" as above."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes

    def load(self) -> None:
        pass

    def run_shard(
        self, shard: Shard, quarantined: dict[str, str], alone: frozenset[str] = frozenset()
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
        for each in quarantined.keys() & set(shard.videos):
            yield QuestionDone(each, "failed", "killed_worker", "killed the worker twice", 0, 0)
        yield ShardCommitted(shard.shard_id, 1, 0.0, 0.0, 0.0)


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
    assert run.scheduler.quarantined == {"b:die": "ActorDiedError"}
    assert run.last_status("b:die") == "failed" and run.last_status("a:ok") == run.last_status("c:ok") == "ok"
    assert run.made == 1 + DEATHS_PER_VIDEO


def test_one_death_is_not_held_against_a_video_which_is_had_in_hand_alone(tmp_path: Path) -> None:
    run = Run(tmp_path).on(Shard("s", ("a:ok", "b:die once", "c:ok")))
    assert run.committed == {"s": 1} and not run.scheduler.quarantined
    assert run.last_status("b:die once") == "ok" and run.scheduler.alone == {"b:die once"}
    assert [path.name for path in tmp_path.glob("*alone")] == ["b-die-once-alone"]


def test_a_worker_that_finds_no_room_is_not_waited_for(tmp_path: Path) -> None:
    """As on a cluster of which a machine went and none came in its place: the others do its shards."""
    shards = [Shard(f"s{i}", (f"v{i}:ok",)) for i in range(3)]
    run = Run(tmp_path, load="first only", workers=2).on(*shards)
    assert run.committed == {"s0": 1, "s1": 1, "s2": 1} and run.made == 2


def test_two_deadly_videos_in_one_shard(tmp_path: Path) -> None:
    run = Run(tmp_path).on(Shard("s", ("a:die", "b:raise", "c:ok")))
    assert run.committed == {"s": 1} and run.scheduler.quarantined == {
        "a:die": "ActorDiedError",
        "b:raise": "MemoryError",
    }


def test_a_machine_that_fails_on_one_video_after_another_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "QUARANTINED_IN_A_ROW", 2)
    run = Run(tmp_path)
    with pytest.raises(
        ModelError, match=r"2 videos one after another .* The last error was MemoryError: too large"
    ):
        run.on(Shard("s", ("a:raise", "b:raise", "c:raise")))
    assert run.made == 2 * DEATHS_PER_VIDEO


def test_a_sick_gpu_costs_no_video_while_another_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = lambda worker: Place("node", (worker._gpu,))  # noqa: E731
    monkeypatch.setattr(loading, "place_of", lambda handle: handle.__ray_call__.remote(where))
    run = Run(tmp_path, workers=2)

    def make_worker() -> object:
        run.made += 1
        gpu = "B" if run.made == 2 else "A"
        return ray.remote(Worker).options(num_cpus=0.1, max_restarts=0).remote(tmp_path, "ok", gpu)

    run.scheduler.make_worker = make_worker
    run.on(*(Shard(name, (f"{name}:gpu",)) for name in "stuv"))
    # Two videos were in hand on A, which is not asked for a third time; each is done again on B.
    assert run.committed == dict.fromkeys("stuv", 1) and run.made == 3
    assert not run.scheduler.quarantined and len(run.scheduler.alone) == 2


def test_deaths_that_no_video_explains_end_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(StoreError, match=f"broke its worker {DEATHS_PER_SHARD} times"):
        run.on(Shard("s", ("a:early",)))
    assert run.made == DEATHS_PER_SHARD


def test_a_store_error_of_one_worker_is_tried_again_while_others_work(tmp_path: Path) -> None:
    run = Run(tmp_path, workers=2).on(Shard("s", ("a:full once",)), Shard("t", ("b:other",)))
    assert run.committed == {"s": 1, "t": 1} and run.made == 3 and not run.scheduler.alone
    (tmp_path / "lost").mkdir()
    run = Run(tmp_path / "lost", workers=2)
    with pytest.raises(LeaseLostError):  # nobody fares better with a store that another run has
        run.on(Shard("s", ("a:lost",)), Shard("t", ("b:other",)))
    assert run.made == 2


def test_what_a_worker_says_on_purpose_ends_the_run_at_once(tmp_path: Path) -> None:
    for what, error, message in (
        ("full", StoreError, "disk full"),
        ("wrong", ConfigError, "--keep is wrong"),
    ):
        run = Run(tmp_path)
        with pytest.raises(error, match=message):
            run.on(Shard("s", (f"a:{what}",)))
        assert run.made == 1


def test_an_error_of_the_disk_is_no_videos_fault(tmp_path: Path) -> None:
    run = Run(tmp_path).on(Shard("s", ("a:io twice", "b:ok")))
    assert run.committed == {"s": 1} and run.last_status("a:io twice") == "ok"
    run = Run(tmp_path)
    with pytest.raises(StoreError, match=f"broke its worker {DEATHS_PER_SHARD} times.*input/output error"):
        run.on(Shard("t", ("a:io",)))
    assert not run.scheduler.quarantined and run.made == DEATHS_PER_SHARD


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        Run(tmp_path, load="missing").on(Shard("s", ("a:ok",)))
    run = Run(tmp_path, load="missing", workers=3)
    with pytest.raises(ModelError, match="no such model"):
        run.on(*(Shard(name, (f"{name}:ok",)) for name in "stu"))
    # In each round that does not end it as many are asked for again as have failed: all three at most.
    assert run.made <= 3 * LOADS
    run = Run(tmp_path / "..", load="die")
    with pytest.raises(ModelError, match=f"died {LOADS} times"):
        run.on(Shard("s", ("a:ok",)))
    assert run.made == LOADS


def test_a_machine_that_cannot_load_the_model_ends_no_run(tmp_path: Path) -> None:
    run = Run(tmp_path, load="die once").on(Shard("s", ("a:ok",)))
    assert run.committed == {"s": 1} and run.made == 2
    (tmp_path / "load").unlink()
    run = Run(tmp_path, load="first or not", workers=2).on(Shard("s", ("a:load",)), Shard("t", ("b:ok",)))
    assert run.committed == {"s": 1, "t": 1} and run.made == 2


def test_workers_that_get_room_later_are_used(tmp_path: Path) -> None:
    run = Run(tmp_path)
    # One GPU at first, three once something is committed.
    run.scheduler.workers = lambda: 3 if run.committed else 1
    shards = [Shard(f"s{i}", (f"v{i}:ok",)) for i in range(6)]
    run.on(*shards)
    assert run.committed == {f"s{i}": 1 for i in range(6)} and run.made == 3
    assert Run(tmp_path).on().made == 0  # with nothing to do none is started


def test_a_worker_without_room_keeps_nobody_waiting(tmp_path: Path) -> None:
    run, cores = Run(tmp_path, workers=3), [0.1, 100_000, 100_000, 0.1]

    def make_worker() -> object:
        run.made += 1
        return ray.remote(Worker).options(num_cpus=cores[run.made - 1], max_restarts=0).remote(tmp_path, "ok")

    run.scheduler.make_worker = make_worker
    # The one that has room dies once: another one is asked for beside those that wait.
    run.on(Shard("s", ("a:ok", "b:die once")), Shard("t", ("c:ok",)), Shard("u", ("d:ok",)))
    assert run.committed == {"s": 1, "t": 1, "u": 1} and run.made == 4


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
    assert set(scheduler.quarantined) == {"b:die"} and scheduler.alone == {"a:ok", "b:die", "c:ok"}
    assert made == 1 + 2 * DEATHS_PER_VIDEO  # the batch twice, then the question by itself twice


def test_one_death_is_not_held_against_a_batch(tmp_path: Path) -> None:
    scheduler, last, made = answered(tmp_path, Shard("s", ("a:ok", "b:die once")))
    assert last == {"a:ok": "ok", "b:die once": "ok"} and made == 2
    assert not scheduler.quarantined and not scheduler.alone
