"""The head lost with the job server and the driver on it, while a worker node lives on; the job submitted to a new head."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from echoprune.receipt import read_receipts
from echoprune.status import store_status
from echoprune.storage import Storage
from echoprune.verify import verify
from tests.clips import Clip, even, write
from tests.pipelines.conftest import REPOSITORY, report, run, tables
from tests.pipelines.nodes import Nodes, cluster, free_port, vanish, wait_for

PROGRAM = Path(sys.executable).with_name("ray")
COPIES = 24
LIMIT_S = 300


@contextmanager
def job_server() -> Iterator[tuple[Nodes, str]]:
    """Two nodes, each with room for one encoder and its decode actor, and the address of their job server."""
    port = free_port()
    options = ("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}")
    # A job's `python` is that of the head's PATH.
    path = {"PATH": f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"}
    with cluster("--num-cpus=3", *options, more=path) as nodes:
        nodes.add("--num-cpus=3")
        yield nodes, f"http://127.0.0.1:{port}"


def submit(nodes: Nodes, address: str, *arguments: str | Path, wait: bool) -> str:
    """What `ray job submit` prints of an index job under one name, as infra/README.md says; it must succeed."""
    command = [
        PROGRAM, "job", "submit", "--address", address, "--submission-id", "weekend", "--working-dir", ".",
        "--runtime-env", "infra/runtime_env.yaml", *([] if wait else ["--no-wait"]), "--",
        "python", "-m", "jobs.index", *arguments,
    ]  # fmt: skip
    environment = os.environ | nodes.environment
    environment.pop("RAY_ADDRESS", None)
    told = ""

    def is_done() -> bool:
        nonlocal told
        done = subprocess.run(
            list(map(str, command)), cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=LIMIT_S,
            check=False,
        )  # fmt: skip
        told = done.stdout + done.stderr
        # The head is up before its agent is.
        assert done.returncode == 0 or "No available agent" in told, told
        return done.returncode == 0

    wait_for(is_done, "the job server", limit_s=LIMIT_S)
    return told


@pytest.mark.long
def test_the_job_goes_on_under_a_new_head(tiny: Path, tmp_path: Path) -> None:
    videos, store = tmp_path / "videos", tmp_path / "store"
    videos.mkdir()
    one = write(Clip("a.mp4", even(200, step_ms=40)), videos)
    for number in range(1, COPIES):
        shutil.copy(one, videos / f"copy {number:02}.mp4")
    (videos / "broken.mp4").write_text("not a video")
    options = (
        "--model", tiny, "--max-pixels", "20000", "--fps", "12", "--shard-videos", "1", "--device", "cpu", "--failed-ok",
    )  # fmt: skip
    # For two nodes of three cores; the clean run has those of this machine.
    actors = ("--encoders", "2", "--decoders-per-gpu", "1")

    def receipts() -> int:
        return len(list((store / "receipts").glob("*.json")))

    with job_server() as (nodes, address):
        submit(nodes, address, videos, "--store", store, *options, *actors, wait=False)
        wait_for(lambda: receipts() >= COPIES // 4, "a quarter of the shards", limit_s=LIMIT_S)
        vanish(nodes.marks[0])
        committed = set(read_receipts(Storage(store)))
        assert COPIES // 4 <= len(committed) < COPIES + 1
        # The other node has lost its head, and its encoder its driver: both are there yet when the next run begins.
        with job_server() as (others, other_address):
            told = submit(others, other_address, videos, "--store", store, *options, *actors, wait=True)
    assert "succeeded" in told.lower()
    assert store_status(store)["videos"] == {"ok": COPIES, "partial": 0, "failed": 1, "missing": 0}
    assert committed <= set(read_receipts(Storage(store))) and list(verify(store)) == []
    assert report(store)["run"]["videos"]["before"] >= len(committed)
    run("index", videos, "--store", tmp_path / "clean", *options)
    assert tables(store) == tables(tmp_path / "clean")
