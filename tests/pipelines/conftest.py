"""A small archive of real files, a tiny model, and index runs in processes of their own (as a user starts them)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from echoprune.models.tiny import write_tiny_checkpoint
from jobs.cli import main
from tests.clips import Clip, cut, even, uneven, write
from tests.pipelines.nodes import cluster

REPOSITORY = Path(__file__).parents[2]
RUN_LIMIT_S = 480
# Ray's processes inherit the environment of the command that started them: how a test finds those of its own.
MARK = "ECHOPRUNE_TEST_RUN"
marks: dict[int, str] = {}
# Environment under which no Ray can start: a command that ends well has started none.
NO_RAY = {"RAY_TMPDIR": os.devnull}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine files: whole ones of several kinds, one that breaks off, two that are no videos."""
    folder = tmp_path_factory.mktemp("archive")
    write(Clip("plain.mp4", even(200, step_ms=40)), folder)
    write(Clip("b frames.mp4", even(120, step_ms=40), options={"bf": "2"}), folder)
    write(Clip("vfr.mp4", uneven(60)), folder)
    write(Clip("tall.mp4", even(50), width=96, height=160), folder)
    write(Clip("ümläut ☃.mkv", even(75)), folder)
    (folder / "below").mkdir()
    write(Clip("hevc.mp4", even(80), codec="libx265", pix_fmt="yuv420p"), folder / "below")
    long = write(Clip("whole.mp4", even(250), muxer={"movflags": "faststart"}), folder)
    cut(long, folder / "cut.mp4", keep=0.6)
    long.unlink()
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").write_bytes(b"")
    return folder


@pytest.fixture
def head() -> Iterator[tuple[str, dict[str, str]]]:
    """Address, and environment for clients, of a Ray cluster of its own, with 4 CPUs whatever the machine has, and token authentication on."""
    with cluster("--num-cpus=4") as nodes:
        yield nodes.address, nodes.environment


def start(*arguments: str | Path, more: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`python -m jobs.cli ARGUMENTS` under way, in its own process group; `more`: environment beside this one's."""
    own = {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "160", MARK: uuid.uuid4().hex}
    environment = os.environ | own | (more or {})
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=environment,
        start_new_session=True,
    )
    marks[process.pid] = environment[MARK]
    return process


def actors(driver: int, name: str) -> list[int]:
    """Process ids of the Ray actors of that class that a started command has brought up so far."""
    return processes(driver, f"ray::{name}")


def processes(driver: int, name: str) -> list[int]:
    """Process ids of what a started command has brought up, with `name` in their program's path or title."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes().decode(errors="replace")
            inherited = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue  # not a process, or gone meanwhile
        if name in title.split("\0")[0] and f"{MARK}={marks[driver]}" in inherited:
            found.append(int(entry.name))
    return found


def run(
    *arguments: str | Path, expect: int = 0, more: dict[str, str] | None = None, streams: bool = False
) -> str:
    """Standard output of a finished command, and standard error too with `streams`; its exit code must be `expect`."""
    process = start(*arguments, more=more)
    out, err = process.communicate(timeout=RUN_LIMIT_S)
    assert process.returncode == expect, f"exit code {process.returncode}\n{out}\n{err}"
    return out + err if streams else out


def call(*arguments: str | Path, expect: int | None = 0, streams: bool = False) -> str:
    """As `run`, in this process: for a command that starts no Ray, or shares that of this process. None expects any code.

    A process of its own imports torch, transformers and Ray, and starts a Ray: that takes longer than the run itself.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        done = CliRunner().invoke(main, list(map(str, arguments)), env={"COLUMNS": "160"})
    finally:
        # A command puts its own there, which would make an interruption of what ends these tests.
        signal.signal(signal.SIGTERM, before)
    assert isinstance(done.exception, SystemExit | None), done.exception
    assert expect in (None, done.exit_code), f"exit code {done.exit_code}\n{done.output}"
    return done.stdout + done.stderr if streams else done.stdout


def tables(store: Path) -> dict[str, str]:
    """sha256 of every table file that must not differ between two runs of the same input."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for table in ("videos", "cells", "tokens", "plan")
        for path in sorted((store / table).rglob("*.parquet"))
    }


def report(store: Path) -> dict:
    return json.loads((store / "run_report.json").read_text())
