"""A small archive of real files, a tiny model, and index runs in processes of their own (as a user starts them)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from echoprune.models.tiny import write_tiny_checkpoint
from tests.clips import Clip, cut, even, uneven, write

REPOSITORY = Path(__file__).parents[2]
RUN_LIMIT_S = 240
# Ray's processes inherit the environment of the command that started them: how a test finds those of its own.
MARK = "ECHOPRUNE_TEST_RUN"
marks: dict[int, str] = {}


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
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Address, and environment for clients, of a Ray cluster of its own, with 4 CPUs whatever the machine has, and token authentication on."""
    folder = tmp_path_factory.mktemp("ray")
    token = folder / "token"
    token.write_text(uuid.uuid4().hex * 2)
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # A short path: the sockets in it may not be longer than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as temporary:
        ray = Path(sys.executable).with_name("ray")
        options = ("--num-cpus=4", "--include-dashboard=false", "--object-store-memory=200000000", "--block")
        where = ("--node-ip-address=127.0.0.1", f"--port={address.split(':')[1]}", f"--temp-dir={temporary}")
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [ray, "start", "--head", *where, *options], stdout=log, stderr=log, start_new_session=True,
                env=os.environ | environment | {"PYTHONPATH": str(REPOSITORY)},
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (folder / "log").read_text():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield address, environment
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


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


def run(*arguments: str | Path, expect: int = 0, more: dict[str, str] | None = None) -> str:
    """Standard output of a finished command, whose exit code must be `expect`."""
    process = start(*arguments, more=more)
    out, err = process.communicate(timeout=RUN_LIMIT_S)
    assert process.returncode == expect, f"exit code {process.returncode}\n{out}\n{err}"
    return out


def tables(store: Path) -> dict[str, str]:
    """sha256 of every table file that must not differ between two runs of the same input."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for table in ("videos", "cells", "tokens", "plan")
        for path in sorted((store / table).rglob("*.parquet"))
    }


def report(store: Path) -> dict:
    return json.loads((store / "run_report.json").read_text())
