"""What a private Ray listens on, and whether it asks for a token, as the system sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.pipelines.conftest import REPOSITORY

# Two sessions in one process, as an evaluation or a notebook has them: each prints its sockets and what lies about.
SCRIPT = """
import json, os, re, subprocess, sys, time
from contextlib import suppress
from pathlib import Path
import numpy as np
import ray
from pipelines.ray_session import session

def listening(pids):
    at = {}
    for family in ("tcp", "tcp6"):
        for line in Path("/proc/net", family).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                at[fields[9]] = fields[1].rpartition(":")[0]
    found = []
    for pid in pids:
        links = []
        with suppress(OSError):  # a process that has ended meanwhile
            links = list(Path(f"/proc/{pid}/fd").iterdir())
        for link in links:
            try:
                inode = re.fullmatch(r"socket:\\\\[(\\\\d+)\\\\]", str(link.readlink()))
            except OSError:
                continue
            if inode and inode[1] in at:
                found.append(at[inode[1]])
    return found

def below(pid):
    found = [pid]
    with suppress(OSError):
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            with suppress(OSError):
                for child in (task / "children").read_text().split():
                    found += below(int(child))
    return found

JOIN = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print('in')"

def let_in(token, limit_s):
    command = [sys.executable, "-c", JOIN, ray.get_runtime_context().gcs_address]
    try:
        done = subprocess.run(command, env=os.environ | {"RAY_AUTH_TOKEN": token}, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return False  # it asks again and again
    return done.stdout.endswith("in\\n")

def both(token):
    begun = time.monotonic()
    right = let_in(token, 240)
    # Twice as long as it takes with the right one.
    return [right, let_in(token[::-1], 2 * (time.monotonic() - begun))]

def shared_mb():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("RssShmem")]
    return int(line.split()[1]) / 1024

def touched_mb():
    # Of shared memory, by 60 MB that nobody needs any more.
    before = shared_mb()
    for _ in range(30):
        ray.put(np.ones(2 << 20, np.uint8))
    return shared_mb() - before

class Told:
    def environment(self):
        return dict(os.environ)

for turn in range(2):
    with session(None, object_store_bytes=100 << 20):
        actor = ray.remote(Told).options(num_cpus=1).remote()
        environment = ray.get(actor.environment.remote())
        token = environment["RAY_AUTH_TOKEN"]
        logs = Path(ray._private.worker._global_node.get_session_dir_path())
        found = {
            "sockets": listening(below(os.getpid())),
            "mode": environment["RAY_AUTH_MODE"],
            "token": token,
            "address": ray.get_runtime_context().gcs_address,
            "logged": [str(path) for path in logs.rglob("*") if path.is_file() and token.encode() in path.read_bytes()],
            "let_in": [] if turn else both(token),
            "touched_mb": touched_mb(),
        }
    print(json.dumps(found))
    print(json.dumps({name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")}))
"""
# As /proc/net writes 127.0.0.1 and ::1, in the byte order of the machine, and 127.0.0.1 as an IPv6 address.
LOOPBACK = {
    "0100007F",
    "0000000000000000FFFF00000100007F",
    "00000000000000000000000001000000",
}


def test_only_this_machine_and_only_with_the_token(tmp_path: Path) -> None:
    theirs = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "of-another-cluster"}
    environment = os.environ | theirs | {"PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("\\\\", "\\")],
        env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, after_first, second, after_second = map(json.loads, done.stdout.splitlines())
    for told in (first, second):
        # The control service, the node's manager, two agents, the driver and the actor, at least.
        assert len(told["sockets"]) >= 6 and set(told["sockets"]) <= LOOPBACK
        assert told["address"].startswith("127.0.0.1:")
        assert told["mode"] == "token" and len(told["token"]) == 64
        assert told["logged"] == []
        # What was put is freed at once, and its memory taken again.
        assert 2 <= told["touched_mb"] < 30
    assert first["let_in"] == [True, False]
    assert first["token"] != second["token"]
    # What the user has set for clusters is there again, and nothing was written to the home folder.
    assert after_first == after_second == theirs | {"RAY_AUTH_TOKEN_PATH": None}
    assert not list(tmp_path.rglob("auth_token"))
