"""A machine that vanishes or is told to go counts against nobody, unless it is always the same item's."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines import schedule
from pipelines.events import Event, ShardCommitted, VideoDone, VideoStarted
from pipelines.lost_nodes import LOST_NODES_PER_ITEM
from pipelines.ray_session import session
from pipelines.schedule import DEATHS_PER_VIDEO, Scheduler
from tests.faults.nodes import TwoNodes, send

# Ray finds a machine gone 2.5 s after it went; a death is judged 7.5 s after it was told.
NEXT_S = 4.0


@dataclass(frozen=True)
class Shard:
    shard_id: str


class Worker:
    """Has the one video of each shard in hand until there is a file of the shard's name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> None:
        pass

    def run_shard(
        self, shard: Shard, quarantined: dict[str, str], alone: frozenset[str] = frozenset()
    ) -> Iterator[Event]:
        yield VideoStarted(shard.shard_id)
        # Seen by the driver: an announcement that is not consumed yet holds the worker up.
        yield VideoStarted(shard.shard_id)
        (self._folder / f"{shard.shard_id} begun").touch()
        while not (self._folder / shard.shard_id).exists() and shard.shard_id not in quarantined:
            time.sleep(0.05)
        status = "failed" if shard.shard_id in quarantined else "ok"
        yield VideoDone(shard.shard_id, shard.shard_id, status, 1, 1.0, 1, 1, 1, "", "")
        yield ShardCommitted(shard.shard_id, 1, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Counts:
    """What the scheduler of a run knows at its end."""

    quarantined: set[str]
    alone: set[str]
    deaths: dict[tuple[str, ...], int]
    lost_nodes: dict[tuple[str, ...], int]
    last_status: str


def driver(address: str, folder: Path, borne: int) -> Counts:
    """A run of one shard, `s`, whose worker is always on the node that is not the head; `borne` lost nodes count against nobody."""
    schedule.LOST_NODES_PER_ITEM = borne
    statuses: list[str] = []

    def make_worker() -> object:
        while True:
            for node in ray.nodes():
                if node["Alive"] and "node:__internal_head__" not in node["Resources"]:
                    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                    actor = ray.remote(Worker).options(num_cpus=3, max_restarts=0, scheduling_strategy=there)
                    return actor.remote(folder)
            time.sleep(0.1)

    scheduler = Scheduler(make_worker, 1, lambda _, event: statuses.append(getattr(event, "status", "")))
    with session(address, object_store_bytes=80 << 20):
        scheduler.run([Shard("s")])
    return Counts(
        set(scheduler.quarantined),
        scheduler.alone,
        dict(scheduler._item_deaths),
        {key: len(gone) for key, gone in scheduler._lost_nodes.items()},
        statuses[-2],
    )


def run(nodes: TwoNodes, folder: Path, *goes: str, borne: int) -> Counts:
    """The counts of a run whose worker goes in the ways that `goes` says, in turn, once it has its video in hand."""
    begun = folder / "s begun"
    # In a process of its own: Ray takes note of tokens when it is imported.
    environment = {name: value for name, value in nodes.environment.items() if name != "PYTHONPATH"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
            counts = processes.submit(driver, nodes.address, folder, borne)
            for how in goes:
                while not begun.exists() and not counts.done():
                    time.sleep(0.05)
                if counts.done():
                    break
                begun.unlink()
                if how == "its worker is killed":
                    send(nodes.actors("Worker"), signal.SIGKILL)
                    continue
                if how.startswith("vanishes after its worker"):
                    # Ray tells of the worker while its machine still counts as there.
                    dead = nodes.actors("Worker")
                    send(dead, signal.SIGKILL)
                    time.sleep(1.0)
                if how == "vanishes after its worker, with the next":
                    # Loaded on the same machine, it waits for the shard until it is known what ended the first one.
                    until = time.monotonic() + NEXT_S
                    while not set(nodes.actors("Worker")) - set(dead) and time.monotonic() < until:
                        time.sleep(0.05)
                    time.sleep(0.5)
                if how.startswith("vanishes"):
                    nodes.second.vanish()
                else:
                    send(nodes.second.raylet(), signal.SIGTERM)
                    while nodes.second.raylet():
                        time.sleep(0.05)
                nodes.second.end()
                nodes.add().wait()
            (folder / "s").touch()
            return counts.result(timeout=300)


def test_a_machine_that_goes_costs_its_video_no_attempt(cluster: TwoNodes, tmp_path: Path) -> None:
    goes = ("vanishes", "vanishes after its worker, with the next", "its worker is killed")
    counts = run(cluster, tmp_path, *goes, borne=LOST_NODES_PER_ITEM)
    assert counts == Counts(set(), {"s"}, {("s",): 1}, {("s",): 2}, "ok")


def test_what_takes_every_machine_along_is_left_out(cluster: TwoNodes, tmp_path: Path) -> None:
    counts = run(cluster, tmp_path, *["is told to go"] * DEATHS_PER_VIDEO, borne=0)
    assert counts.quarantined == {"s"} and counts.last_status == "failed"
