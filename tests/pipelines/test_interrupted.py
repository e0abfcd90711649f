"""A run that was told to end ends, whatever became of the exception."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import ray

from pipelines import interrupted
from pipelines.events import Event, ShardCommitted, VideoDone, VideoStarted
from pipelines.schedule import Scheduler

pytestmark = pytest.mark.usefixtures("shared_ray")


@dataclass(frozen=True)
class Shard:
    shard_id: str


class Worker:
    def load(self) -> None:
        pass

    def run_shard(self, shard: Shard, quarantined: dict[str, str]) -> Iterator[Event]:
        yield VideoStarted(shard.shard_id)
        yield VideoDone(shard.shard_id, shard.shard_id, "ok", 1, 1.0, 1, 1, 1, "", "")
        yield ShardCommitted(shard.shard_id, 1, 0.0, 0.0, 0.0)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    interrupted.forget()
    yield
    interrupted.forget()


def test_a_signal_whose_exception_was_lost_ends_the_run_all_the_same() -> None:
    seen: list[str] = []

    def on_event(shard_id: str, event: Event) -> None:
        # As a handler whose KeyboardInterrupt comes up in a destructor: Python prints it, and goes on.
        interrupted.note(signal.SIGTERM)
        seen.append(shard_id)

    made = ray.remote(Worker).options(num_cpus=0)
    scheduler = Scheduler(made.remote, 1, on_event)
    with pytest.raises(KeyboardInterrupt):
        scheduler.run([Shard(f"s{number}") for number in range(20)])
    assert len(seen) == 1


def test_it_is_noted_until_it_is_forgotten() -> None:
    interrupted.check()
    assert interrupted.last() is None
    for signum in (signal.SIGINT, signal.SIGTERM):
        interrupted.note(signum)
        assert interrupted.last() == signum
        with pytest.raises(KeyboardInterrupt):
            interrupted.check()
    interrupted.forget()
    interrupted.check()
