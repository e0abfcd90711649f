"""`ray job submit` of index and answer to a real head with its job server and token authentication; stopped and submitted again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import echoprune
from echoprune.answer_store import open_answers
from echoprune.receipt import read_receipts
from echoprune.status import store_status
from echoprune.storage import Storage
from echoprune.verify import verify
from pipelines.config import IndexConfig
from tests.clips import Clip, even, write
from tests.pipelines import in_process
from tests.pipelines.conftest import REPOSITORY, tables
from tests.pipelines.nodes import MARK, STARTS, TOO_SLOW, comes_up, free_port, vanish

PROGRAM = Path(sys.executable).with_name("ray")
LIMIT_S = 300
CLIPS = 10


@dataclass(frozen=True)
class JobServer:
    """A head with a job server at `address`; `environment`: of whoever talks to it."""

    address: str
    environment: dict[str, str]
    folder: Path

    def ray(self, *arguments: str | Path, code: int = 0, environment: dict[str, str] | None = None) -> str:
        """What `ray job ARGUMENTS` prints; its exit code must be `code`."""
        deadline = time.monotonic() + LIMIT_S
        while "No available agent" in (done := self._ray(arguments, environment)).stderr:
            # The head is up before its agent is.
            assert time.monotonic() < deadline, done.stderr
            time.sleep(1)
        text = done.stdout + done.stderr
        assert done.returncode == code, text + self.log
        return text

    def _ray(
        self, arguments: Sequence[str | Path], environment: dict[str, str] | None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(PROGRAM), "job", arguments[0], "--address", self.address, *map(str, arguments[1:])],
            cwd=REPOSITORY,
            env=self.environment if environment is None else environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def submit(self, job: str, *arguments: str | Path, name: str, wait: bool = True, code: int = 0) -> str:
        """Submits `python -m jobs.JOB ARGUMENTS` as infra/README.md says, with the repository as working_dir."""
        return self.ray(
            "submit", "--submission-id", name, "--working-dir", ".", "--runtime-env", "infra/runtime_env.yaml",
            *([] if wait else ["--no-wait"]), "--", "python", "-m", f"jobs.{job}", *arguments, code=code,
        )  # fmt: skip

    def stop(self, name: str) -> None:
        """Returns once a job has been stopped; what `ray job stop` asks for, without the seconds in which that starts."""
        self._asked(f"{name}/stop", method="POST")
        deadline = time.monotonic() + LIMIT_S
        while self._asked(name)["status"] != "STOPPED":
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    def _asked(self, what: str, *, method: str = "GET") -> dict[str, Any]:
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        headers = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"{self.address}/api/jobs/{what}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture(scope="module")
def job_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobServer]:
    folder = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.write_text(uuid.uuid4().hex * 2)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Every port on the loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # A job's `python` is that of the head's PATH.
        "PATH": f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}",
    }
    for name in ("RAY_ADDRESS", "PYTHONPATH"):
        environment.pop(name, None)
    port, dashboard = free_port(), free_port()
    # A short path: the sockets in it may not be longer than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as temporary:
        command = [
            PROGRAM, "start", "--head", "--num-cpus=2", "--object-store-memory=200000000", "--block",
            "--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={temporary}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            # The usual one, 52365, may be another head's on this machine: then no job is ever taken.
            f"--dashboard-agent-listen-port={free_port()}",
        ]  # fmt: skip
        server = JobServer(f"http://127.0.0.1:{dashboard}", environment, folder)
        mark = uuid.uuid4().hex
        try:
            for left in reversed(range(STARTS)):
                with (folder / "log").open("w") as log:
                    process = subprocess.Popen(
                        list(map(str, command)),
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        env=environment | {MARK: mark},
                        cwd=folder,
                    )
                if comes_up(process, folder / "log"):
                    break
                assert left and TOO_SLOW in server.log, server.log
            yield server
        finally:
            # Told to end it takes half a minute, in which its agents ask in vain for one another.
            vanish(mark)
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    one = write(Clip("a.mp4", even(100, step_ms=40)), folder)
    for number in range(1, CLIPS):
        shutil.copy(one, folder / f"copy {number:02}.mp4")
    return folder


def options(store: Path, model: Path) -> list[str | Path]:
    return [
        "--store", store, "--model", model, "--max-pixels", "20000", "--fps", "8", "--shard-videos", "1",
        "--decoders-per-gpu", "1", "--device", "cpu",
    ]  # fmt: skip


def test_a_job_that_is_stopped_and_submitted_again_loses_nothing(
    job_server: JobServer, clips: Path, tiny: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    job_server.submit("index", clips, *options(store, tiny), name="first", wait=False)
    deadline = time.monotonic() + LIMIT_S
    while not (store / "receipts").is_dir() or not list((store / "receipts").iterdir()):
        assert time.monotonic() < deadline, job_server.ray("logs", "first")
        time.sleep(0.05)
    job_server.stop("first")
    committed = set(read_receipts(Storage(store)))
    assert 0 < len(committed) < CLIPS
    told = job_server.submit("index", clips, *options(store, tiny), name="second")
    assert "succeeded" in told.lower()
    assert committed < set(read_receipts(Storage(store)))
    assert store_status(store)["videos"] == {"ok": CLIPS, "partial": 0, "failed": 0, "missing": 0}
    assert list(verify(store)) == []
    # The same as without Ray, and stopped by nobody.
    in_process.index(
        IndexConfig(
            paths=(str(clips),), store=str(tmp_path / "clean"), model=str(tiny), max_pixels=20_000, fps="8",
            shard_videos=1,
        )
    )  # fmt: skip
    assert tables(store) == tables(tmp_path / "clean")
    report = json.loads((store / "run_report.json").read_text())
    assert report["run"]["videos"]["before"] == len(committed) and report["config"]["address"] is None

    questions = tmp_path / "q.jsonl"
    questions.write_text(
        "".join(
            json.dumps({"question_id": str(n), "video": f"copy {n:02}.mp4", "question": "What moves?"}) + "\n"
            for n in range(1, 4)
        )
    )
    told = job_server.submit(
        "answer", store, "--model", tiny, "--questions", questions, "--out", tmp_path / "answers",
        "--budget", "32", "--max-new-tokens", "4", "--device", "cpu", name="third",
    )  # fmt: skip
    assert "succeeded" in told.lower() and '"questions_done": 3' in told
    assert open_answers(tmp_path / "answers").table(["status"])["status"].to_pylist() == ["ok"] * 3
    assert len(echoprune.open_store(store).tokens("a.mp4").tokens) > 0


def test_a_job_that_cannot_be_done_fails_with_one_line(
    job_server: JobServer, clips: Path, tmp_path: Path
) -> None:
    told = job_server.submit(
        "index", clips, "--store", tmp_path / "store", "--model", tmp_path / "no model", name="bad", code=1
    )
    assert "echoprune: " in told and "no model" in told and "Traceback" not in told
    assert not (tmp_path / "store").exists()


def test_whoever_has_no_token_cannot_submit(job_server: JobServer, tmp_path: Path) -> None:
    (tmp_path / "other").write_text(uuid.uuid4().hex * 2)
    stranger = job_server.environment | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}
    told = job_server.ray("submit", "--", "touch", tmp_path / "made", code=1, environment=stranger)
    assert "401" in told or "403" in told or "token" in told.lower()
    assert not (tmp_path / "made").exists()
