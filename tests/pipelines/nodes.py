"""Ray clusters of several nodes on this machine: nodes that join, and that vanish as when the power goes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

REPOSITORY = Path(__file__).parents[2]
LIMIT_S = 300.0
# Every process of a node inherits it.
MARK = "ECHOPRUNE_TEST_NODE"
# What Ray says when it gives a node up that is not up after 30 s, on a busy machine too (2.60). It is started again then.
TOO_SLOW, STARTS = "timed out during startup", 3
# Processes of Ray that no test looks at, each a second of a core at its start and more while it lives: the one that shows
# what workers print, and on the head the autoscaler's.
NO_LOG_MONITOR, NO_AUTOSCALER = "--include-log-monitor=false", "--no-monitor"
# Any port: two nodes with the usual range would give the same ones to their workers.
_ANY_PORT = ("--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0")


def wait_for(condition: Callable[[], object], what: str, *, limit_s: float = LIMIT_S) -> None:
    """Returns once `condition()` holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:g} s in vain: {what}"
        time.sleep(0.1)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or dead and not yet taken note of by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        # The second one where it goes between the opening of the file and the reading.
        return True


def comes_up(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether a `ray start --block` that writes to `log` has come up, rather than ended before."""

    def is_up() -> bool:
        return "Ray runtime started" in log.read_text()

    wait_for(lambda: is_up() or process.poll() is not None, f"a node: {log}")
    return is_up()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def vanish(mark: str) -> None:
    """Ends every process of the node with that mark, without a word; Ray starts none of them again."""
    while found := _marked(mark):
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _marked(mark: str) -> list[int]:
    """Processes that inherited that mark and are alive."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


@dataclass
class Nodes:
    """A cluster at `address`, for processes that have its `environment` from their start: Ray reads tokens but once."""

    folder: Path
    more: dict[str, str]
    port: int = field(default_factory=free_port)
    token: str = field(default_factory=lambda: uuid.uuid4().hex * 2)
    marks: list[str] = field(default_factory=list)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            # A node that is gone is told after 2.5 s instead of 15; one that is slow has as long as ever.
            "RAY_health_check_period_ms": "500",
            **self.more,
        }

    def head(self, *options: str) -> None:
        """Starts the head."""
        self._start(
            "--head",
            f"--port={self.port}",
            f"--temp-dir={self.folder}",
            "--include-dashboard=false",
            *([] if any("--autoscaling-config" in option for option in options) else [NO_AUTOSCALER]),
            *options,
        )

    def add(self, *options: str) -> str:
        """Starts one node more; its mark."""
        return self._start(f"--address={self.address}", *options)

    @contextmanager
    def driver(self, connect: Callable[[str], None]) -> Iterator[ProcessPoolExecutor]:
        """A process that has run `connect(address)`, and runs what it is given."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.delenv("RAY_ADDRESS", raising=False)
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(
                1, mp_context=spawn, initializer=connect, initargs=(self.address,)
            ) as process:
                yield process

    def close(self) -> None:
        """Ends all nodes, the head first."""
        for mark, process in zip(self.marks, self._started, strict=True):
            vanish(mark)
            process.wait(timeout=LIMIT_S)

    def _start(self, *options: str) -> str:
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--block", *_ANY_PORT,
            f"--dashboard-agent-listen-port={free_port()}", "--object-store-memory=120000000", NO_LOG_MONITOR,
            *options,
        ]  # fmt: skip
        for left in reversed(range(STARTS)):
            mark = uuid.uuid4().hex
            log = self.folder.with_name(f"{mark}.log")
            environment = os.environ | self.environment | {"PYTHONPATH": str(REPOSITORY), MARK: mark}
            with log.open("w") as file:
                process = subprocess.Popen(
                    command, stdout=file, stderr=file, start_new_session=True, env=environment
                )
            self._started.append(process)
            self.marks.append(mark)
            if comes_up(process, log):
                return mark
            assert left and TOO_SLOW in log.read_text(), log.read_text()
            vanish(mark)
        raise AssertionError("unreachable")


@contextmanager
def cluster(*options: str, port: int | None = None, more: dict[str, str] | None = None) -> Iterator[Nodes]:
    """A head with `options` of `ray start`; `more`: environment of its nodes."""
    # A short path: the sockets in it may not be longer than 107 bytes.
    with TemporaryDirectory(prefix="nodes", dir="/tmp", ignore_cleanup_errors=True) as folder:
        temporary = Path(folder, "ray")
        temporary.mkdir()
        nodes = Nodes(temporary, more or {}, port or free_port())
        try:
            nodes.head(*options)
            yield nodes
        finally:
            nodes.close()
