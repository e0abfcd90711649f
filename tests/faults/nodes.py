"""A Ray cluster of two nodes on this machine, either of which can vanish: each with its own raylet, workers and mark."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from tests.pipelines.nodes import NO_AUTOSCALER, NO_LOG_MONITOR, STARTS, TOO_SLOW, comes_up, free_port

REPOSITORY = Path(__file__).parents[2]
HOOK = Path(__file__).parent / "hook"
LIMIT_S = 300
# Every process of a node inherits it, under which its title does not matter.
MARK = "ECHOPRUNE_FAULT_NODE"
# An encoder takes two cores and its decoder one: an encoder to a node.
CPUS = 3


def find(mark: str, title: str = "") -> list[int]:
    """Ids of the living processes with that mark, whose program's path or title begins with `title`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            name = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[0]
            inherited = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue  # not a process, or gone meanwhile
        if name.startswith(title) and f"{MARK}={mark}" in inherited.split("\0"):
            found.append(int(entry.name))
    return sorted(found)


def send(processes: list[int], number: int) -> None:
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


@dataclass
class Node:
    """One `ray start`, `command`, with all that it brings up: on its way from the beginning."""

    command: list[str]
    environment: dict[str, str]
    folder: Path
    starts: int = 0

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.starts += 1
        self.mark = uuid.uuid4().hex
        self.log = self.folder / f"node-{self.mark}.log"
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                self.command, stdout=output, stderr=output, start_new_session=True,
                env=self.environment | {MARK: self.mark},
            )  # fmt: skip

    def wait(self) -> None:
        """Returns once it is up; RuntimeError where it does not come up."""
        while not comes_up(self.process, self.log):
            self.end()
            if self.starts == STARTS or TOO_SLOW not in self.log.read_text():
                raise RuntimeError(f"a node did not start: {self.log.read_text()}")
            self._start()

    def actors(self, name: str) -> list[int]:
        return find(self.mark, f"ray::{name}")

    def raylet(self) -> list[int]:
        return [each for each in find(self.mark) if "raylet/raylet" in _program(each)]

    def vanish(self) -> None:
        """As a machine whose power is cut: all at once, the raylet first."""
        send(self.raylet(), signal.SIGKILL)
        self.end()

    def end(self) -> None:
        while left := find(self.mark):
            send(left, signal.SIGKILL)
            time.sleep(0.02)
            # Its children are this process's only where that is their parent.
            self.process.poll()
        self.process.wait(timeout=LIMIT_S)


def _program(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""


@dataclass
class TwoNodes:
    """The cluster, for the time of a `with` block. `folder`: of the faults, as hook/sitecustomize.py wants it."""

    folder: Path
    nodes: list[Node] = field(default_factory=list)

    def __enter__(self) -> TwoNodes:
        # A short path: the sockets in it may not be longer than 107 bytes.
        self._temporary = tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True)
        token = self.folder / "token"
        token.write_text(uuid.uuid4().hex * 2)
        token.chmod(0o600)
        self.address = f"127.0.0.1:{free_port()}"
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A node that is gone is told after 2.5 s instead of 15; one that is slow has as long as ever.
            "RAY_health_check_period_ms": "500",
            "ECHOPRUNE_FAULTS": str(self.folder),
            "PYTHONPATH": f"{HOOK}{os.pathsep}{REPOSITORY}",
        }
        try:
            self.begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.end()
        self._temporary.cleanup()

    @property
    def second(self) -> Node:
        return self.nodes[1]

    def begin(self) -> None:
        """Both nodes, in place of those there were; the address stays."""
        port, folder = self.address.split(":")[1], self._temporary.name
        head = (
            "--head",
            f"--port={port}",
            "--include-dashboard=false",
            f"--temp-dir={folder}",
            NO_AUTOSCALER,
        )
        self.nodes = [self._start(*head)]
        self.nodes[0].wait()
        self.add().wait()

    def add(self) -> Node:
        """A second node, in place of one that is gone, on its way up."""
        self.nodes[1:] = [self._start(f"--address={self.address}")]
        return self.second

    def actors(self, name: str) -> list[int]:
        """Ids of the actors of that class, on both nodes."""
        return [each for node in self.nodes for each in node.actors(name)]

    def _start(self, *where: str) -> Node:
        command = [
            str(Path(sys.executable).with_name("ray")), "start", *where, "--block", f"--num-cpus={CPUS}",
            "--object-store-memory=100000000", "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}",
            # Any port: two raylets with the usual range would give the same ones to their workers.
            "--min-worker-port=0", "--max-worker-port=0", NO_LOG_MONITOR,
        ]  # fmt: skip
        environment = os.environ | self.environment
        environment.pop("RAY_ADDRESS", None)
        return Node(command, environment, self.folder)
