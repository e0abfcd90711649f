"""A private Ray that does not start: started once more, then an error of one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from echoprune.errors import EchoPruneError
from pipelines.ray_session import SHARED_MEMORY, _started, _warn_of_files
from tests.pipelines.conftest import REPOSITORY

# Stops the first raylet below this process, as a machine does that gives it no time: Ray waits 30 s for it.
SCRIPT = r"""
import logging, os, re, signal, threading
from contextlib import suppress
from pathlib import Path

def raylets():
    for task in Path("/proc/self/task").iterdir():
        children = ""
        with suppress(OSError):  # a thread that has ended meanwhile
            children = (task / "children").read_text()
        for child in children.split():
            with suppress(OSError):
                name, state = re.search(r"\((.+)\) (\w)", Path(f"/proc/{child}/stat").read_text()).groups()
                if name == "raylet" and state != "Z":
                    yield int(child)

def stop_one():
    while True:
        for pid in raylets():
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
            return

logging.basicConfig(level=logging.WARNING)
stopped = []
threading.Thread(target=stop_one, daemon=True).start()
from pipelines.ray_session import session
import ray
with session(None, object_store_bytes=100 << 20):
    there = list(raylets())
    answer = ray.get(ray.remote(lambda: 42).remote())
print(answer, stopped[0] not in there, len(there))
"""


@pytest.mark.long  # Ray waits 30 s for what does not answer
def test_a_ray_that_does_not_answer_is_started_once_more() -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The processes of the first are gone by then.
    assert done.stdout.split() == ["42", "True", "1"], done.stdout + done.stderr
    assert "did not start (The current node timed out" in done.stderr and "Traceback" not in done.stderr


def broken(cause: Exception, calls: list[int]) -> None:
    calls.append(1)
    raise EchoPruneError("a private Ray cannot be started (why); cure") from cause


# Ray 2.60 raises a bare Exception where its node does not come up in time.
@pytest.mark.parametrize(
    ("cause", "starts"),
    [
        (Exception("timed out"), 2),
        (RuntimeError("no port"), 2),
        (TimeoutError(), 2),
        (ConnectionError(), 2),
        (OSError(28, "No space left on device"), 1),
        (ValueError("path too long"), 1),
    ],
)
def test_what_does_not_start_twice_is_an_error(cause: Exception, starts: int) -> None:
    calls: list[int] = []
    with (
        pytest.raises(EchoPruneError, match="cannot be started"),
        _started(lambda: broken(cause, calls), starts=2),
    ):
        pytest.fail("it is not up")
    assert len(calls) == starts


def test_another_start_is_not_tried_once_somebody_wants_to_stop() -> None:
    calls: list[int] = []

    def start() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        broken(Exception("timed out"), calls)

    with pytest.raises(KeyboardInterrupt), _started(start, starts=2):
        pytest.fail("it is not up")
    assert len(calls) == 1


def test_frames_that_will_go_through_files_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    _warn_of_files(1)
    assert caplog.messages == []
    _warn_of_files(1 << 60)
    (message,) = caplog.messages
    assert message.startswith(SHARED_MEMORY)
    assert "--shm-size=" in message
