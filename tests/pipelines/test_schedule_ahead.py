"""Several shards at a worker, on real Ray: who is given the next one, and which of them the worker's end is held against."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from echoprune.errors import LeaseLostError, StoreError
from pipelines.at_work import AtWork, Job
from pipelines.events import Event, ReadyForNext, ShardCommitted, VideoDone, VideoStarted
from pipelines.loading import Loading
from pipelines.loading import Worker as Loaded
from pipelines.lost_nodes import Death, Place
from pipelines.schedule import DEATHS_PER_SHARD, Scheduler

pytestmark = pytest.mark.usefixtures("shared_ray")


@dataclass(frozen=True)
class Shard:
    shard_id: str
    steps: tuple[str, ...] = ()


class Worker:
    """Does shards step by step, several calls at a time.

    "ready" tells that another shard may be given. "NAME:ok" is a video, in hand until it is done; "NAME:die" ends the process,
    "hang", "raise", "io", "lost" do what they say, with "once" behind it the first time alone; each notes "NAME". "note X"
    makes a note, "wait X" waits for one, "sleep" a little; the first time "stay" waits for ever, "bye" ends the process and
    "fail" raises. "late X": when the commit has been told, the call goes on until there is a note X. "s beside t" is noted
    where t begins while s is under way.
    """

    def __init__(self, notes: Path) -> None:
        self._notes, self._lock = notes, threading.Lock()
        self._under_way: set[str] = set()

    def load(self) -> None:
        pass

    def run_shard(
        self, shard: Shard, quarantined: dict[str, str], alone: frozenset[str] = frozenset()
    ) -> Iterator[Event]:
        with self._lock:
            for other in self._under_way:
                self._note(f"{other} beside {shard.shard_id}")
            self._under_way.add(shard.shard_id)
        self._note(f"begun {shard.shard_id}")
        for step in shard.steps:
            what, _, name = step.partition(" ")
            if step == "ready":
                yield ReadyForNext()
            elif ":" in step:
                yield from self._video(step, alone)
            elif what == "note":
                self._note(name)
            elif what == "wait":
                self._wait(name)
            elif what == "sleep":
                time.sleep(0.5)
            elif what == "stay" and self._note("stay") == 1:
                time.sleep(600)
            elif what == "fail" and self._note("fail") == 1:
                raise OSError(errno.EIO, "input/output error")
            elif what == "bye" and self._note("bye") == 1:
                os._exit(1)
        yield ShardCommitted(shard.shard_id, 1, 0.0, 0.0, 0.0)
        for step in shard.steps:
            if step.startswith("late "):
                self._wait(step.removeprefix("late "))
        with self._lock:
            self._under_way.discard(shard.shard_id)

    def _video(self, video: str, alone: frozenset[str]) -> Iterator[Event]:
        yield VideoStarted(video)
        # Seen by the driver: an announcement that is not consumed yet holds the worker up.
        yield VideoStarted(video)
        name, _, what = video.partition(":")
        first = self._note(name) == 1
        if video in alone:
            self._note(f"{name} alone")
        if first or not what.endswith(" once"):
            what = what.removesuffix(" once")
            if what == "die":
                os._exit(1)
            if what == "hang":
                time.sleep(600)
            if what == "raise":
                raise MemoryError("too large")
            if what == "io":
                raise OSError(errno.EIO, "input/output error")
            if what == "lost":
                raise LeaseLostError("another run took over")
        yield VideoDone(video, video, "ok", 1, 1.0, 1, 1, 1, "", "")

    def _wait(self, name: str) -> None:
        while not (self._notes / name).exists():
            time.sleep(0.02)

    def _note(self, name: str) -> int:
        with (self._notes / name).open("a") as file:
            file.write("x")
            return file.tell()


class Run:
    """A scheduler at work on scripts of `Worker`, and all that it passed on."""

    def __init__(self, notes: Path, *, workers: int = 1) -> None:
        self.events: list[tuple[str, Event]] = []
        self.notes, self.made = notes, 0

        def make_worker() -> object:
            self.made += 1
            actor = ray.remote(Worker).options(num_cpus=0.1, max_restarts=0, max_concurrency=5)
            return actor.remote(notes)

        self.scheduler = Scheduler(make_worker, workers, self.heard)

    def heard(self, shard_id: str, event: Event) -> None:
        self.events.append((shard_id, event))

    def on(self, **shards: str) -> Run:
        """Runs shards, by name, whose steps are separated by commas."""
        self.scheduler.run(
            Shard(name, tuple(step.strip() for step in steps.split(","))) for name, steps in shards.items()
        )
        return self

    @property
    def committed(self) -> list[str]:
        return [shard for shard, event in self.events if isinstance(event, ShardCommitted)]

    @property
    def counted(self) -> dict[str, int]:
        """Deaths by items, and by shard."""
        items = {"+".join(items): count for items, count in self.scheduler._item_deaths.items()}
        return items | dict(self.scheduler._shard_deaths)

    def beside(self) -> set[str]:
        return {path.name for path in self.notes.glob("* beside *")}


def test_a_worker_whose_shards_all_say_so_has_the_next_one_and_three_at_most(tmp_path: Path) -> None:
    run = Run(tmp_path).on(
        s="ready, wait begun u, sleep, a:ok",
        t="b:ok, sleep, ready, wait begun v",
        u="ready, wait begun v, sleep",
        v="c:ok",
    )
    assert sorted(run.committed) == ["s", "t", "u", "v"] and run.made == 1 and run.scheduler.deaths == 0
    assert run.beside() == {"s beside t", "s beside u", "t beside u", "t beside v", "u beside v"}


def test_one_that_does_not_say_so_has_one(tmp_path: Path) -> None:
    run = Run(tmp_path).on(s="a:ok, sleep", t="b:ok, sleep", u="c:ok")
    assert run.committed == ["s", "t", "u"] and not run.beside()


class Told(Run):
    """One whose driver is busy when a's end is told: until s has ended, and r has told that it is ready."""

    def heard(self, shard_id: str, event: Event) -> None:
        super().heard(shard_id, event)
        if isinstance(event, ShardCommitted) and shard_id == "s":
            (self.notes / "s told").touch()
        if isinstance(event, VideoDone) and event.video_id == "a:ok":
            (self.notes / "s may end").touch()
            time.sleep(1.0)


def test_idle_workers_come_first(tmp_path: Path) -> None:
    run = Told(tmp_path, workers=2).on(
        r="wait s told, a:ok, ready, wait begun t", s="wait begun r, late s may end", t="b:ok"
    )
    assert sorted(run.committed) == ["r", "s", "t"] and run.made == 2 and not run.beside()


def test_a_death_is_held_against_what_is_in_hand_and_the_other_shard_comes_back_uncounted(
    tmp_path: Path,
) -> None:
    # With the shard where it was in hand given first, and second.
    for number, order in enumerate(("st", "ts")):
        notes = tmp_path / str(number)
        notes.mkdir()
        steps = {"s": "wait begun t, a:die once", "t": "stay"}
        first, second = order
        run = Run(notes).on(**{first: f"ready, {steps[first]}", second: steps[second], "u": "c:ok"})
        assert run.counted == {"a:die once": 1} and run.scheduler.alone == {"a:die once"}
        assert sorted(run.committed) == ["s", "t", "u"] and run.scheduler.deaths == 1 and run.made == 2


def test_a_shard_that_its_worker_ended_with_is_done_by_itself_from_then_on(tmp_path: Path) -> None:
    """So a video that is to be alone is so across shards too."""
    run = Run(tmp_path).on(
        s="ready, wait begun t, a:die once, sleep",
        t="wait a alone, ready, sleep",
        u="ready, c:ok, sleep",
        v="d:ok",
    )
    assert sorted(run.committed) == ["s", "t", "u", "v"] and (tmp_path / "a alone").exists()
    # Those that met no death have company again.
    assert run.beside() == {"s beside t", "u beside v"}


def test_two_videos_in_hand_are_held_to_account_each_by_itself(tmp_path: Path) -> None:
    run = Run(tmp_path).on(s="ready, wait b, a:die once", t="b:hang once")
    assert run.counted == {"a:die once": 1, "b:hang once": 1}
    assert run.scheduler.alone == {"a:die once", "b:hang once"} and not run.scheduler.quarantined
    assert sorted(run.committed) == ["s", "t"] and run.scheduler.deaths == 1


def test_with_nothing_in_hand_both_shards_count_and_their_worker_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = []
    has_failed = Loading.has_failed

    def noted(self: Loading, worker: Loaded, *, at_work: int) -> None:
        failed.append(at_work)
        has_failed(self, worker, at_work=at_work)

    monkeypatch.setattr(Loading, "has_failed", noted)
    run = Run(tmp_path).on(s="ready, wait begun t, bye", t="wait bye")
    assert run.counted == {"s": 1, "t": 1} and sorted(run.committed) == ["s", "t"]
    assert failed == [0] and run.scheduler.deaths == 1


@pytest.mark.parametrize(("what", "counted"), [("raise", "a:raise once"), ("io", "s")])
@pytest.mark.parametrize("order", ["st", "ts"])
def test_an_error_in_a_shards_call_is_that_shards_whatever_is_in_hand_in_the_other(
    tmp_path: Path, what: str, counted: str, order: str
) -> None:
    steps = {"s": f"wait b, a:{what} once", "t": "wait begun s, b:hang once"}
    run = Run(tmp_path).on(**{name: f"ready, {steps[name]}" for name in order})
    assert run.counted == {counted: 1} and run.scheduler.deaths == 1
    assert run.scheduler.alone == ({counted} if what == "raise" else set())
    assert sorted(run.committed) == ["s", "t"]


def test_an_interrupt_while_shards_are_given_leaves_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, killed, given = AtWork.start, [], []

    def interrupted(self: AtWork, shard: Shard, *known: object) -> None:
        given.append(self.worker.handle)
        if len(given) == 3:
            raise KeyboardInterrupt
        start(self, shard, *known)

    # All of them are idle at once: the first two have nothing to do before the third is loaded.
    monkeypatch.setattr(AtWork, "start", interrupted)
    kill = ray.kill
    monkeypatch.setattr("pipelines.schedule.ray.kill", lambda handle: (killed.append(handle), kill(handle)))
    run = Run(tmp_path, workers=3)
    with pytest.raises(KeyboardInterrupt):
        run.on(s="wait never", t="wait never", u="wait never")
    assert len(given) == 3
    assert {each._actor_id for each in given} <= {each._actor_id for each in killed}


class Busy(Run):
    """One whose driver is busy when a's end is told: until the commit of its shard has come, and an error of the other."""

    def heard(self, shard_id: str, event: Event) -> None:
        super().heard(shard_id, event)
        if isinstance(event, VideoDone) and event.video_id == "a:ok":
            time.sleep(1.0)
            (self.notes / "now").touch()
            time.sleep(1.0)
        if isinstance(event, ShardCommitted):
            (self.notes / f"{shard_id} committed").touch()


@pytest.mark.parametrize("order", ["st", "ts"])
def test_a_commit_counts_that_was_told_when_the_other_shard_failed(
    tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = ray.kill

    def killed(handle: object) -> None:
        kill(handle)
        time.sleep(1.0)  # what was told and not heard is gone by then

    monkeypatch.setattr(ray, "kill", killed)
    steps = {"s": "wait begun t, a:ok", "t": "wait now, fail"}
    run = Busy(tmp_path).on(**{name: f"ready, {steps[name]}" for name in order})
    assert run.committed == ["s", "t"] and (tmp_path / "begun s").stat().st_size == 1
    assert run.counted == {"t": 1} and run.scheduler.deaths == 1 and run.made == 2


def test_a_shard_whose_commit_was_heard_is_not_lost_with_its_worker(tmp_path: Path) -> None:
    run = Busy(tmp_path).on(s="ready, wait begun t, a:ok, late never", t="wait s committed, bye")
    assert run.committed == ["s", "t"] and (tmp_path / "begun s").stat().st_size == 1
    assert run.counted == {"t": 1} and run.scheduler.deaths == 1


def test_what_ends_the_run_ends_it_with_more_shards_at_a_worker(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(LeaseLostError):
        run.on(s="ready, b:hang", t="wait b, a:lost")
    assert run.made == 1
    (tmp_path / "again").mkdir()
    run = Run(tmp_path / "again")
    with pytest.raises(StoreError, match=f"shard s broke its worker {DEATHS_PER_SHARD} times"):
        run.on(s="ready, wait begun t, a:io", t="wait never")
    assert run.made == DEATHS_PER_SHARD and run.counted == {"s": DEATHS_PER_SHARD}


class WithItsNode(Death):
    """The end of a worker whose machine went."""

    with_node = True
    place_known = Place("node")


def test_a_machine_that_goes_counts_once_for_what_was_in_hand(tmp_path: Path) -> None:
    scheduler = Run(tmp_path).scheduler
    gone = ray.exceptions.ActorDiedError()
    for in_hand, keys in ((("a:ok",), [("a:ok",)]), ((), [("s",), ("t",)])):
        scheduler._lost_nodes.clear()
        lost = [Job(Shard("s"), in_hand, error=gone), Job(Shard("t"), error=gone)]
        scheduler._unexplained = [AtWork(Loaded(None, None), lost=lost, death=WithItsNode(gone, None))]
        assert scheduler._held == 2
        assert [shard.shard_id for shard in scheduler._judge(at_work=0)] == ["s", "t"]
        assert scheduler._held == 0
        assert scheduler._lost_nodes == {key: {"node"} for key in keys}
    assert not scheduler._item_deaths and not scheduler._shard_deaths
