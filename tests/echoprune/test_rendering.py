"""Rendering side by side: the same files as one after another, and no process or half file left, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from echoprune.clip_file import ENCODINGS
from echoprune.rendering import Job, rendering
from echoprune.scene import plan_scene

ROOT = Path(__file__).parents[2]
# Long enough that it is never done when it is stopped: an hour was drawn in under three minutes, less than is waited.
LONG = """
import sys
from echoprune.synth import render_archive
if __name__ == "__main__":
    render_archive(sys.argv[1], videos=2, seconds=36_000.0, seed=0, workers=2)
"""


def jobs_in(folder: Path, *, seconds: float = 6.0) -> list[Job]:
    folder.mkdir()
    scenes = [plan_scene(np.random.default_rng(i), seconds=seconds, size=(64, 64)) for i in range(3)]
    return [
        Job(folder / f"{i}{ENCODINGS[i].suffix}", scene, ENCODINGS[i], (0, i), "x")
        for i, scene in enumerate(scenes)
    ]


def test_side_by_side_is_the_same_as_one_after_another(tmp_path: Path) -> None:
    one, two = jobs_in(tmp_path / "one"), jobs_in(tmp_path / "two")
    with rendering(one, workers=1) as done:
        assert list(done) == [0, 1, 2]
    with rendering(two, workers=2) as done:
        assert sorted(done) == [0, 1, 2]
    for a, b in zip(one, two, strict=True):
        assert a.path.read_bytes() == b.path.read_bytes()
    with rendering([], workers=2) as done:
        assert list(done) == []


def test_leaving_early_stops_the_processes_and_leaves_whole_files_alone(tmp_path: Path) -> None:
    short, *others = jobs_in(tmp_path / "short")
    long = jobs_in(tmp_path / "long", seconds=7200.0)[1:]
    started = time.monotonic()
    with rendering([short, *long, *others], workers=2) as done:
        assert next(done) == 0
    assert time.monotonic() - started < 30
    assert [path.name for path in short.path.parent.iterdir()] == ["0.mp4"]
    assert not list(long[0].path.parent.iterdir())


def running(folder: Path) -> subprocess.Popen[bytes]:
    """A process that renders, once both of its clips are being written."""
    script = folder / "long.py"
    script.write_text(LONG)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder / "out")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while len(list((folder / "out" / "videos").glob(".*"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


def alive(session: int) -> list[str]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--sid", str(session)], capture_output=True, text=True, check=False
    )
    return listed.stdout.split()


def wait_until_gone(session: int) -> None:
    deadline = time.monotonic() + 120
    while alive(session):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="asks ps for a session")
@pytest.mark.parametrize("whole_group", [True, False], ids=["ctrl-c", "one-process"])
def test_an_interruption_leaves_no_half_file_and_no_process(tmp_path: Path, whole_group: bool) -> None:
    process = running(tmp_path)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    assert process.wait(120) != 0
    wait_until_gone(process.pid)
    assert [path.name for path in sorted((tmp_path / "out").rglob("*"))] == ["truth.jsonl", "videos"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks ps for a session")
def test_rendering_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    process = running(tmp_path)
    process.kill()
    process.wait(120)
    wait_until_gone(process.pid)
    # Nobody was left to remove them, but no index sees them.
    assert all(path.name.startswith(".") for path in (tmp_path / "out" / "videos").iterdir())
