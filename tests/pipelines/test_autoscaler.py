"""Runs on a cluster whose nodes come when they are asked for and go when they are idle: Ray's autoscaler, with nodes on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from pipelines.crew import Crew, crew, nodes_alive, start_worker
from pipelines.events import Event, ShardCommitted
from pipelines.schedule import Scheduler
from tests.pipelines.nodes import Nodes, cluster, free_port, wait_for
from tests.pipelines.test_decode_nodes import Found, Reader, connect, plain, same, uris

__all__ = ["uris"]

# Node types by name, as in ray_cluster.yaml: none is there until something asks for it.
TYPES = {
    "gpu": {"resources": {"CPU": 1, "GPU": 1}, "max_workers": 2},
    "decode": {"resources": {"CPU": 2, "decode": 2}, "max_workers": 1},
}


@dataclass(frozen=True)
class Shard:
    shard_id: str


class Worker:
    """Commits a shard at once if all workers have come, and waits for them before that."""

    def __init__(self, job: tuple[str, int], people: Crew | None = None) -> None:
        self._folder, self._workers = Path(job[0]), job[1]

    def load(self) -> None:
        (self._folder / f"worker-{os.getpid()}").touch()

    def run_shard(self, shard: Shard, quarantined: dict[str, str]) -> Iterator[Event]:
        wait_for(lambda: len(list(self._folder.glob("worker-*"))) >= self._workers, "all workers")
        yield ShardCommitted(shard.shard_id, 1, 0.0, 0.0, 0.0)


def alone_again() -> bool:
    """Waits until the head is the only node."""
    wait_for(lambda: len(nodes_alive()) == 1, "the end of idle nodes")
    return True


def decoding(model: str, uris: list[str]) -> tuple[Found, int, int]:
    """What is read, and decode actors before and after a node has come."""
    with Reader(model, grow_to=3) as reader:
        reader.wait(1)
        before = len(reader.decoders.up)
        reader.wait(3)
        return reader.read(uris), before, len(set(reader.by_node))


def encoding(folder: str) -> tuple[list[str], int]:
    """Shards done by two encoders for which there is no GPU at first, and the GPUs that came."""
    people = crew(nodes_alive(), encoders=2, decoders=None, device="cuda", may_join=True)
    done: list[str] = []
    scheduler = Scheduler(
        lambda: start_worker(Worker, (folder, 2), people),
        people.encoders,
        lambda shard, _: done.append(shard),
    )
    scheduler.run([Shard(f"s{index}") for index in range(3)])
    return sorted(done), int(ray.cluster_resources()["GPU"])


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    port = free_port()
    settings = {
        "cluster_name": "test",
        "max_workers": 3,
        "upscaling_speed": 9.0,
        "idle_timeout_minutes": 0.05,
        # Its nodes are Ray's processes alone: nothing is to be set up or repaired over SSH.
        "provider": {
            "type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}",
            # All of them are at 127.0.0.1.
            "use_node_id_as_ip": True,
            "disable_node_updaters": True, "disable_launch_config_check": True, "foreground_node_launch": True,
            "worker_liveness_check": False,
        },
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
            **{name: {"node_config": {}, "min_workers": 0, **each} for name, each in TYPES.items()},
        },
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
        "rsync_exclude": [], "rsync_filter": [], "initialization_commands": [], "setup_commands": [],
        "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }  # fmt: skip
    path = tmp_path_factory.mktemp("autoscaler") / "cluster.json"
    path.write_text(json.dumps(settings))
    more = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        # Its nodes are all at 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    with cluster("--num-cpus=2", f"--autoscaling-config={path}", port=port, more=more) as started:
        yield started


@pytest.fixture(scope="module")
def driver(nodes: Nodes) -> Iterator[ProcessPoolExecutor]:
    with nodes.driver(connect) as process:
        yield process


def test_decode_nodes_come_where_that_is_allowed_and_go_with_the_run(
    driver: ProcessPoolExecutor, tiny: Path, uris: list[str]
) -> None:
    expected = driver.submit(plain, str(tiny), uris).result()
    found, before, used = driver.submit(decoding, str(tiny), uris).result()
    assert same(found, expected) and (before, used) == (1, 2)
    assert driver.submit(alone_again).result()


def test_gpu_nodes_come_for_encoders_that_are_asked_for(driver: ProcessPoolExecutor, tmp_path: Path) -> None:
    assert driver.submit(encoding, str(tmp_path)).result() == (["s0", "s1", "s2"], 2)
    assert driver.submit(alone_again).result()
